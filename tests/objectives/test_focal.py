"""Focal losses: each form's gradient, the sign they lose or keep, and the gammas they refuse."""

import pytest
import torch

from scope_rlhf.objectives import PPO, Focal, PolicyInputs

ALPHA = 0.6


def test_gamma_two_has_g_of_the_table(decisions):
    d = decisions
    base = d.A - ALPHA * d.p
    d.check(Focal(alpha=ALPHA), 2 * ALPHA * d.p * base * d.p.log() - base**2, old=False)


@pytest.mark.parametrize("gamma", [0, 1, 3, 4])
def test_whole_gammas_have_g_of_the_general_form(decisions, gamma):
    d = decisions
    base = d.A - ALPHA * d.p
    slope = gamma * ALPHA * d.p * base ** (gamma - 1) * d.p.log() if gamma else 0.0
    d.check(Focal(alpha=ALPHA, gamma=gamma), slope - base**gamma, old=False)


def test_eq_14_has_g_of_the_table(decisions, clips):
    d = decisions
    g = -d.m * d.r * d.A**2 + 2 * ALPHA * d.p * (d.m * d.r * d.A + d.s) - ALPHA**2 * d.p**2 * (1 + 2 * d.p.log())
    d.check(Focal(**clips, alpha=ALPHA), g, old=True)


def test_eq_14_values_equal_the_formula(decisions, clips):
    d = decisions
    expected = -d.s * d.A + 2 * ALPHA * d.s * d.p - ALPHA**2 * d.p**2 * d.p.log()
    result = d.evaluate(Focal(**clips, alpha=ALPHA), old=True)
    torch.testing.assert_close(result.per_decision, expected, rtol=0, atol=1e-10)
    plain = -d.s * d.A
    torch.testing.assert_close(result.stats["focal_magnitude"], (expected - plain).abs(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 2.5])
def test_the_sign_preserving_forms_have_g_of_the_product_rule(decisions, clips, gamma):
    d = decisions
    factor = (1 - ALPHA * d.p) ** gamma
    slope = gamma * ALPHA * d.p * (1 - ALPHA * d.p) ** (gamma - 1)
    objective = Focal(**clips, alpha=ALPHA, gamma=gamma, sign_preserving=True)
    d.check(objective, d.A * (slope * d.p.log() - factor), old=False)
    d.check(objective, d.s * slope - d.m * d.r * d.A * factor, old=True)


def test_sign_preserving_with_gamma_zero_is_the_policy_gradient_and_ppo(decisions, clips):
    for old in (False, True):
        focal = decisions.evaluate(Focal(**clips, gamma=0.0, sign_preserving=True), old=old)
        ppo = decisions.evaluate(PPO(**clips), old=old)
        torch.testing.assert_close(focal.per_decision, ppo.per_decision, rtol=0, atol=1e-10)
        torch.testing.assert_close(focal.gradient, ppo.gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sign_preserving", [False, True])
def test_with_advantages_of_one_and_gamma_zero_it_is_cross_entropy(decisions, sign_preserving):
    expected = torch.nn.functional.cross_entropy(decisions.logits, decisions.actions, reduction="none")
    objective = Focal(gamma=0.0, sign_preserving=sign_preserving)
    result = decisions.evaluate(objective, old=False, advantages=torch.ones_like(decisions.A))
    torch.testing.assert_close(result.per_decision, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("gamma", [1.0, 2.0, 3.0])
def test_for_advantages_of_one_both_forms_are_the_focal_loss(decisions, gamma):
    ones = torch.ones_like(decisions.A)
    published, kept = (
        decisions.evaluate(Focal(gamma=gamma, sign_preserving=keep), old=False, advantages=ones)
        for keep in (False, True)
    )
    expected = -((1 - decisions.p) ** gamma) * decisions.p.log()
    torch.testing.assert_close(published.per_decision, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(kept.per_decision, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(kept.gradient, published.gradient, rtol=0, atol=1e-10)


def test_as_published_it_pushes_every_action_of_negative_advantage_up_and_sign_preserving_pushes_it_down(decisions):
    d = decisions
    negative = d.A < -1
    own = d.onehot[negative].bool()
    published = d.evaluate(Focal(alpha=ALPHA), old=False)
    kept = d.evaluate(Focal(alpha=ALPHA, sign_preserving=True), old=False)
    assert (published.stats["factor_sign_flip"][negative] == 1).all()
    assert (published.gradient[negative][own] < 0).all()  # minimised: a negative gradient pushes up
    assert (kept.gradient[negative][own] > 0).all()
    assert (kept.stats["factor_sign_flip"] == 0).all()


def test_policy_coef_multiplies_the_whole_loss(decisions, clips):
    for old in (False, True):
        plain = decisions.evaluate(Focal(**clips), old=old)
        scaled = decisions.evaluate(Focal(**clips, policy_coef=1.7), old=old)
        for name in ("focal_magnitude", "advantage_factor"):
            torch.testing.assert_close(scaled.stats[name], 1.7 * plain.stats[name])
        torch.testing.assert_close(scaled.gradient, 1.7 * plain.gradient)


@pytest.mark.parametrize("sign_preserving", [False, True])
def test_a_gamma_that_could_be_nan_is_refused_at_construction(sign_preserving):
    with pytest.raises(ValueError, match="expected a whole gamma or alpha <= 1"):
        Focal(gamma=1.5, alpha=1.01, sign_preserving=sign_preserving)


@pytest.mark.parametrize("gamma", [0.5, 1.5])
def test_a_gamma_that_is_not_whole_is_the_supervised_focal_loss(gamma):
    log_probs = torch.tensor([-3.0, -0.4, -1e-8], dtype=torch.float64, requires_grad=True)
    loss = Focal(gamma=gamma)(PolicyInputs(log_probs, torch.ones_like(log_probs))).per_decision
    torch.testing.assert_close(loss, -((1 - log_probs.exp()) ** gamma) * log_probs)
    loss.sum().backward()
    assert log_probs.grad is not None
    assert log_probs.grad.isfinite().all()


def test_a_gamma_that_is_not_whole_with_other_advantages_than_one_is_refused():
    with pytest.raises(ValueError, match=r"gamma=1.5 with advantages other than one"):
        Focal(gamma=1.5)(PolicyInputs(torch.zeros(2), torch.tensor([1.0, 0.5])))
    kept = Focal(gamma=1.5, sign_preserving=True)(PolicyInputs(torch.zeros(2), torch.tensor([1.0, 0.5])))
    assert kept.per_decision.isfinite().all()


@pytest.mark.parametrize("gamma", [0, 1, 3])
def test_another_gamma_than_two_with_old_log_probs_is_refused(gamma):
    with pytest.raises(ValueError, match=rf"gamma={gamma} with old log-probs given, expected gamma 2"):
        Focal(gamma=gamma)(PolicyInputs(torch.zeros(2), torch.ones(2), torch.zeros(2)))
