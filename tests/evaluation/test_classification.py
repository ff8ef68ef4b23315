import json

import numpy as np
import pytest

from scope_rlhf.evaluation.classification import describe_classification, evaluate_run, worst_classes
from scope_rlhf.metrics import confusion_matrix
from scope_rlhf.vision.data import load_data
from scope_rlhf.vision.train import train_vision
from tests.vision.folders import write_folder
from tests.vision.makers import make_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = make_config(tmp_path_factory.mktemp("run") / "run", num_train_epochs=6, learning_rate=3e-3)
    return train_vision(config), config


def test_a_run_is_measured_on_its_test_part_class_by_class(run):
    folder, config = run
    data = load_data(config, show=False)
    found = evaluate_run(folder, config, data)
    assert json.loads((folder / "evaluation.json").read_text())["metrics"] == pytest.approx(found["metrics"])
    saved = np.load(folder / "predictions.npz")
    assert np.array_equal(saved["labels"], data.labels[data.split.test])
    chosen = saved["log_probs"].argmax(axis=1)
    for k, row in enumerate(found["per_class"]):
        hits = int(((chosen == k) & (saved["labels"] == k)).sum())
        assert row["train_images"] == data.counts[k]
        assert row["precision"] == pytest.approx(hits / max(1, (chosen == k).sum()))
        assert row["recall"] == pytest.approx(hits / (saved["labels"] == k).sum())
    precisions = [row["precision"] for row in found["per_class"]]
    assert found["metrics"]["macro_precision"] == pytest.approx(np.mean(precisions))
    assert found["metrics"]["precision_std"] == pytest.approx(np.std(precisions))
    assert found["metrics"]["accuracy"] > 0.7
    low, high = found["accuracy_interval"]["low"], found["accuracy_interval"]["high"]
    assert low < found["metrics"]["accuracy"] < high


def test_the_validation_part_gives_what_training_logged(run):
    folder, config = run
    found = evaluate_run(folder, config, load_data(config, show=False), "validation")
    assert found["metrics"]["balanced_accuracy"] == pytest.approx(
        json.loads((folder / "finished.json").read_text())["value"]
    )


def test_a_model_of_other_classes_is_refused(run, tmp_path):
    write_folder(tmp_path / "data", 6)
    other = make_config(
        tmp_path / "x", dataset_name=str(tmp_path / "data"), imbalance_ratio=1.0, cache_dir=str(tmp_path / "cache")
    )
    with pytest.raises(ValueError, match="has 10 classes, data has 3"):
        evaluate_run(run[0], other, load_data(other, show=False))


def test_of_many_classes_the_worst_and_those_they_are_taken_for_are_shown():
    labels = np.repeat(np.arange(20), 10)
    chosen = labels.copy()
    chosen[labels == 7] = 12  # never right
    chosen[np.flatnonzero(labels == 3)[:6]] = 15
    matrix = confusion_matrix(labels, chosen, 20)
    f1 = np.array([2 * matrix[k, k] / max(1, matrix[k].sum() + matrix[:, k].sum()) for k in range(20)])
    shown = worst_classes(matrix, f1, matrix.sum(axis=1), most=4)
    assert shown == [3, 7, 12, 15]
    log_probs = np.log(np.full((200, 20), 0.01) + 0.8 * np.eye(20)[chosen])
    found = describe_classification(labels, log_probs, [f"c{k}" for k in range(20)], np.full(20, 50))
    assert len(found["confusion"]["classes"]) == 12
    assert {"c7", "c12", "c3", "c15"} <= set(found["confusion"]["classes"])
    place = found["confusion"]["classes"].index
    assert found["confusion"]["counts"][place("c7")][place("c12")] == 10
