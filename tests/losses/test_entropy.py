"""Entropy terms, at their limits and against loops."""

import math

import pytest
import torch

from scope_rlhf.losses import categorical_entropy, entropy_penalty, p_log_p


def test_p_log_p_equals_a_loop():
    log_probs = [-5.0, -1.0, -0.3, -1e-8]
    expected = torch.tensor([math.exp(x) * x for x in log_probs], dtype=torch.float64)
    torch.testing.assert_close(p_log_p(torch.tensor(log_probs).double()), expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_p_log_p_is_zero_with_gradient_zero_at_probability_zero(dtype):
    log_probs = torch.tensor([-torch.inf, -1.0], dtype=dtype, requires_grad=True)
    value = p_log_p(log_probs)
    (gradient,) = torch.autograd.grad(value.sum(), log_probs)
    assert value[0].item() == 0.0
    assert gradient[0].item() == 0.0
    assert gradient[1].abs().item() < 1e-6  # p (1 + log p) is 0 at p = 1/e
    assert value.dtype == gradient.dtype == dtype


def test_categorical_entropy_equals_torch_distributions():
    logits = torch.randn(2, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(categorical_entropy(logits), expected, rtol=1e-10, atol=1e-10)


def test_forbidden_actions_add_nothing_to_the_entropy_or_its_gradient():
    logits = torch.tensor([[0.3, -torch.inf, 1.2]], dtype=torch.float64, requires_grad=True)
    allowed = torch.tensor([[0.3, 1.2]], dtype=torch.float64, requires_grad=True)
    entropy = categorical_entropy(logits)
    torch.testing.assert_close(entropy, categorical_entropy(allowed), rtol=1e-10, atol=1e-10)
    (gradient,) = torch.autograd.grad(entropy.sum(), logits)
    (expected,) = torch.autograd.grad(categorical_entropy(allowed).sum(), allowed)
    torch.testing.assert_close(gradient[:, [0, 2]], expected, rtol=1e-10, atol=1e-10)
    assert gradient[0, 1].item() == 0.0


def test_the_entropy_penalty_gradient_is_probs_times_log_probs_plus_entropy():
    logits = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    entropy = categorical_entropy(logits)
    (gradient,) = torch.autograd.grad(entropy_penalty(entropy).sum(), logits)
    log_probs = logits.detach().log_softmax(-1)
    expected = log_probs.exp() * (log_probs + entropy.detach()[:, None])
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)
