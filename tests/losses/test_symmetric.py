"""Reverse terms: the trained form has the published gradient, and stays exact where the published one does not."""

import math

import pytest
import torch

from scope_rlhf.losses import reverse_term, reverse_term_over_old, reverse_term_published

Z = -1.5


def test_the_reverse_term_equals_a_loop():
    log_probs, advantages = [-3.0, -0.7, -1e-3], [1.2, -0.4, 2.0]
    expected = [-a * Z * (1 - math.exp(x)) for x, a in zip(log_probs, advantages, strict=True)]
    value = reverse_term(torch.tensor(log_probs).double(), torch.tensor(advantages).double(), Z)
    torch.testing.assert_close(value, torch.tensor(expected).double())


def test_the_trained_term_is_the_published_value_up_to_a_constant_with_the_same_gradient():
    log_probs = torch.tensor([-3.0, -0.7, -0.05], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-2.5, -0.9, -0.1], dtype=torch.float64)
    advantages = torch.tensor([1.2, -0.4, 2.0], dtype=torch.float64)
    published = -advantages * Z * (1 - log_probs.exp()) / old.exp()
    trained = reverse_term_over_old((log_probs - old).exp(), advantages, Z)
    torch.testing.assert_close(trained - advantages * Z / old.exp(), published, rtol=1e-10, atol=1e-10)
    (expected,) = torch.autograd.grad(published.sum(), log_probs)
    (gradient,) = torch.autograd.grad(trained.sum(), log_probs)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-10)
    logged = reverse_term_published((log_probs - old).exp(), old, advantages, Z)
    torch.testing.assert_close(logged, published, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("log_prob", [math.log(1e-6), math.log(1e-8), -95.0])
def test_the_trained_gradient_is_exact_in_float32_where_the_published_form_fails(log_prob):
    old = torch.tensor([log_prob])
    log_probs = old.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reverse_term_over_old((log_probs - old).exp(), torch.ones(1), Z).sum(), log_probs)
    assert gradient.item() == pytest.approx(Z, rel=1e-6)  # A Z r, r = 1


def test_the_published_form_is_nan_in_float32_at_log_p_of_minus_95():
    """The reason for the trained form: if this stops failing, the form can be as published."""
    log_probs = torch.tensor([-95.0], requires_grad=True)
    value = (1 - log_probs.exp()) * (-log_probs.detach()).exp()
    assert not torch.autograd.grad(value.sum(), log_probs)[0].isfinite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_published_value_is_logged_finite(dtype):
    old = torch.tensor([-100.0, -1e-8], dtype=dtype)
    assert (
        reverse_term_published(torch.ones(2, dtype=dtype), old, torch.full((2,), 3.0, dtype=dtype), Z).isfinite().all()
    )
