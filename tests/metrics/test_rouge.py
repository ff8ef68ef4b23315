"""ROUGE against values counted by hand."""

import pytest

from scope_rlhf.metrics import rouge_scores
from scope_rlhf.metrics.rouge import rouge_each


def test_the_f1_of_words_pairs_and_runs_is_counted_by_hand():
    # prediction: the cat sat on the mat; reference: the cat lay on a mat.
    # Words shared: the (once, the reference has one), cat, on, mat = 4 of 6 and 6: P = R = F = 2/3.
    # Pairs of the prediction: the cat, cat sat, sat on, on the, the mat; shared: the cat = 1 of 5 and 5.
    # Longest common subsequence: the cat on mat = 4 of 6 and 6.
    scores = rouge_scores(["The cat sat on the mat."], ["the cat lay on a mat"])
    assert scores == {"rouge1": pytest.approx(2 / 3), "rouge2": pytest.approx(0.2), "rougeL": pytest.approx(2 / 3)}


def test_precision_and_recall_differ_with_the_length_and_order_counts_for_rouge_l_only():
    # b a c against a b: words shared 2, P = 2/3, R = 1, F = .8; no pair shared; a subsequence of 1: P = 1/3, R = 1/2.
    scores = rouge_scores(["beta alpha gamma"], ["alpha beta"])
    assert scores == {"rouge1": pytest.approx(0.8), "rouge2": 0.0, "rougeL": pytest.approx(0.4)}


def test_words_are_stemmed():
    assert rouge_scores(["computing tensors"], ["computed tensor"])["rouge2"] == 1.0


def test_the_mean_is_over_pairs_and_an_empty_text_counts_as_zero():
    each = rouge_each(["same words here", ""], ["same words here", "some reference"])
    assert [values.tolist() for values in each.values()] == [[1.0, 0.0]] * 3
    assert rouge_scores(["same words here", ""], ["same words here", "some reference"])["rougeL"] == 0.5


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a"], [], "hold 1 and 0 texts"),
        ([], [], "at least one pair"),
        (["a", None], ["a", "b"], "predictions must be texts, row 1 is None"),
        (["a"], [["b"]], r"references must be texts, row 0 is \['b'\]"),
    ],
)
def test_bad_input_says_what_was_given(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        rouge_scores(predictions, references)
