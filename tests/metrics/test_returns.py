"""Statistics of returns against scipy, slow loops and curves whose area is known."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import integrate, stats

from scope_rlhf.metrics import (
    aggregate_runs,
    align_curves,
    average_repeated_steps,
    difference_of_means,
    interquartile_mean,
    learning_curve_area,
    not_worse,
    student_interval,
    student_quantile,
)


@pytest.fixture
def scores() -> np.ndarray:
    """[5 runs, 7 games], skewed, the games apart from each other."""
    generator = np.random.default_rng(4)
    return generator.gamma(2.0, 0.4, size=(5, 7)) * np.linspace(0.2, 3.0, 7)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 35])
def test_interquartile_mean_equals_scipys_trimmed_mean(n):
    values = np.random.default_rng(n).normal(size=n)
    assert interquartile_mean(values) == pytest.approx(stats.trim_mean(values, 0.25), rel=1e-12)


def test_interquartile_mean_pools_runs_and_games_and_ignores_the_outer_quarters(scores):
    assert interquartile_mean(scores) == pytest.approx(stats.trim_mean(scores, 0.25, axis=None), rel=1e-12)
    assert interquartile_mean([-1e9, 1.0, 3.0, 1e9]) == 2.0


def test_aggregates_equal_their_definitions(scores):
    found = aggregate_runs(scores, resamples=10)
    of_games = [math.fsum(game) / 5 for game in scores.T]
    assert found["interquartile_mean"].value == pytest.approx(stats.trim_mean(scores, 0.25, axis=None))
    assert found["mean"].value == pytest.approx(math.fsum(of_games) / 7)
    assert found["median"].value == pytest.approx(sorted(of_games)[3])
    gap = math.fsum(max(0.0, 1.0 - score) for score in scores.ravel()) / 35
    assert found["optimality_gap"].value == pytest.approx(gap)
    assert {interval.n for interval in found.values()} == {5}


def test_the_gap_to_a_target_that_no_score_reaches_is_the_target_less_the_mean(scores):
    found = aggregate_runs(scores, target=100.0, resamples=500)
    assert found["optimality_gap"].value == pytest.approx(100 - found["mean"].value)
    assert found["optimality_gap"].low == pytest.approx(100 - found["mean"].high)


def test_intervals_are_those_of_a_slow_bootstrap_that_draws_runs_inside_each_game(scores):
    found = aggregate_runs(scores, resamples=20_000)
    generator = np.random.default_rng(99)
    drawn = []
    for _ in range(5_000):
        sample = np.stack([generator.choice(game, size=5) for game in scores.T], axis=1)
        middle = stats.trim_mean(sample, 0.25, axis=None)
        gap = np.maximum(0, 1 - sample).mean()
        drawn.append([middle, np.median(sample.mean(0)), sample.mean(), gap])
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    for place, name in enumerate(["interquartile_mean", "median", "mean", "optimality_gap"]):
        # A bound of 5,000 resamples has an error of about 1 % of the width.
        tolerance = 0.05 * (high[place] - low[place])
        assert found[name].low == pytest.approx(low[place], abs=tolerance)
        assert found[name].high == pytest.approx(high[place], abs=tolerance)


def test_the_interval_of_one_game_equals_scipys_percentile_bootstrap(scores):
    game = scores[:, 3]
    mine = aggregate_runs(game[:, None], resamples=50_000)["mean"]
    peer = stats.bootstrap((game,), np.mean, n_resamples=50_000, method="percentile", rng=1).confidence_interval
    assert (mine.low, mine.high) == pytest.approx((peer.low, peer.high), abs=0.02 * (peer.high - peer.low))


def test_games_that_differ_widen_no_interval_while_their_runs_agree():
    found = aggregate_runs(np.tile([0.0, 1.0, 50.0], (5, 1)), resamples=200)
    assert all(interval.low == interval.high == interval.value for interval in found.values())


def test_each_game_draws_its_own_runs():
    # Drawn together, the two games of a run would cancel in every resample and leave a width of 0.
    column = np.random.default_rng(0).normal(size=8)
    mean = aggregate_runs(np.stack([column, -column], axis=1), resamples=4000)["mean"]
    # The mean of two independent means of 8: variance (v / 8 + v / 8) / 4, v the variance of the 8.
    assert mean.high - mean.low == pytest.approx(2 * 1.96 * math.sqrt(column.var() / 16), rel=0.1)


def test_intervals_of_five_seeds_are_too_narrow_as_the_docstring_says():
    generator = np.random.default_rng(1)
    inside = 0
    for trial in range(400):
        mean = aggregate_runs(generator.normal(size=(5, 20)), resamples=300, seed=trial)["mean"]
        inside += mean.low <= 0 <= mean.high
    # 92 % less what 300 resamples cost; the binomial error of 400 trials is 1.4 points.
    assert 0.86 <= inside / 400 <= 0.945


def test_same_seed_gives_the_same_intervals_and_memory_chunks_do_not_change_them(scores, monkeypatch):
    first = aggregate_runs(scores, resamples=1000, seed=5)
    monkeypatch.setattr("scope_rlhf.metrics.returns._DRAWS", 35 * 100)
    assert aggregate_runs(scores, resamples=1000, seed=5) == first
    assert aggregate_runs(scores, resamples=1000, seed=6) != first


def test_one_run_has_aggregates_and_no_bounds():
    found = aggregate_runs([[0.0, 0.5, 1.0]])
    assert found["mean"].value == 0.5 and found["mean"].n == 1
    assert all((interval.low, interval.high) == (-math.inf, math.inf) for interval in found.values())


@pytest.mark.parametrize(
    ("scores", "settings", "message"),
    [
        ([1.0, 2.0], {}, "must be .runs, games., at least one of each; got shape .2,."),
        (np.empty((0, 3)), {}, "got shape .0, 3."),
        ([[1.0, math.nan]], {}, "value 1 of 2 is nan"),
        ([[1.0]], {"confidence": 95}, "confidence"),
        ([[1.0]], {"resamples": 0}, "resamples"),
        ([[1.0]], {"target": math.inf}, "target must be a finite score, got inf"),
    ],
)
def test_scores_that_are_no_table_are_refused(scores, settings, message):
    with pytest.raises(ValueError, match=message):
        aggregate_runs(scores, **settings)


def test_the_area_of_a_straight_line_is_the_mean_of_its_ends_however_it_is_sampled():
    steps = np.sort(np.random.default_rng(0).uniform(100, 900, size=20))
    line = 3 + 0.5 * steps
    assert learning_curve_area(steps, line) == pytest.approx((line[0] + line[-1]) / 2)
    assert learning_curve_area([0, 10], [7, 7]) == 7.0


def test_the_area_weighs_a_return_by_the_steps_it_lasts():
    # (0 to 1 over 10 steps: 5) + (1 over 90 steps: 90) = 95, over 100 steps.
    assert learning_curve_area([0, 10, 100], [0, 1, 1]) == pytest.approx(0.95)
    # The plain mean of the points would be 2/3.
    late = learning_curve_area([0, 90, 100], [0, 0, 1])
    assert late == pytest.approx(0.05)


def test_the_area_equals_scipys_trapezoid_and_does_not_change_with_the_unit_of_steps():
    generator = np.random.default_rng(2)
    steps, returns = np.cumsum(generator.exponential(size=50)), generator.normal(size=50)
    area = learning_curve_area(steps, returns)
    assert area == pytest.approx(integrate.trapezoid(returns, steps) / (steps[-1] - steps[0]))
    assert learning_curve_area(1e6 * steps - 5, returns) == pytest.approx(area)


def test_total_steps_cuts_the_curve_where_it_stands():
    steps, returns = [0, 10, 20], [0, 10, 0]
    # To step 15, at height 5: triangle 50, then a trapezoid of 5 (10 + 5) / 2 = 37.5; over 15 steps.
    assert learning_curve_area(steps, returns, 15) == pytest.approx(87.5 / 15)
    assert learning_curve_area(steps, returns, 10) == pytest.approx(5.0)
    assert learning_curve_area(steps, returns, 20) == learning_curve_area(steps, returns)


@pytest.mark.parametrize(
    ("steps", "returns", "total_steps", "message"),
    [
        ([0, 2, 1], [0, 0, 0], None, "steps must rise from point to point; point 2 is 1 after 2"),
        ([0, 1, 1], [0, 0, 0], None, "point 2 is 1 after 1. average_repeated_steps sorts"),
        ([0, 1, 2], [0, 0], None, "steps and returns belong together, but hold 3 and 2"),
        ([0, 1], [0, math.nan], None, "returns must be finite; value 1 of 2 is nan"),
        ([0, math.inf], [0, 0], None, "steps must be finite"),
        ([5], [1], None, "at least two points of the curve, got one, at step 5"),
        ([], [], None, "one number per point, at least one"),
        ([0, 10], [0, 1], 11, "after step 0 and not after 10, got 11"),
        ([5, 10], [0, 1], 5, "after step 5 and not after 10, got 5"),
        ([5, 10], [0, 1], math.nan, "got nan"),
    ],
)
def test_curves_without_an_area_are_refused(steps, returns, total_steps, message):
    with pytest.raises(ValueError, match=message):
        learning_curve_area(steps, returns, total_steps)


def test_aligned_curves_are_interpolated_inside_their_own_range_and_missing_outside():
    aligned = align_curves([([0, 10], [0, 100]), ([5, 6, 20], [1, 2, 16])], [0, 5, 5.5, 10, 20, 21])
    expected = [[0, 50, 55, 100, math.nan, math.nan], [math.nan, 1, 1.5, 6, 16, math.nan]]
    np.testing.assert_allclose(aligned, expected)


def test_a_curve_aligned_on_its_own_steps_is_itself():
    steps, returns = [1, 4, 9], [2.0, 3.0, -1.0]
    np.testing.assert_array_equal(align_curves([(steps, returns)], steps)[0], returns)


@pytest.mark.parametrize(
    ("curves", "grid", "message"),
    [
        ([], [0, 1], "at least one curve"),
        ([([0, 1], [0, 1])], [], "grid must be one number per step"),
        ([([0, 1], [0, 1]), ([1, 0], [0, 1])], [0, 1], "steps of curve 1 must rise"),
        ([([0, 1], [0, 1, 2])], [0], "steps of curve 0 and returns of curve 0 belong together, but hold 2 and 3"),
    ],
)
def test_curves_that_cannot_be_aligned_are_refused(curves, grid, message):
    with pytest.raises(ValueError, match=message):
        align_curves(curves, grid)


def test_episodes_that_end_at_one_step_become_one_point_with_their_mean():
    steps, returns = average_repeated_steps([30, 10, 30, 20, 30], [3, 1, 6, 5, 0])
    assert (steps.tolist(), returns.tolist()) == ([10, 20, 30], [1, 5, 3])
    assert learning_curve_area(steps, returns) == pytest.approx((3 + 4) / 2)
    with pytest.raises(ValueError, match="hold 2 and 1"):
        average_repeated_steps([1, 2], [1])


def test_student_quantiles_equal_scipys():
    for probability, degrees in product([1e-6, 0.025, 0.3, 0.5, 0.6, 0.975, 0.999], [1, 1.3, 2, 4, 5.7, 30, 1e3, 1e5]):
        peer = stats.t.ppf(probability, degrees)
        assert student_quantile(probability, degrees) == pytest.approx(peer, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(
    ("probability", "degrees", "message"),
    [(0.0, 3, "probability"), (1.0, 3, "probability"), (math.nan, 3, "probability"), (0.9, 0.5, "degrees must lie")],
)
def test_quantiles_out_of_reach_are_refused(probability, degrees, message):
    with pytest.raises(ValueError, match=message):
        student_quantile(probability, degrees)


@pytest.mark.parametrize("n", [2, 5, 40])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_student_interval_equals_scipys(n, confidence):
    values = np.random.default_rng(n).normal(10, 3, size=n)
    mine = student_interval(values, confidence)
    peer = stats.ttest_1samp(values, 0).confidence_interval(confidence)
    assert (mine.low, mine.high) == pytest.approx((peer.low, peer.high), rel=1e-6)
    assert (mine.value, mine.n) == (pytest.approx(values.mean()), n)


@pytest.mark.parametrize(("n_a", "n_b"), [(5, 5), (2, 2), (3, 10), (10, 2)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_difference_of_means_equals_scipys_welch_interval(n_a, n_b, confidence):
    generator = np.random.default_rng(n_a + 100 * n_b)
    a, b = generator.normal(400, 60, size=n_a), generator.normal(380, 5, size=n_b)
    mine = difference_of_means(a, b, confidence)
    peer = stats.ttest_ind(a, b, equal_var=False).confidence_interval(confidence)
    assert (mine.low, mine.high) == pytest.approx((peer.low, peer.high), rel=1e-6)
    assert (mine.mean_a, mine.mean_b, mine.n_a, mine.n_b) == (
        pytest.approx(a.mean()),
        pytest.approx(b.mean()),
        n_a,
        n_b,
    )
    assert mine.difference == pytest.approx(a.mean() - b.mean())


def test_swapping_the_sides_turns_the_difference_around():
    one, other = difference_of_means([1, 2, 4], [0, 9]), difference_of_means([0, 9], [1, 2, 4])
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))


def test_95_percent_welch_interval_of_five_seeds_a_side_covers_the_difference_95_times_in_100():
    generator = np.random.default_rng(8)
    inside = 0
    for _ in range(1000):
        result = difference_of_means(generator.normal(1, 1, size=5), generator.normal(0, 3, size=5))
        inside += result.low <= 1 <= result.high
    # The binomial error is 0.7 points; Welch's degrees of freedom are an approximation.
    assert 0.93 <= inside / 1000 <= 0.97


def test_a_side_of_one_run_leaves_the_difference_unbounded_and_equal_runs_leave_no_interval():
    alone = difference_of_means([3.0], [1.0, 2.0])
    assert (alone.difference, alone.low, alone.high, alone.n_a, alone.n_b) == (1.5, -math.inf, math.inf, 1, 2)
    equal = difference_of_means([3.0, 3.0], [1.0, 1.0, 1.0])
    assert (equal.low, equal.high) == (2.0, 2.0)
    one_sided = difference_of_means([3.0, 3.0], [1.0, 2.0, 3.0])
    # Spread on one side only: its own n - 1 = 2 degrees of freedom.
    assert one_sided.high - one_sided.difference == pytest.approx(stats.t.ppf(0.975, 2) / math.sqrt(3), rel=1e-6)
    assert (student_interval([5.0]).low, student_interval([5.0]).high) == (-math.inf, math.inf)


def test_not_worse_is_shown_by_the_lower_bound_and_by_nothing_else():
    generator = np.random.default_rng(0)
    a, b = generator.normal(400, 10, size=5), generator.normal(400, 10, size=5)
    result = difference_of_means(a, b)
    assert not_worse(result, -result.low + 1e-6)
    assert not not_worse(result, -result.low - 1e-6)
    assert not not_worse(difference_of_means([400.0], b), 1e9)
    with pytest.raises(ValueError, match="margin must be at least 0, in units of return, got -1"):
        not_worse(result, -1)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [([], [1.0], "a must be"), ([1.0], [[1.0]], "b must be"), ([1.0], [math.nan], "b must be finite")],
)
def test_samples_that_are_no_runs_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        difference_of_means(a, b)
