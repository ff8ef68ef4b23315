"""The scope term: where it pushes, how hard, and what its ablations keep."""

import math

import pytest
import torch

from scope_rlhf.losses import scope_term, scope_term_detached, scope_term_weighted


def gradient(term, log_prob: float) -> float:
    x = torch.tensor([log_prob], dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(term(x).sum(), x)[0].item()


def test_the_scope_term_changes_sign_at_one_over_e_exactly():
    assert gradient(scope_term, -1.0) == 0.0
    assert gradient(scope_term, -1.0 - 1e-9) < 0  # minimised: a negative gradient pushes up
    assert gradient(scope_term, -1.0 + 1e-9) > 0


def test_the_logit_push_is_extreme_at_the_two_known_probabilities():
    # push on the action's own logit: -p (1 + log p)(1 - p)
    probs = torch.linspace(1e-4, 1 - 1e-4, 200_001, dtype=torch.float64)
    x = probs.log().requires_grad_()
    (g,) = torch.autograd.grad(scope_term(x).sum(), x)
    push = -g * (1 - probs)
    assert push.max().item() == pytest.approx(0.1184, abs=5e-5)
    assert probs[push.argmax()].item() == pytest.approx(0.1163, abs=5e-5)
    assert push.min().item() == pytest.approx(-0.1354, abs=5e-5)
    assert probs[push.argmin()].item() == pytest.approx(0.7147, abs=5e-5)


def test_the_detached_term_keeps_the_value_and_has_gradient_p():
    log_probs = torch.tensor([-4.0, -1.0, -0.1], dtype=torch.float64, requires_grad=True)
    assert torch.equal(scope_term_detached(log_probs), scope_term(log_probs))
    (g,) = torch.autograd.grad(scope_term_detached(log_probs).sum(), log_probs)
    torch.testing.assert_close(g, log_probs.detach().exp(), rtol=1e-10, atol=1e-10)


def test_the_detached_term_is_zero_with_a_finite_gradient_at_probability_zero():
    x = torch.tensor([-torch.inf], requires_grad=True)
    value = scope_term_detached(x)
    assert value.item() == 0.0
    assert torch.autograd.grad(value.sum(), x)[0].item() == 0.0


def test_the_weighted_term_is_in_expectation_the_gradient_of_the_negative_entropy():
    logits = torch.tensor([0.2, -1.0, 1.5, 0.1], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    log_probs = logits.log_softmax(-1)
    expected_term = (old * scope_term_weighted(log_probs, (log_probs - old.log()).exp())).sum()
    (g,) = torch.autograd.grad(expected_term, logits)
    log_probs = logits.log_softmax(-1)
    (negative_entropy,) = torch.autograd.grad((log_probs.exp() * log_probs).sum(), logits)
    torch.testing.assert_close(g, negative_entropy, rtol=1e-10, atol=1e-10)


def test_scope_values_equal_a_loop():
    log_probs = [-9.0, -2.0, -1.0, -0.01]
    expected = torch.tensor([math.exp(x) * x for x in log_probs], dtype=torch.float64)
    torch.testing.assert_close(
        scope_term(torch.tensor(log_probs, dtype=torch.float64)), expected, rtol=1e-10, atol=1e-10
    )
