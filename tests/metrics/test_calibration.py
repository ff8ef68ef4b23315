"""Agreement of a scorer with preferences, against counts by hand and simulations with a known answer."""

import itertools

import numpy as np
import pytest

from scope_rlhf.metrics import accuracy_by_kind, calibration_bins, calibration_error, preference_accuracy


def test_accuracy_is_the_share_of_positive_margins_and_a_margin_of_zero_is_no_agreement():
    accuracy = preference_accuracy([0.5, 2.0, 0.0, -1.0, 3.0])
    assert (accuracy.value, accuracy.n) == (0.6, 5)
    # Wilson, z = 1.959964: centre (.6 + z^2/10) / (1 + z^2/5), half width z sqrt(.24/5 + z^2/100) / (1 + z^2/5).
    assert (accuracy.low, accuracy.high) == (pytest.approx(0.230724, abs=1e-6), pytest.approx(0.882379, abs=1e-6))


def test_each_kind_has_its_own_accuracy_in_order_of_appearance():
    found = accuracy_by_kind([1, -1, 1, 1, -2], ["shuffled", "another", "shuffled", "another", "another"])
    assert list(found) == ["shuffled", "another"]
    assert (found["shuffled"].value, found["shuffled"].n) == (1.0, 2)
    assert (found["another"].value, found["another"].n) == (pytest.approx(1 / 3), 3)


def test_bins_hold_equally_many_pairs_in_order_of_the_size_of_the_margin():
    margins = np.random.default_rng(0).normal(size=800)
    bins = calibration_bins(margins, 8)
    assert [b.agreement.n for b in bins] == [100] * 8
    size = np.sort(np.abs(margins))
    for number, b in enumerate(bins):
        inside = size[100 * number : 100 * (number + 1)]
        assert b.low <= inside[0] and inside[-1] <= b.high
        assert b.margin == pytest.approx(inside.mean())
        assert b.expected == pytest.approx((1 / (1 + np.exp(-inside))).mean())
    assert all(one.high == other.low for one, other in itertools.pairwise(bins))


def test_agreement_of_a_bin_is_counted_by_hand():
    margins = [0.1, -0.2, 0.3, 0.2, 3.0, 2.0, -4.0, 5.0]
    small, large = calibration_bins(margins, 2)
    assert (small.agreement.value, large.agreement.value) == (0.75, 0.75)
    error = (abs(0.75 - small.expected) + abs(0.75 - large.expected)) / 2
    assert calibration_error(margins, 2) == pytest.approx(error, abs=1e-12)


def bradley_terry(scale, n=20_000, seed=0):
    """Margins as the scorer gives them, `scale` times the true ones: chosen is what wins with chance sigmoid(true)."""
    generator = np.random.default_rng(seed)
    true = generator.normal(0, 1.5, n)
    wins = generator.random(n) < 1 / (1 + np.exp(-true))
    return scale * np.where(wins, true, -true)


def test_pairs_of_a_calibrated_bradley_terry_model_have_a_small_error_and_each_bin_covers_its_promise():
    margins = bradley_terry(1.0)
    # A bin of 2,500 pairs errs by 1 point at most by chance (standard error), on average by 0.8 of that.
    assert calibration_error(margins) < 0.015
    covered = [b.agreement.low <= b.expected <= b.agreement.high for b in calibration_bins(margins)]
    assert sum(covered) >= 7


@pytest.mark.parametrize(("scale", "sign"), [(3.0, 1), (1 / 3, -1)])
def test_an_overconfident_scorer_promises_too_much_and_a_timid_one_too_little(scale, sign):
    margins = bradley_terry(scale)
    assert calibration_error(margins) > 0.08
    beyond = [sign * (b.expected - b.agreement.value) for b in calibration_bins(margins)]
    assert min(beyond[1:]) > 0.02  # near margin 0 both are one half
    assert preference_accuracy(margins).value == preference_accuracy(bradley_terry(1.0)).value


def test_repeated_margins_make_fewer_bins_and_lose_no_pair():
    bins = calibration_bins([1.0] * 5 + [-1.0] * 3, 8)
    assert len(bins) == 1 and bins[0].agreement.n == 8 and bins[0].agreement.value == 5 / 8
    assert sum(b.agreement.n for b in calibration_bins([0, 0, 0, 0, 0, 1, 2, -3], 4)) == 8


def test_huge_margins_stay_finite():
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        assert calibration_error([1e6, -1e6, 800.0, 900.0]) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: preference_accuracy([]), "at least one"),
        (lambda: preference_accuracy([float("nan")]), "must be finite"),
        (lambda: accuracy_by_kind([1.0], ["a", "b"]), "hold 1 and 2 values"),
        (lambda: calibration_bins([1.0], 0), "bins must be at least 1, got 0"),
    ],
)
def test_bad_input_says_what_was_given(call, message):
    with pytest.raises(ValueError, match=message):
        call()
