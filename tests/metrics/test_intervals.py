import math

import numpy as np
import pytest
from scipy import stats

from scope_rlhf.metrics import mean_interval, paired_interval, wilson_interval


@pytest.fixture
def scores() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(7)
    before = generator.lognormal(sigma=0.8, size=60)
    return before, before + generator.exponential(0.5, size=60) - 0.1


def test_paired_interval_equals_scipys_bca_on_the_differences(scores):
    before, after = scores
    mine = paired_interval(before, after, resamples=50_000)
    peer = stats.bootstrap((after - before,), np.mean, n_resamples=50_000, method="BCa", rng=1).confidence_interval
    # Two independent draws of 50,000: the bounds agree to about 1 % of the width.
    width = peer.high - peer.low
    assert mine.low == pytest.approx(peer.low, abs=0.02 * width)
    assert mine.high == pytest.approx(peer.high, abs=0.02 * width)
    assert mine.difference == pytest.approx(after.mean() - before.mean(), rel=1e-12)
    assert (mine.before, mine.after, mine.n) == (pytest.approx(before.mean()), pytest.approx(after.mean()), 60)


def test_weighted_and_transformed_interval_equals_scipys_bca_on_perplexity(scores):
    before, after = (np.log1p(np.abs(side)) for side in scores)
    tokens = np.random.default_rng(3).integers(5, 40, size=(2, 60)).astype(float)

    def perplexity_difference(x, w, y, v, axis=-1):
        return np.exp((y * v).sum(axis) / v.sum(axis)) - np.exp((x * w).sum(axis) / w.sum(axis))

    mine = paired_interval(
        before, after, resamples=40_000, before_weights=tokens[0], after_weights=tokens[1], transform=np.exp
    )
    peer = stats.bootstrap(
        (before, tokens[0], after, tokens[1]),
        perplexity_difference,
        n_resamples=40_000,
        method="BCa",
        paired=True,
        rng=1,
    ).confidence_interval
    width = peer.high - peer.low
    assert mine.low == pytest.approx(peer.low, abs=0.03 * width)
    assert mine.high == pytest.approx(peer.high, abs=0.03 * width)
    assert mine.difference == pytest.approx(perplexity_difference(before, tokens[0], after, tokens[1]), rel=1e-12)


def test_95_percent_interval_covers_a_skewed_mean_about_95_percent_of_the_time():
    generator = np.random.default_rng(0)
    inside = 0
    for trial in range(400):
        result = mean_interval(generator.exponential(size=50), resamples=1000, seed=trial)
        inside += result.low <= 1.0 <= result.high
    # Binomial error of 400 trials is 1.1 points; n = 50 of an exponential costs the bootstrap one or two more.
    assert 0.90 <= inside / 400 <= 0.98


def test_95_percent_interval_of_a_paired_difference_covers_it_90_to_97_times_in_100():
    generator = np.random.default_rng(5)
    inside = 0
    for trial in range(400):
        prompt = generator.normal(scale=3.0, size=80)
        after = prompt + generator.exponential(0.7, size=80)  # a skewed gain of .7
        result = paired_interval(prompt + generator.normal(size=80), after, resamples=500, seed=trial)
        inside += result.low <= 0.7 <= result.high
    assert 0.90 <= inside / 400 <= 0.97


def test_pairing_narrows_the_interval_when_prompts_differ_more_than_the_models_do():
    generator = np.random.default_rng(1)
    prompt = generator.normal(scale=5.0, size=200)
    before, after = prompt + generator.normal(size=200), prompt + 0.5 + generator.normal(size=200)
    paired = paired_interval(before, after)
    shuffled = paired_interval(before, generator.permutation(after))
    assert paired.high - paired.low < 0.35 * (shuffled.high - shuffled.low)
    assert paired.low > 0


def test_one_prompt_has_a_difference_and_an_unbounded_interval():
    result = paired_interval([0.25], [0.75])
    assert (result.before, result.after, result.difference, result.n) == (0.25, 0.75, 0.5, 1)
    assert (result.low, result.high) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("before", "after"), [([0.1] * 30, [0.7] * 30), (list(range(30)), [x + 0.6 for x in range(30)])]
)
def test_equal_differences_give_an_interval_of_zero_width(before, after):
    result = paired_interval(before, after)
    assert result.low == pytest.approx(0.6)
    assert result.high == pytest.approx(0.6)


def test_same_seed_gives_the_same_interval_and_memory_chunks_do_not_change_it(scores, monkeypatch):
    first = paired_interval(*scores, seed=5)
    monkeypatch.setattr("scope_rlhf.metrics.intervals._DRAWS", 60 * 1000)
    assert paired_interval(*scores, seed=5) == first
    assert paired_interval(*scores, seed=6) != first


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ([1.0], [1.0, 2.0], "1 and 2"),
        ([], [], "at least one"),
        ([1.0, math.nan], [1.0, 1.0], "value 1 of 2 is nan"),
        ([[1.0]], [[1.0]], "shape"),
    ],
)
def test_values_that_cannot_be_paired_are_refused(before, after, message):
    with pytest.raises(ValueError, match=message):
        paired_interval(before, after)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="confidence"):
        paired_interval([1.0, 2.0], [1.0, 2.0], confidence=95)
    with pytest.raises(ValueError, match="resamples"):
        mean_interval([1.0, 2.0], resamples=0)
    with pytest.raises(ValueError, match="positive"):
        paired_interval([1.0, 2.0], [1.0, 2.0], before_weights=[0.0, 1.0])


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (3, 10), (50, 100), (481, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_interval_equals_scipys(successes, n, confidence):
    peer = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    mine = wilson_interval(successes, n, confidence)
    assert (mine.low, mine.high) == pytest.approx((peer.low, peer.high), abs=1e-12)
    assert mine.value == successes / n


@pytest.mark.parametrize(("successes", "n"), [(-1, 10), (11, 10), (0, 0), (2.5, 10)])
def test_wilson_refuses_what_is_not_a_proportion(successes, n):
    with pytest.raises(ValueError, match="whole number"):
        wilson_interval(successes, n)


def test_tensors_are_taken_as_they_are():
    torch = pytest.importorskip("torch")
    assert mean_interval(torch.tensor([1.0, 2.0, 3.0])).value == 2.0
