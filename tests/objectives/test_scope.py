"""Scope Loss: each form's gradient, its identities, its fixed points, and when it lets a policy converge."""

import math

import pytest
import torch

from scope_rlhf.objectives import PPO, Focal, PolicyInputs, Scope

ALPHA = 0.6


def test_eq_7_has_g_of_alpha_p_times_one_plus_log_p_minus_a(decisions):
    d = decisions
    d.check(Scope(alpha=ALPHA), ALPHA * d.p * (1 + d.p.log()) - d.A, old=False)


def test_eq_12_has_g_of_ppo_plus_alpha_p_times_one_plus_log_p(decisions, clips):
    d = decisions
    d.check(Scope(**clips, alpha=ALPHA), -d.m * d.r * d.A + ALPHA * d.p * (1 + d.p.log()), old=True)


def test_the_detached_factor_has_g_of_alpha_p_minus_a_and_the_same_value(decisions, clips):
    d = decisions
    detached = Scope(**clips, alpha=ALPHA, detach_factor=True)
    plain = Scope(**clips, alpha=ALPHA)
    for old, policy in ((False, -d.A), (True, -d.m * d.r * d.A)):
        result = d.check(detached, policy + ALPHA * d.p, old=old)
        torch.testing.assert_close(result.per_decision, d.evaluate(plain, old=old).per_decision, rtol=0, atol=1e-12)


def test_importance_weighting_has_g_of_ppo_plus_alpha_r_times_one_plus_log_p(decisions, clips):
    d = decisions
    objective = Scope(**clips, alpha=ALPHA, importance_weighted=True)
    d.check(objective, -d.m * d.r * d.A + ALPHA * d.r * (1 + d.p.log()), old=True)


def test_eq_7_values_equal_minus_a_minus_alpha_p_times_log_p(decisions):
    d = decisions
    expected = -(d.A - ALPHA * d.p) * d.p.log()
    torch.testing.assert_close(d.evaluate(Scope(alpha=ALPHA), old=False).per_decision, expected, rtol=0, atol=1e-10)


def test_eq_8_is_minus_one_minus_p_times_log_p(decisions):
    d = decisions
    result = d.evaluate(Scope(alpha=1.0), old=False, advantages=torch.ones_like(d.A))
    torch.testing.assert_close(result.per_decision, -(1 - d.p) * d.p.log(), rtol=0, atol=1e-10)


def test_supervised_scope_is_focal_with_gamma_one(decisions):
    ones = torch.ones_like(decisions.A)
    for sign_preserving in (False, True):
        scope = decisions.evaluate(Scope(alpha=1.0), old=False, advantages=ones)
        focal = decisions.evaluate(Focal(gamma=1.0, sign_preserving=sign_preserving), old=False, advantages=ones)
        torch.testing.assert_close(scope.per_decision, focal.per_decision, rtol=0, atol=1e-10)
        torch.testing.assert_close(scope.gradient, focal.gradient, rtol=0, atol=1e-10)


def test_scope_at_alpha_zero_is_ppo(decisions, clips):
    for old in (False, True):
        scope, ppo = (decisions.evaluate(o, old=old) for o in (Scope(**clips, alpha=0.0), PPO(**clips)))
        assert torch.equal(scope.per_decision, ppo.per_decision)
        assert torch.equal(scope.gradient, ppo.gradient)


def test_on_clipped_decisions_the_scope_term_is_the_only_gradient_left(decisions, clips):
    d = decisions
    clipped = d.m == 0
    gradient = d.evaluate(Scope(**clips, alpha=ALPHA), old=True).gradient
    term = d.along(ALPHA * d.p * (1 + d.p.log()))
    torch.testing.assert_close(gradient[clipped], term[clipped], rtol=1e-10, atol=1e-10)
    assert (term[clipped].abs().sum(-1) > 0).all()


def test_policy_coef_multiplies_the_policy_term_only(decisions, clips):
    d = decisions
    g = -1.7 * d.m * d.r * d.A + ALPHA * d.p * (1 + d.p.log())
    d.check(Scope(**clips, alpha=ALPHA, policy_coef=1.7), g, old=True)
    d.check(Scope(alpha=ALPHA, policy_coef=1.7), ALPHA * d.p * (1 + d.p.log()) - 1.7 * d.A, old=False)


def test_the_factor_sign_flips_where_the_scope_term_outweighs_the_advantage(decisions):
    d = decisions
    stats = d.evaluate(Scope(alpha=ALPHA), old=False).stats
    factor = d.A - ALPHA * d.p * (1 + d.p.log())
    assert torch.equal(stats["factor_sign_flip"], (factor * d.A < 0).double())
    assert 0 < stats["factor_sign_flip"].mean() < 1
    torch.testing.assert_close(stats["scope_magnitude"], (ALPHA * d.p * d.p.log()).abs())


@pytest.mark.parametrize(("share", "expected"), [(0.25, 0.5703), (0.5, 0.7298), (0.9, 0.9493)])
def test_the_actor_critic_fixed_point_solves_p_times_one_plus_log_p_is_a_over_alpha(share, expected):
    def gradient(p: float) -> float:
        log_probs = torch.tensor([p], dtype=torch.float64).log().requires_grad_()
        loss = Scope(alpha=ALPHA)(PolicyInputs(log_probs, torch.tensor([share * ALPHA], dtype=torch.float64)))
        return torch.autograd.grad(loss.per_decision.sum(), log_probs)[0].item()

    low, high = 1 / math.e, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if gradient(middle) < 0 else (low, middle)
    assert low == pytest.approx(expected, abs=5e-5)
    assert low * (1 + math.log(low)) == pytest.approx(share, abs=1e-10)


@pytest.mark.parametrize(("gap", "converges"), [(1.05, True), (0.95, False)])
def test_two_actions_converge_only_if_the_advantage_gap_exceeds_alpha(gap, converges):
    logits = torch.tensor([9.0, -9.0], dtype=torch.float64, requires_grad=True)  # p = 1 - 1.5e-8
    log_probs = logits.log_softmax(-1)
    advantages = torch.tensor([gap * ALPHA, 0.0], dtype=torch.float64)
    loss = Scope(alpha=ALPHA)(PolicyInputs(log_probs, advantages)).per_decision
    (gradient,) = torch.autograd.grad((log_probs.exp().detach() * loss).sum(), logits)
    assert (gradient[0].item() < 0) is converges


def test_importance_weighting_needs_a_ratio_and_declares_it():
    objective = Scope(importance_weighted=True)
    assert objective.needs_old_log_probs
    with pytest.raises(ValueError, match="importance_weighted without old_log_probs"):
        objective(PolicyInputs(torch.zeros(2), torch.ones(2)))


def test_a_detached_factor_declares_that_it_stops_a_gradient():
    assert Scope(detach_factor=True).stops_gradient
    assert not Scope().stops_gradient
    assert Scope.stops_gradient is False


def test_a_detached_importance_weight_is_refused():
    with pytest.raises(ValueError, match="detach_factor and importance_weighted are both true"):
        Scope(detach_factor=True, importance_weighted=True)
