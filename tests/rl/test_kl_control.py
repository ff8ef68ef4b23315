"""The KL coefficient: fixed, adaptive, its limits and its checkpoint."""

import math

import pytest

from scope_rlhf.rl import AdaptiveKLController, FixedKLController


def test_the_fixed_coefficient_stays():
    control = FixedKLController(0.05)
    control.update(1e6, 64)
    assert control.kl_coef == 0.05


def test_the_adaptive_coefficient_moves_by_the_clipped_error_and_the_share_of_the_horizon():
    control = AdaptiveKLController(0.2, target=6.0, horizon=10_000)
    control.update(6.6, 500)
    assert control.kl_coef == pytest.approx(0.2 * (1 + 0.1 * 0.05))
    before = control.kl_coef
    control.update(600.0, 500)
    assert control.kl_coef == pytest.approx(before * (1 + 0.2 * 0.05))
    before = control.kl_coef
    control.update(-3.0, 500)
    assert control.kl_coef == pytest.approx(before * (1 - 0.2 * 0.05))


def test_a_batch_longer_than_the_horizon_cannot_turn_the_sign():
    control = AdaptiveKLController(0.2, target=6.0, horizon=10)
    for _ in range(50):
        control.update(0.0, 1000)
    assert control.kl_coef > 0


def test_the_adaptive_coefficient_holds_a_simple_process_at_its_target():
    """KL that falls with the coefficient: 2 / coefficient."""
    control = AdaptiveKLController(0.05, target=8.0, horizon=2000)
    for _ in range(500):
        control.update(2 / control.kl_coef, 100)
    assert 2 / control.kl_coef == pytest.approx(8.0, rel=0.02)


def test_the_state_goes_on_where_it_was():
    control = AdaptiveKLController(0.2, target=6.0, horizon=100)
    control.update(20.0, 64)
    other = AdaptiveKLController(0.2, target=6.0, horizon=100)
    other.load_state_dict(control.state_dict())
    assert other.kl_coef == control.kl_coef != 0.2


def test_a_rollout_without_a_finite_kl_moves_nothing():
    control = AdaptiveKLController(0.2, target=6.0, horizon=100)
    control.update(math.nan, 64)
    control.update(math.inf, 64)
    assert control.kl_coef == 0.2


def test_a_fixed_coefficient_is_the_one_that_is_set_also_after_a_resume():
    control = FixedKLController(0.5)
    control.load_state_dict(FixedKLController(0.05).state_dict())
    assert control.kl_coef == 0.5


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_coefficient_that_is_no_number_from_0_up_is_refused(value):
    with pytest.raises(ValueError, match="kl_coef must be a number >= 0"):
        FixedKLController(value)


@pytest.mark.parametrize("change", [{"kl_coef": 0.0}, {"target": 0.0}, {"horizon": 0}])
def test_the_adaptive_coefficient_needs_positive_settings(change):
    with pytest.raises(ValueError, match="must be positive"):
        AdaptiveKLController(**{"kl_coef": 0.1, "target": 6.0, "horizon": 100, **change})
