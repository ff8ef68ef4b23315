"""Critic losses by name: decode errors, clipping, refusals, and the record that goes with saved weights."""

import math
import pickle

import pytest
import torch

from scope_rlhf.losses import distribution_entropy, masked_mean
from scope_rlhf.objectives import CRITICS, check_saved_critic, describe_critic, make_critic_loss

SUPPORT = {"v_min": -10.0, "v_max": 10.0, "bins": 51}
CATEGORICAL = ("hl_gauss", "two_hot", "c51")


def make(name):
    return make_critic_loss(name, **(SUPPORT if name in CATEGORICAL else {}))


def round_trip(critic, y):
    """The value decoded from a head that gives the target exactly."""
    y = torch.as_tensor(y, dtype=torch.float64)
    return critic.decode(critic.target(y).clamp(min=1e-300).log())


@pytest.mark.parametrize(
    ("distance", "error"), [(0, 0.690), (1, 0.155), (2, 9.6e-3), (3, 1.1e-4), (4, 4.8e-6), (20, 4.8e-6)]
)
def test_the_decode_error_of_hl_gauss_by_its_distance_from_the_edge_in_bins(distance, error):
    critic = make("hl_gauss")
    starts = torch.linspace(0, 1, 101, dtype=torch.float64) if distance >= 4 else torch.zeros(1, dtype=torch.float64)
    y = 10 - (distance + starts) * critic.width
    worst = ((round_trip(critic, y) - y).abs() / critic.width).max().item()
    assert worst == pytest.approx(error, rel=0.06)


def test_the_decode_error_of_hl_gauss_on_the_atari_support():
    critic = make("hl_gauss")
    ends = torch.tensor([-10.0, 10.0], dtype=torch.float64)
    assert (round_trip(critic, ends) - ends).abs().tolist() == pytest.approx([0.2706, 0.2706], abs=1e-4)
    inside = torch.linspace(-8.82, 8.82, 500, dtype=torch.float64)
    assert (round_trip(critic, inside) - inside).abs().max() <= 5e-5


def test_three_padding_bins_make_the_ends_of_the_data_range_exact():
    critic = make_critic_loss("hl_gauss", v_min=0.0, v_max=1.0, bins=51, padding_bins=3)
    assert critic.output_size == 51
    y = torch.linspace(0, 1, 301, dtype=torch.float64)
    assert (round_trip(critic, y) - y).abs().max() < 2.6e-6
    centres = critic.centres(dtype=torch.float64)
    assert centres[3].item() == pytest.approx(0.5 / 45)
    assert centres[47].item() == pytest.approx(1 - 0.5 / 45)


@pytest.mark.parametrize("name", ["two_hot", "c51"])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 5e-5), (torch.float64, 1e-12)])
def test_two_hot_recovers_the_return(name, dtype, error):
    y = torch.linspace(-10, 10, 1001, dtype=dtype)
    critic = make(name)
    assert (critic.target(y) @ critic.centres(dtype=dtype) - y).abs().max() < error


@pytest.mark.parametrize("name", CRITICS)
def test_values_and_losses_have_the_shape_of_the_decisions_and_only_the_loss_has_a_gradient(name):
    critic = make(name)
    for shape in [(3, 4), (5,)]:
        outputs = torch.randn(*shape, critic.output_size, requires_grad=True)
        returns = torch.randn(shape)
        loss = critic(outputs, returns)
        assert loss.per_decision.shape == loss.values.shape == shape
        assert loss.per_decision.requires_grad and not loss.values.requires_grad
        torch.testing.assert_close(loss.values, critic.decode(outputs).detach())
        assert all(v.shape == shape and not v.requires_grad for v in loss.stats.values())
        same = critic(outputs, target=critic.target(returns))
        assert torch.equal(same.per_decision, loss.per_decision)
        torch.testing.assert_close(loss.stats["squared_error"], (loss.values - returns).square())


@pytest.mark.parametrize("name", CRITICS)
def test_gradients_pass_gradcheck_and_stay_finite_under_a_mask(name):
    torch.manual_seed(0)
    critic = make_critic_loss(name, **({"v_min": -2.0, "v_max": 2.0, "bins": 7} if name in CATEGORICAL else {}))
    outputs = torch.randn(2, 3, critic.output_size, dtype=torch.float64, requires_grad=True)
    returns = torch.randn(2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: critic(x, returns).per_decision, outputs)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    loss = masked_mean(critic(outputs, returns).per_decision, mask)
    (gradient,) = torch.autograd.grad(loss, outputs)
    assert (gradient[mask == 0] == 0).all() and gradient[mask == 1].abs().sum() > 0


def test_mse_is_half_the_squared_error_and_its_clip_is_the_larger_of_two():
    plain = make_critic_loss("mse")
    outputs = torch.tensor([[1.0], [0.0], [2.0], [0.3]], requires_grad=True)
    returns = torch.tensor([3.0, 0.5, 0.0, 0.0])
    assert plain(outputs, returns).per_decision.tolist() == pytest.approx([2.0, 0.125, 2.0, 0.045])
    clipped = make_critic_loss("mse", cliprange_value=0.2)
    old = torch.tensor([0.0, 0.1, 1.0, 0.35])
    # clip(V): .2, 0, 1.2, .3; errors squared: 7.84 > 4, .25, 1.44 < 4, .09
    loss = clipped(outputs, returns, old_values=old)
    assert loss.per_decision.tolist() == pytest.approx([3.92, 0.125, 2.0, 0.045])
    assert loss.stats["clip_fraction"].tolist() == [1.0, 0.0, 0.0, 0.0]
    (gradient,) = torch.autograd.grad(loss.per_decision.sum(), outputs)
    assert gradient.squeeze(-1).tolist() == pytest.approx([0.0, -0.5, 2.0, 0.3])
    with pytest.raises(ValueError, match="needs old_values"):
        clipped(outputs, returns)


@pytest.mark.parametrize("name", CATEGORICAL)
def test_returns_outside_the_support_are_clamped_and_counted(name):
    critic = make(name)
    returns = torch.tensor([-11.0, 0.0, 10.0, 12.0])
    loss = critic(torch.zeros(4, 51), returns)
    assert loss.stats["out_of_range"].tolist() == [1.0, 0.0, 0.0, 1.0]
    assert torch.equal(critic.target(returns), critic.target(returns.clamp(-10, 10)))


@pytest.mark.parametrize("name", CATEGORICAL)
def test_a_head_of_zeros_starts_at_mid_support_and_a_perfect_one_at_the_floor(name):
    critic = make_critic_loss(name, v_min=-1.0, v_max=3.0, bins=21)
    returns = torch.linspace(-0.5, 2.5, 4)
    start = critic(torch.zeros(4, 21), returns)
    torch.testing.assert_close(start.values, torch.ones(4), rtol=0, atol=1e-5)
    floor = distribution_entropy(critic.target(returns))
    torch.testing.assert_close(start.per_decision, torch.full((4,), math.log(21)))
    torch.testing.assert_close(start.stats["above_floor"], math.log(21) - floor)
    perfect = critic(critic.target(returns).clamp(min=1e-37).log(), returns)
    assert perfect.stats["above_floor"].abs().max() < 1e-5


def test_c51_projects_the_next_distribution_and_a_discount_of_0_ends_the_episode():
    critic = make_critic_loss("c51", v_min=-2.0, v_max=2.0, bins=9)
    torch.manual_seed(0)
    outputs = torch.randn(3, 9, dtype=torch.float64)
    rewards = torch.tensor([0.3, -0.2, 0.7], dtype=torch.float64)
    discounts = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    target = critic.project(rewards, discounts, outputs)
    mean = target @ critic.centres(dtype=torch.float64)
    torch.testing.assert_close(mean, rewards + discounts * critic.decode(outputs))
    torch.testing.assert_close(target[2], critic.target(rewards)[2])
    assert not target.requires_grad
    with pytest.raises(ValueError, match="do not fit"):
        critic.project(rewards, discounts[:2], outputs)


def test_infinite_returns_and_targets_that_are_no_numbers_raise():
    with pytest.raises(ValueError, match="1 of 2 returns are NaN or infinite"):
        make_critic_loss("mse").target(torch.tensor([0.0, math.inf]))
    critic = make("hl_gauss")
    target = critic.target(torch.zeros(3))
    target[1, 4] = math.nan
    with pytest.raises(ValueError, match="1 of 153 entries of target are NaN or infinite"):
        critic(torch.zeros(3, 51), target=target)


@pytest.mark.parametrize("name", CRITICS)
def test_nan_returns_raise(name):
    critic = make(name)
    with pytest.raises(ValueError, match="1 of 3 returns are NaN or infinite"):
        critic(torch.zeros(3, critic.output_size), torch.tensor([0.0, math.nan, 1.0]))


@pytest.mark.parametrize("name", CRITICS)
def test_half_precision_heads_are_trained_in_float32(name):
    critic = make(name)
    loss = critic(torch.zeros(3, critic.output_size, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.bfloat16))
    assert loss.per_decision.dtype == loss.values.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("hlgauss", {}, "unknown critic 'hlgauss', did you mean 'hl_gauss'?"),
        ("hl_gauss", {}, "needs v_min and v_max"),
        ("hl_gauss", {**SUPPORT, "v_max": -10.0}, "v_min must be below v_max, got v_min=-10.0 and v_max=-10.0"),
        ("two_hot", {**SUPPORT, "v_min": math.inf}, "v_min must be a finite number, got inf"),
        ("two_hot", {**SUPPORT, "sigma_ratio": 1.0}, "has no parameter 'sigma_ratio'; valid: v_min, v_max, bins"),
        ("hl_gauss", {**SUPPORT, "sigma_ratio": 0}, "sigma_ratio must be a number > 0, got 0"),
        ("c51", {**SUPPORT, "bins": 1}, "bins must be a whole number >= 2, got 1"),
        ("c51", {**SUPPORT, "bins": 51.0}, "bins must be a whole number >= 2, got 51.0"),
        ("hl_gauss", {**SUPPORT, "bins": 7, "padding_bins": 3}, "leave 1 for the data"),
        ("mse", {"cliprange_value": 0}, "cliprange_value must be a number > 0 or None, got 0"),
        ("mse", {"v_min": 0}, "has no parameter 'v_min'; valid: cliprange_value"),
    ],
)
def test_bad_settings_are_refused_by_name(name, kwargs, message):
    with pytest.raises(ValueError) as error:
        make_critic_loss(name, **kwargs)
    assert message in str(error.value)


def test_shapes_that_would_broadcast_are_refused():
    critic = make("hl_gauss")
    with pytest.raises(ValueError, match=r"outputs have shape \(3, 50\)"):
        critic(torch.zeros(3, 50), torch.zeros(3))
    with pytest.raises(ValueError, match=r"returns have shape \(1,\), expected \(3,\)"):
        critic(torch.zeros(3, 51), torch.zeros(1))
    with pytest.raises(ValueError, match="one of the two"):
        critic(torch.zeros(3, 51))
    with pytest.raises(ValueError, match=r"target has shape \(51,\)"):
        critic(torch.zeros(3, 51), target=torch.zeros(51))
    with pytest.raises(ValueError, match=r"MSECritic: target has shape \(4,\), expected \(3,\)"):
        make("mse")(torch.zeros(3, 1), target=torch.zeros(4))
    for each, width in ((make_critic_loss("mse", cliprange_value=0.2), 1), (critic, 51)):
        with pytest.raises(ValueError, match=r"old_values have shape \(1,\), expected \(3,\)"):
            each(torch.zeros(3, width), torch.zeros(3), old_values=torch.zeros(1))


@pytest.mark.parametrize("name", CRITICS)
def test_the_record_makes_the_critic_again_and_it_pickles(name):
    critic = make(name)
    record = describe_critic(critic)
    assert make_critic_loss(record["name"], **record["parameters"]) == critic
    assert pickle.loads(pickle.dumps(critic)) == critic
    check_saved_critic(record, critic, "here")


def test_weights_of_another_support_are_refused_naming_what_differs():
    saved = describe_critic(make("hl_gauss"))
    with pytest.raises(ValueError, match=r"run/critic .*v_max was 10.0, is 5.0"):
        check_saved_critic(saved, make_critic_loss("hl_gauss", **{**SUPPORT, "v_max": 5.0}), "run/critic")
    with pytest.raises(ValueError, match="critic was 'hl_gauss', is 'mse'"):
        check_saved_critic(saved, make("mse"), "run/critic")
    check_saved_critic(describe_critic(make("mse")), make_critic_loss("mse", cliprange_value=0.2), "run/critic")
