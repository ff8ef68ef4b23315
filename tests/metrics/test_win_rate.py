"""Win rates against closed forms, independent fits and simulations with a known answer."""

import math

import numpy as np
import pytest

from scope_rlhf.metrics import interval_over_runs, length_controlled_win_rate, pair_scores, win_rate

sklearn = pytest.importorskip("sklearn.linear_model")


def test_a_pair_counts_one_only_where_both_orders_agree():
    forward = ["A", "A", "B", "B", "tie", "tie", "A", "tie", "invalid", "B"]
    backward = ["A", "B", "A", "B", "tie", "A", "tie", "B", "A", "invalid"]
    expected = [1, 0.5, 0.5, 0, 0.5, 0.5, 0.5, 0.5, math.nan, math.nan]
    np.testing.assert_array_equal(pair_scores(forward, backward), expected)


def test_the_counts_leave_invalid_pairs_out_of_every_rate():
    result = win_rate(["A", "A", "B", "tie", "invalid"], ["A", "B", "B", "tie", "A"])
    assert (result.wins, result.ties, result.losses, result.invalid) == (1, 2, 1, 1)
    assert result.rate.value == 0.5 and result.rate.n == 4
    assert result.decided is not None and (result.decided.value, result.decided.n) == (0.5, 2)
    assert result.order_consistency == 0.75  # all but the second


def test_wilson_of_the_decided_pairs_is_the_closed_form():
    # 60 of 100 at 95 %: Newcombe (1998), method 3.
    decided = win_rate(["A"] * 60 + ["B"] * 40, ["A"] * 60 + ["B"] * 40, resamples=100).decided
    assert decided is not None
    z, p, n = 1.959963984540054, 0.6, 100
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert decided.low == pytest.approx((centre - half) / (1 + z * z / n), abs=1e-12)
    assert decided.high == pytest.approx((centre + half) / (1 + z * z / n), abs=1e-12)


def test_a_judge_that_names_the_first_position_is_exposed_and_cancels():
    result = win_rate(["A"] * 30, ["B"] * 30, resamples=100)
    assert (result.rate.value, result.order_consistency, result.first_position) == (0.5, 0.0, 1.0)
    assert result.decided is None and result.ties == 30


def test_a_partly_position_biased_judge_keeps_the_order_of_the_systems():
    generator = np.random.default_rng(0)
    truth = np.where(generator.random(4000) < 0.7, "A", "B")
    biased = generator.random((2, 4000)) < 0.4  # these answers name whatever stands in front
    forward = np.where(biased[0], "A", truth).tolist()
    backward = np.where(biased[1], "B", truth).tolist()
    result = win_rate(forward, backward, resamples=200)
    # A true win is kept unless the backward answer is biased (.4): .7 x .6 = .42; losses .3 x .6; the rest are ties.
    assert result.rate.value == pytest.approx(0.5 + (0.42 - 0.18) / 2, abs=0.02)
    assert result.order_consistency == pytest.approx(0.6, abs=0.03)
    assert result.first_position is not None and result.first_position > 0.6


@pytest.mark.parametrize("rate", [0.5, 0.65, 0.8])
def test_the_bootstrap_of_a_rate_with_ties_covers_the_truth_90_to_97_times_in_100(rate):
    generator = np.random.default_rng(1)
    trials, covered = 300, 0
    for trial in range(trials):
        decided = np.where(generator.random(120) < rate, "A", "B")
        tied = generator.random(120) < 0.2
        verdicts = np.where(tied, "tie", decided).tolist()
        interval = win_rate(verdicts, verdicts, resamples=400, seed=trial).rate
        covered += interval.low <= 0.1 + 0.8 * rate <= interval.high
    assert 0.90 <= covered / trials <= 0.97


def planted(n=3000, skill=0.3, taste=0.8, seed=0):
    """Scores of a judge that likes long texts, of a system that writes longer ones."""
    generator = np.random.default_rng(seed)
    difference = generator.normal(8, 10, n)
    chance = 1 / (1 + np.exp(-(skill + taste * difference / difference.std())))
    return (generator.random(n) < chance).astype(float), difference, 1 / (1 + math.exp(-skill))


def test_length_control_recovers_a_planted_length_bias():
    scores, difference, truth = planted()
    controlled = length_controlled_win_rate(scores, difference)
    assert scores.mean() > truth + 0.1  # what the raw rate makes of it
    assert controlled.value == pytest.approx(truth, abs=0.03)
    assert controlled.low < truth < controlled.high and controlled.high - controlled.low < 0.09


def test_the_interval_of_the_length_controlled_rate_covers_the_planted_one_90_to_97_times_in_100():
    covered = 0
    for seed in range(200):
        scores, difference, truth = planted(150, seed=seed)
        interval = length_controlled_win_rate(scores, difference, resamples=300, seed=seed)
        covered += interval.low <= truth <= interval.high
    assert 0.90 <= covered / 200 <= 0.97


def test_length_control_is_the_logistic_regression_of_scikit_learn():
    scores, difference, _ = planted(400)
    lengths = (difference / difference.std())[:, None]
    oracle = sklearn.LogisticRegression(C=1 / (1e-3 * 400), tol=1e-10).fit(lengths, scores)
    expected = 1 / (1 + np.exp(-oracle.intercept_[0]))
    assert length_controlled_win_rate(scores, difference, resamples=10).value == pytest.approx(expected, abs=1e-6)


def test_a_tie_is_half_a_win_and_half_a_loss():
    scores, difference, _ = planted(200)
    scores[:50] = 0.5
    split = np.concatenate([np.repeat(scores, 2)])
    split[0:100:2], split[1:100:2] = 1, 0
    one = length_controlled_win_rate(scores, difference, resamples=10).value
    assert one == pytest.approx(
        length_controlled_win_rate(split, np.repeat(difference, 2), resamples=10).value, abs=1e-9
    )


@pytest.mark.parametrize(("scores", "expected"), [([1.0] * 12, 1.0), ([0.0] * 12, 0.0), ([0.5] * 12, 0.5)])
def test_length_control_stays_finite_where_all_verdicts_are_the_same(scores, expected):
    result = length_controlled_win_rate(scores, np.arange(12.0))
    assert result.value == pytest.approx(expected, abs=1e-6) and 0 <= result.low <= result.high <= 1


def test_length_control_with_equal_lengths_is_the_plain_rate():
    result = length_controlled_win_rate([1, 1, 1, 0], [0, 0, 0, 0])
    assert result.value == pytest.approx(0.75, abs=1e-6)


def test_the_bootstrap_over_runs_is_wider_than_over_prompts_where_the_runs_differ():
    generator = np.random.default_rng(0)
    same = [(generator.random(200) < 0.6).astype(float) for _ in range(3)]
    apart = [(generator.random(200) < p).astype(float) for p in (0.45, 0.6, 0.75)]
    narrow, wide = interval_over_runs(same), interval_over_runs(apart)
    assert wide.high - wide.low > 1.7 * (narrow.high - narrow.low)
    assert narrow.value == pytest.approx(np.mean([r.mean() for r in same]), abs=1e-12) and narrow.n == 3
    # Independent of the width: 600 draws of .6 have a standard error of .02.
    assert narrow.high - narrow.low == pytest.approx(2 * 1.96 * 0.02, rel=0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pair_scores(["A"], []), "hold 1 and 0 verdicts"),
        (lambda: pair_scores(["A"], ["first"]), "a verdict must be one of A, B, tie, invalid, got 'first'"),
        (lambda: win_rate(["invalid"], ["A"]), "none of the 1 pairs has two verdicts that could be read"),
        (lambda: length_controlled_win_rate([0.5], [1, 2]), "hold 1 and 2 values"),
        (lambda: length_controlled_win_rate([1.5], [1]), r"scores must lie in \[0, 1\]"),
        (lambda: interval_over_runs([]), "at least one run"),
    ],
)
def test_bad_input_says_what_was_given(call, message):
    with pytest.raises(ValueError, match=message):
        call()
