import copy

import pytest
import torch

from scope_rlhf.control.a2c import make_optimizer, update
from scope_rlhf.control.on_policy_config import A2CConfig
from scope_rlhf.control.rollout import MinibatchLoader
from scope_rlhf.control.session import Session
from tests.control import two_process_script as script
from tests.control.makers import largest_difference, train


def test_symmetric_a2c_is_not_plain_a2c_rescaled_as_symmetric_ppo_is(tmp_path):
    settings = {"total_timesteps": 320, "learning_rate": 1e-3}
    symmetric = train("a2c", tmp_path / "symmetric", objective="symmetric", **settings)
    control = train("a2c", tmp_path / "control", objective="ppo", objective_kwargs={"policy_coef": 1.0}, **settings)
    assert largest_difference(symmetric, control) > 1e-4
    plain = train(
        "a2c", tmp_path / "plain", objective="symmetric", objective_kwargs={"alpha": 1, "beta": 0}, **settings
    )
    assert largest_difference(plain, control) < 1e-6


def test_an_update_is_one_rmsprop_step_on_the_loss_written_out_by_hand(tmp_path):
    """-mean(A log p) - ent_coef mean(H) + vf_coef mean((V - R)^2) / 2 over the counted steps."""
    config = A2CConfig(
        **script.COMMON, num_steps=script.STEPS, output_dir=str(tmp_path), ent_coef=0.02, max_grad_norm=0.0, vf_coef=0.7
    )
    with Session(config, "a2c", {"name": "x"}) as session:
        agent = script.agent_of(session)
        by_hand = copy.deepcopy(agent)
        optimizer = make_optimizer(agent, config)
        session.start(agent, optimizer, lambda observations: agent(observations)[0].argmax(-1))
        rollout = script.rollout(session)
        update(config, config.make_objective(), session, agent, optimizer, MinibatchLoader(session.observer), rollout)

    terms, entropies, errors = [], [], []
    advantages, returns = rollout.advantages(config.gamma, 1.0)
    for t in range(script.STEPS):
        for i in range(script.ENVS):
            if rollout.counts[t, i]:
                logits, value = by_hand(rollout.observations[t, i : i + 1])
                log_probs = logits[0].log_softmax(-1)
                terms.append(-advantages[t, i] * log_probs[rollout.actions[t, i]])
                entropies.append(-(log_probs.exp() * log_probs).sum())
                errors.append((value[0, 0] - returns[t, i]) ** 2 / 2)
    loss = torch.stack(terms).mean() - 0.02 * torch.stack(entropies).mean() + 0.7 * torch.stack(errors).mean()
    loss.backward()
    for name, weights in by_hand.named_parameters():
        gradient = weights.grad
        assert gradient is not None
        expected = weights - config.learning_rate * gradient / ((0.01 * gradient.square()).sqrt() + 1e-5)
        torch.testing.assert_close(dict(agent.named_parameters())[name], expected, atol=2e-5, rtol=1e-3)


def test_an_objective_without_a_score_function_form_is_refused_before_anything_starts(tmp_path):
    source = tmp_path / "ratio_only.py"
    source.write_text(
        "from dataclasses import dataclass\nfrom scope_rlhf.objectives import PolicyLoss\n\n\n@dataclass(frozen=True)\n"
        "class RatioOnly:\n    def __call__(self, inputs):\n        if inputs.resolve_log_ratio() is None:\n"
        "            raise ValueError('needs old_log_probs')\n"
        "        return PolicyLoss(-inputs.resolve_log_ratio().exp() * inputs.advantages, {})\n"
    )
    with pytest.raises(ValueError, match="cannot be trained with: refuses the score-function form"):
        train("a2c", tmp_path / "run", objective=f"{source}:RatioOnly")
    assert not (tmp_path / "run").exists()
    assert train("ppo", tmp_path / "run", objective=f"{source}:RatioOnly", total_timesteps=64).exists()
