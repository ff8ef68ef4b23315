"""Policy gradient and PPO: gradients, the clip, and cross-entropy."""

import torch

from scope_rlhf.objectives import PPO, PolicyInputs


def test_policy_gradient_has_g_of_minus_a(decisions):
    decisions.check(PPO(), -decisions.A, old=False)


def test_ppo_has_g_of_minus_m_r_a(decisions, clips):
    d = decisions
    d.check(PPO(**clips), -d.m * d.r * d.A, old=True)


def test_ppo_values_equal_the_loop(decisions, clips):
    result = decisions.evaluate(PPO(**clips), old=True)
    torch.testing.assert_close(result.per_decision, -decisions.s, rtol=1e-10, atol=1e-10)


def test_the_gradient_is_exactly_zero_where_the_clip_binds_and_nowhere_else(decisions, clips):
    gradient = decisions.evaluate(PPO(**clips), old=True).gradient
    assert torch.equal(gradient.abs().sum(-1) == 0, decisions.m == 0)
    assert (decisions.m == 0).sum() > 10


def test_with_advantages_of_one_it_is_cross_entropy(decisions):
    logits = decisions.logits.clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(logits, decisions.actions, reduction="none")
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    result = decisions.evaluate(PPO(), old=False, advantages=torch.ones_like(decisions.A))
    torch.testing.assert_close(result.per_decision, expected.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(result.gradient, gradient, rtol=1e-10, atol=1e-10)


def test_policy_coef_multiplies_the_loss(decisions, clips):
    d = decisions
    d.check(PPO(**clips, policy_coef=1.7), -1.7 * d.m * d.r * d.A, old=True)
    d.check(PPO(policy_coef=1.7), -1.7 * d.A, old=False)


def test_a_sequence_level_ratio_spreads_one_ratio_over_the_row():
    log_probs = torch.tensor([[-1.0, -2.0, -0.5]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[-1.1, -1.8, -0.7]], dtype=torch.float64)
    log_ratio = (log_probs - old).mean(-1, keepdim=True).expand_as(log_probs)
    loss = PPO()(PolicyInputs(log_probs, torch.ones(1, 3).double(), old, log_ratio)).per_decision
    ratio = torch.tensor((0.1 - 0.2 + 0.2) / 3, dtype=torch.float64).exp()
    torch.testing.assert_close(loss, -ratio.expand(1, 3), rtol=1e-10, atol=1e-10)
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
    # three tokens share the ratio, each token holds a third of it
    torch.testing.assert_close(gradient, -ratio.expand(1, 3), rtol=1e-10, atol=1e-10)
