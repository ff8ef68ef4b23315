import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss

from scope_rlhf.metrics import (
    classification_metrics,
    confusion_matrix,
    expected_calibration_error,
    per_class_scores,
)

LABELS = np.array([0, 0, 0, 1, 1, 2])
PREDICTIONS = np.array([0, 0, 1, 1, 1, 0])


def log_probs_of(predictions, confidence=0.8, k=3):
    probs = np.full((len(predictions), k), (1 - confidence) / (k - 1))
    probs[np.arange(len(predictions)), predictions] = confidence
    return np.log(probs)


def test_precision_and_recall_of_each_class_are_those_counted_by_hand():
    scores = per_class_scores(LABELS, PREDICTIONS, 4)
    assert scores.precision.tolist() == pytest.approx([2 / 3, 2 / 3, 0, 0])
    assert scores.recall.tolist() == pytest.approx([2 / 3, 1, 0, 0])
    assert scores.support.tolist() == [3, 2, 1, 0]
    assert scores.predicted.tolist() == [3, 3, 0, 0]


def test_the_metrics_are_those_of_scikit_learn_and_the_papers_pair():
    found = classification_metrics(LABELS, log_probs_of(PREDICTIONS), [200, 50, 3])
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(LABELS, PREDICTIONS))
    assert found["macro_f1"] == pytest.approx(f1_score(LABELS, PREDICTIONS, average="macro"))
    assert found["macro_precision"] == pytest.approx(4 / 9)
    assert found["precision_std"] == pytest.approx(np.std([2 / 3, 2 / 3, 0]))
    assert found["never_predicted"] == 1
    assert found["loss"] == pytest.approx(log_loss(LABELS, np.exp(log_probs_of(PREDICTIONS))))
    assert (found["accuracy_many"], found["accuracy_medium"], found["accuracy_few"]) == pytest.approx((2 / 3, 1, 0))


def test_the_borders_of_many_medium_and_few_are_those_of_liu_et_al():
    labels = np.arange(4)
    found = classification_metrics(labels, log_probs_of(np.array([0, 1, 0, 3]), k=4), [101, 100, 20, 19])
    assert (found["accuracy_many"], found["accuracy_medium"], found["accuracy_few"]) == (1.0, 0.5, 1.0)
    assert "accuracy_many" not in classification_metrics(labels, log_probs_of(labels, k=4), [3, 3, 3, 3])


def test_a_class_without_images_does_not_count():
    found = classification_metrics([0, 1], log_probs_of(np.array([0, 1])), [10, 10, 10])
    assert found["macro_precision"] == found["balanced_accuracy"] == 1.0
    assert found["precision_std"] == 0.0
    assert found["never_predicted"] == 0


def test_calibration_error_is_the_gap_of_each_bin_by_its_share():
    # Two bins of fifteen: three images at .9 of which two are right, one at .35 which is wrong.
    found = expected_calibration_error([0.9, 0.9, 0.9, 0.35], [True, True, False, False])
    assert found == pytest.approx((abs(2 - 2.7) + 0.35) / 4)
    assert expected_calibration_error([1.0, 1.0], [True, True]) == 0.0


def test_log_probs_of_nan_make_loss_and_calibration_nan_and_nothing_else():
    log_probs = log_probs_of(np.array([0, 1, 2]))
    log_probs[2] = np.nan
    found = classification_metrics([0, 1, 2], log_probs, [10, 10, 10])
    assert np.isnan(found["loss"])
    assert np.isnan(found["calibration_error"])
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_rows_of_the_confusion_matrix_are_the_true_classes():
    assert confusion_matrix(LABELS, PREDICTIONS, 3).tolist() == [[2, 1, 0], [0, 2, 0], [1, 0, 0]]


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 3], [0, 1], "labels must be one class from 0 to 2"),
        ([0, 1], [0, -1], "predictions must be one class"),
        ([0, 1], [0], "of the same images, got 2 and 1"),
        ([], [], "of the same images, got 0 and 0"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, predictions, message):
    with pytest.raises(ValueError, match=message):
        per_class_scores(np.array(labels, dtype=int), np.array(predictions, dtype=int), 3)
    with pytest.raises(ValueError, match="log_probs has shape"):
        classification_metrics([0], np.zeros((1, 2)), [1, 1, 1])
