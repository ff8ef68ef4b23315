"""Policy + entropy: gradient, fixed point, relation to scope, and what the published supervised alpha amounts to."""

import pytest
import torch

from scope_rlhf.objectives import PPO, PolicyEntropy, PolicyInputs, Scope


def entropy_gradient(decisions):
    """d(-H)/dlogits = probs (log probs + H)."""
    log_probs = decisions.logits.log_softmax(-1)
    entropy = -(decisions.probs * log_probs).sum(-1, keepdim=True)
    return decisions.probs * (log_probs + entropy)


def test_the_gradient_is_that_of_the_policy_term_plus_alpha_probs_times_log_probs_plus_entropy(decisions, clips):
    d = decisions
    for old, g in ((False, -d.A), (True, -d.m * d.r * d.A)):
        gradient = d.evaluate(PolicyEntropy(**clips, alpha=0.4), old=old).gradient
        torch.testing.assert_close(gradient, d.along(g) + 0.4 * entropy_gradient(d), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradient.sum(-1), torch.zeros_like(d.A), rtol=0, atol=1e-10)


def test_it_is_scope_plus_alpha_times_p_log_p_of_the_other_actions(decisions, clips):
    d = decisions
    others = (d.probs * d.probs.log() * (1 - d.onehot)).sum(-1)
    for old in (False, True):
        pel = d.evaluate(PolicyEntropy(**clips, alpha=0.4), old=old).per_decision
        scope = d.evaluate(Scope(**clips, alpha=0.4), old=old).per_decision
        torch.testing.assert_close(pel, scope + 0.4 * others, rtol=1e-10, atol=1e-10)


def expected_gradient(logits, advantages, alpha):
    """Gradient of the on-policy expectation: every action enumerated, weighted by its probability."""
    logits = logits.clone().requires_grad_()
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum().expand(len(logits))
    loss = PolicyEntropy(alpha=alpha)(PolicyInputs(log_probs, advantages, entropy=entropy)).per_decision
    return torch.autograd.grad((log_probs.exp().detach() * loss).sum(), logits)[0]


@pytest.mark.parametrize("alpha", [0.05, 0.3, 1.0])
def test_the_on_policy_fixed_point_is_softmax_of_a_over_alpha_and_never_one(alpha):
    advantages = torch.tensor([0.5, -0.2, 0.1], dtype=torch.float64)
    fixed = advantages / alpha
    torch.testing.assert_close(expected_gradient(fixed, advantages, alpha), torch.zeros(3).double(), rtol=0, atol=1e-10)
    assert fixed.softmax(-1).max() < 1
    # from beyond it, the best action is pushed back down (a positive gradient, minimised)
    beyond = fixed + torch.tensor([1.0, 0.0, 0.0])
    assert expected_gradient(beyond, advantages, alpha)[0] > 0


def test_the_published_supervised_alpha_is_cross_entropy_to_rounding(decisions):
    ones = torch.ones_like(decisions.A)
    pel = decisions.evaluate(PolicyEntropy(alpha=8e-6), old=False, advantages=ones)
    ce = decisions.evaluate(PPO(), old=False, advantages=ones)
    assert ((pel.gradient - ce.gradient).abs() <= 8e-6).all()


def test_alpha_zero_is_ppo_and_policy_coef_leaves_the_entropy_alone(decisions, clips):
    zero = decisions.evaluate(PolicyEntropy(**clips, alpha=0.0), old=True)
    assert torch.equal(zero.per_decision, decisions.evaluate(PPO(**clips), old=True).per_decision)
    gradient = decisions.evaluate(PolicyEntropy(policy_coef=0.0, alpha=0.4), old=True).gradient
    torch.testing.assert_close(gradient, 0.4 * entropy_gradient(decisions), rtol=1e-10, atol=1e-10)


def test_inputs_without_the_entropy_are_refused():
    with pytest.raises(ValueError, match="policy_entropy: no entropy given, expected PolicyInputs\\(entropy=...\\)"):
        PolicyEntropy()(PolicyInputs(torch.zeros(2), torch.ones(2)))


def test_the_magnitude_is_alpha_times_the_entropy(decisions):
    stats = decisions.evaluate(PolicyEntropy(alpha=0.4), old=False).stats
    torch.testing.assert_close(stats["entropy_magnitude"], 0.4 * stats["entropy"])
