"""Focal losses against loops, and finite at probability one."""

import math

import pytest
import torch

from scope_rlhf.losses import focal_actor_critic, focal_factor, focal_ppo, focal_sign_preserving

LOG_PROBS = [-4.0, -1.2, -0.5, -0.02]
ADVANTAGES = [-1.5, 0.4, 1.0, 2.0]


def tensors():
    return torch.tensor(LOG_PROBS, dtype=torch.float64), torch.tensor(ADVANTAGES, dtype=torch.float64)


@pytest.mark.parametrize("gamma", [0, 1, 2, 3])
def test_focal_actor_critic_equals_a_loop(gamma):
    expected = [-((a - 0.7 * math.exp(x)) ** gamma) * x for x, a in zip(LOG_PROBS, ADVANTAGES, strict=True)]
    torch.testing.assert_close(focal_actor_critic(*tensors(), 0.7, gamma), torch.tensor(expected).double())


def test_focal_ppo_is_the_square_of_the_actor_critic_form_with_a_log_p_put_for_the_surrogate():
    log_probs, advantages = tensors()
    expected = focal_actor_critic(log_probs, advantages, 0.7, 2.0)
    torch.testing.assert_close(
        focal_ppo(log_probs, advantages, advantages * log_probs, 0.7), expected, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.5])
def test_focal_sign_preserving_equals_a_loop(gamma):
    log_probs, surrogate = tensors()
    expected = [-s * (1 - 0.7 * math.exp(x)) ** gamma for x, s in zip(LOG_PROBS, ADVANTAGES, strict=True)]
    torch.testing.assert_close(focal_sign_preserving(log_probs, surrogate, 0.7, gamma), torch.tensor(expected).double())


def test_the_focal_factor_does_not_cancel_as_p_approaches_one():
    # 1 - exp(-1e-8) is 0 in float32 when formed by subtraction
    assert focal_factor(torch.tensor([-1e-8]), 1.0, 1.0).item() == pytest.approx(1e-8, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.25, 0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_supervised_focal_loss_and_its_gradient_are_finite_at_probability_one(gamma, dtype):
    log_probs = torch.tensor([0.0, -1e-8, -100.0], dtype=dtype, requires_grad=True)
    loss = focal_sign_preserving(log_probs, log_probs, 1.0, gamma)
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
