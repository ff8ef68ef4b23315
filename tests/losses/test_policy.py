"""Policy terms against loops and cross-entropy."""

import math

import pytest
import torch

from scope_rlhf.losses import (
    approx_kl,
    bounded_exp,
    bounded_ratio,
    clip_mask,
    clipped_surrogate,
    policy_gradient,
    ppo_clip,
)

RATIOS = torch.tensor([0.1, 0.79, 0.8, 0.81, 1.0, 1.29, 1.3, 1.31, 4.0], dtype=torch.float64)
ADVANTAGES = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], dtype=torch.float64)


def grid():
    ratio, advantages = torch.meshgrid(RATIOS, ADVANTAGES, indexing="ij")
    return ratio.flatten(), advantages.flatten()


def test_policy_gradient_with_advantages_of_one_is_cross_entropy():
    logits = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 4, 2, 2, 1, 3])
    log_probs = logits.log_softmax(-1).gather(1, labels[:, None]).squeeze(1)
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(policy_gradient(log_probs, torch.ones(6).double()), expected, rtol=1e-10, atol=1e-10)


def test_ppo_clip_equals_a_loop_over_decisions():
    ratio, advantages = grid()
    expected = [
        -min(r * a, min(max(r, 0.8), 1.3) * a) for r, a in zip(ratio.tolist(), advantages.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        ppo_clip(ratio, advantages, 0.2, 0.3), torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-10
    )


def test_the_clip_mask_is_false_only_where_the_advantage_pushes_further_out():
    ratio, advantages = grid()
    expected = [
        not ((a > 0 and r > 1.3) or (a < 0 and r < 0.8))
        for r, a in zip(ratio.tolist(), advantages.tolist(), strict=True)
    ]
    assert clip_mask(ratio, advantages, 0.2, 0.3).tolist() == expected
    assert not all(expected)


def test_the_surrogate_has_a_gradient_exactly_where_the_clip_mask_is_true():
    ratio, advantages = grid()
    ratio.requires_grad_()
    (gradient,) = torch.autograd.grad(clipped_surrogate(ratio, advantages, 0.2, 0.3).sum(), ratio)
    mask = clip_mask(ratio, advantages, 0.2, 0.3)
    assert torch.equal(gradient, torch.where(mask, advantages, 0.0))


def test_approx_kl_is_k3_and_zero_only_at_a_ratio_of_one():
    ratio = RATIOS
    torch.testing.assert_close(approx_kl(ratio.log()), ratio - 1 - ratio.log(), rtol=1e-10, atol=1e-10)
    assert (approx_kl(ratio.log())[ratio != 1] > 0).all()
    assert approx_kl(torch.zeros(1)).item() == 0.0


def test_approx_kl_does_not_cancel_near_a_ratio_of_one():
    # x^2 / 2 + O(x^3); exp(x) - 1 - x in float32 is 0 or 1e-7 here
    assert approx_kl(torch.tensor([1e-4])).item() == pytest.approx(5e-9, rel=0.02)


def test_approx_kl_averages_to_the_divergence_over_the_behaviour_policy():
    old = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    new = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    expected = sum(o * math.log(o / n) for o, n in zip(old.tolist(), new.tolist(), strict=True))
    assert (old * approx_kl((new / old).log())).sum().item() == pytest.approx(expected, abs=1e-12)


def test_bounded_exp_is_exact_below_80_and_finite_with_a_zero_gradient_above():
    exponent = torch.tensor([-200.0, 0.5, 79.0, 100.0, 1e30], requires_grad=True)
    value = bounded_exp(exponent)
    torch.testing.assert_close(value[:3], exponent[:3].exp())
    assert value.isfinite().all()
    (gradient,) = torch.autograd.grad(value.sum(), exponent)
    assert gradient[3:].tolist() == [0.0, 0.0]


def test_the_ratio_is_exact_below_60_and_finite_with_a_zero_gradient_above():
    log_ratio = torch.tensor([-200.0, 0.5, 59.0, 61.0, 1e30], requires_grad=True)
    ratio = bounded_ratio(log_ratio)
    torch.testing.assert_close(ratio[:3], log_ratio[:3].exp())
    assert ratio.isfinite().all()
    (gradient,) = torch.autograd.grad(ratio.sum(), log_ratio)
    torch.testing.assert_close(gradient[:3], log_ratio[:3].exp())
    assert gradient[3:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_clipped_decision_has_gradient_zero_at_a_ratio_that_overflows(dtype):
    log_ratio = torch.tensor([100.0], dtype=dtype, requires_grad=True)
    loss = ppo_clip(bounded_ratio(log_ratio), torch.ones(1, dtype=dtype), 0.2, 0.2)
    (gradient,) = torch.autograd.grad(loss.sum(), log_ratio)
    assert gradient.item() == 0.0
