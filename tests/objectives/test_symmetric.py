"""The symmetric loss: each form's gradient, when it is PPO, and how it stays finite."""

import pytest
import torch

from scope_rlhf.objectives import PPO, PolicyInputs, Symmetric

A_COEF, B_COEF, Z = 0.7, 0.4, -1.5
WEIGHTS = {"alpha": A_COEF, "beta": B_COEF, "log_zero": Z}


def test_sa2c_has_g_of_minus_a_times_a_minus_b_z_p(decisions):
    d = decisions
    d.check(Symmetric(**WEIGHTS), -d.A * (A_COEF - B_COEF * Z * d.p), old=False)


def test_sa2c_values_equal_the_formula(decisions):
    d = decisions
    expected = A_COEF * (-d.A * d.p.log()) + B_COEF * (-d.A * Z * (1 - d.p))
    result = d.evaluate(Symmetric(**WEIGHTS), old=False)
    torch.testing.assert_close(result.per_decision, expected, rtol=0, atol=1e-10)


def test_sppo_as_published_has_g_of_minus_m_r_a_times_a_minus_b_z(decisions, clips):
    d = decisions
    d.check(Symmetric(**clips, **WEIGHTS), -d.m * d.r * d.A * (A_COEF - B_COEF * Z), old=True)


def test_unmasked_has_g_of_ppo_plus_b_a_z_r_so_clipped_decisions_keep_moving(decisions, clips):
    d = decisions
    objective = Symmetric(**clips, **WEIGHTS, masked=False)
    result = d.check(objective, -A_COEF * d.m * d.r * d.A + B_COEF * d.A * Z * d.r, old=True)
    assert (result.gradient[d.m == 0].abs().sum(-1) > 0).all()


def test_without_the_old_probability_it_has_g_of_minus_a_times_a_r_m_minus_b_z_p_m(decisions, clips):
    d = decisions
    objective = Symmetric(**clips, **WEIGHTS, over_old=False)
    d.check(objective, -d.A * (A_COEF * d.r * d.m - B_COEF * Z * d.p * d.m), old=True)


def test_without_mask_and_old_probability_only_the_policy_term_is_clipped(decisions, clips):
    d = decisions
    objective = Symmetric(**clips, **WEIGHTS, masked=False, over_old=False)
    d.check(objective, -d.A * (A_COEF * d.r * d.m - B_COEF * Z * d.p), old=True)


def test_the_sppo_gradient_is_a_minus_b_z_times_the_ppo_gradient(decisions, clips):
    sppo = decisions.evaluate(Symmetric(**clips, **WEIGHTS), old=True)
    ppo = decisions.evaluate(PPO(**clips), old=True)
    torch.testing.assert_close(sppo.gradient, (A_COEF - B_COEF * Z) * ppo.gradient, rtol=1e-10, atol=1e-10)


def test_sppo_with_a_half_each_and_z_of_minus_one_is_ppo(decisions, clips):
    sppo = decisions.evaluate(Symmetric(**clips), old=True)
    ppo = decisions.evaluate(PPO(**clips), old=True)
    torch.testing.assert_close(sppo.gradient, ppo.gradient, rtol=1e-10, atol=1e-10)


def test_ppo_with_policy_coef_a_plus_b_is_the_control_of_sppo(decisions, clips):
    sppo = decisions.evaluate(Symmetric(**clips, alpha=0.5, beta=0.2), old=True)
    control = decisions.evaluate(PPO(**clips, policy_coef=0.7), old=True)
    torch.testing.assert_close(sppo.gradient, control.gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("old", [False, True])
def test_a_one_b_zero_is_ppo(decisions, clips, old):
    symmetric = decisions.evaluate(Symmetric(**clips, alpha=1.0, beta=0.0), old=old)
    ppo = decisions.evaluate(PPO(**clips), old=old)
    torch.testing.assert_close(symmetric.per_decision, ppo.per_decision, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(symmetric.gradient, ppo.gradient, rtol=1e-10, atol=1e-10)


def test_the_gradient_of_the_masked_forms_is_exactly_zero_where_the_clip_binds(decisions, clips):
    for over_old in (True, False):
        gradient = decisions.evaluate(Symmetric(**clips, **WEIGHTS, over_old=over_old), old=True).gradient
        assert (gradient[decisions.m == 0] == 0).all()


def test_the_sa2c_reverse_gradient_on_the_logit_peaks_at_a_half():
    logits = torch.linspace(-4, 4, 8001, dtype=torch.float64).requires_grad_()
    log_probs = torch.nn.functional.logsigmoid(logits)
    loss = Symmetric(alpha=0.0, beta=1.0)(PolicyInputs(log_probs, torch.ones(8001).double())).per_decision
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert log_probs[gradient.abs().argmax()].exp().item() == pytest.approx(0.5, abs=1e-3)


def test_policy_coef_multiplies_the_policy_term_only(decisions, clips):
    d = decisions
    g = -2.0 * A_COEF * d.m * d.r * d.A + B_COEF * d.m * d.A * Z * d.r
    d.check(Symmetric(**clips, **WEIGHTS, policy_coef=2.0), g, old=True)


def test_the_published_value_is_logged_apart_from_the_term_in_the_loss(decisions, clips):
    d = decisions
    result = d.evaluate(Symmetric(**clips, **WEIGHTS), old=True)
    published = B_COEF * (-d.m * d.A * Z * (1 - d.p) / d.old_log_probs.exp())
    torch.testing.assert_close(result.stats["reverse_published"], published, rtol=1e-10, atol=1e-10)
    magnitude = (B_COEF * d.m * d.A * Z * d.r).abs()
    torch.testing.assert_close(result.stats["reverse_magnitude"], magnitude, rtol=1e-10, atol=1e-10)
    for objective, old in ((Symmetric(**clips, over_old=False), True), (Symmetric(**clips), False)):
        assert "reverse_published" not in d.evaluate(objective, old=old).stats


def test_a_given_sequence_ratio_is_the_ratio_of_the_reverse_term():
    log_probs = torch.tensor([[-1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[-1.1, -1.8]], dtype=torch.float64)
    log_ratio = (log_probs - old).mean(-1, keepdim=True).expand_as(log_probs)
    inputs = PolicyInputs(log_probs, torch.ones(1, 2).double(), old, log_ratio)
    (gradient,) = torch.autograd.grad(Symmetric(**WEIGHTS)(inputs).per_decision.sum(), log_probs)
    (ppo,) = torch.autograd.grad(PPO()(inputs).per_decision.sum(), log_probs)
    torch.testing.assert_close(gradient, (A_COEF - B_COEF * Z) * ppo, rtol=1e-10, atol=1e-10)
