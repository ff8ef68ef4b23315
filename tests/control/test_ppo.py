import json
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from scope_rlhf.control.environments import resolve_environment
from scope_rlhf.control.evaluate import evaluate_returns
from scope_rlhf.control.policies import CategoricalPolicy
from scope_rlhf.control.rollout import Observer
from scope_rlhf.runtime import RunFolder
from tests.control.makers import largest_difference, train

OWN = f"{Path(__file__).parents[1] / 'data' / 'quadratic_penalty.py'}:QuadraticPenalty"
CARTPOLE = {"suite": "classic", "env": "CartPole", "num_envs": 4, "num_steps": 32, "num_eval_episodes": 0}


@pytest.mark.parametrize(
    ("settings", "others"),
    [
        ({"objective": "scope", "objective_kwargs": {"alpha": 0.0}}, {"objective": "ppo"}),
        (
            {"objective": "symmetric", "objective_kwargs": {"alpha": 0.5, "beta": 1.0}},
            {"objective": "ppo", "objective_kwargs": {"policy_coef": 1.5}},
        ),
        ({"objective": "symmetric"}, {"objective": "ppo"}),
    ],
    ids=["scope of alpha 0 is ppo", "symmetric is ppo with policy_coef alpha + beta", "symmetric(.5, .5) is ppo"],
)
def test_objectives_that_are_ppo_on_paper_are_ppo_in_a_run_on_cartpole(tmp_path, settings, others):
    common = {**CARTPOLE, "total_timesteps": 1280, "cliprange": 0.2, "ent_coef": 0.01}
    one = train("ppo", tmp_path / "one", **common, **settings)
    two = train("ppo", tmp_path / "two", **common, **others)
    assert largest_difference(one, two) < 2e-5
    unlike = train("ppo", tmp_path / "unlike", **common, objective="scope", objective_kwargs={"alpha": 0.3})
    assert largest_difference(one, unlike) > 1e-4


@pytest.mark.parametrize("algorithm", ["ppo", "a2c"])
@pytest.mark.parametrize("objective", ["ppo", "scope", "symmetric", "focal", "policy_entropy", OWN])
def test_every_objective_learns_the_better_arm(tmp_path, algorithm, objective):
    settings = {}
    if objective == "focal":  # as published it pushes actions up for negative advantages too
        settings = {"objective_kwargs": {"sign_preserving": True, "alpha": 0.5}, "total_timesteps": 2560}
    run = RunFolder(train(algorithm, tmp_path, objective=objective, **settings))
    assert (run.read_evaluation() or {})["eval/episodic_return"] == 1.0
    assert run.read_config()["objective"]["name"].endswith(objective.rpartition("/")[2])


@pytest.mark.parametrize("algorithm", ["ppo", "a2c"])
@pytest.mark.parametrize("critic", ["hl_gauss", "two_hot"])
def test_categorical_critics_learn_with_it(tmp_path, algorithm, critic):
    support = {"v_min": -0.5, "v_max": 1.5, "bins": 21, "padding_bins": 3}
    run = RunFolder(train(algorithm, tmp_path, critic=critic, critic_kwargs=support))
    assert (run.read_evaluation() or {})["eval/episodic_return"] == 1.0
    last = [row for row in run.read_metrics() if "losses/value_above_floor" in row][-1]
    first = next(row for row in run.read_metrics() if "losses/value_above_floor" in row)
    assert last["losses/value_above_floor"] < first["losses/value_above_floor"]


@pytest.mark.parametrize(
    "policy", [{"policy": "gaussian"}, {"policy": "binned"}, {"policy": "binned", "per_dimension": True}]
)
def test_continuous_actions_come_near_the_best_one(tmp_path, policy):
    settings = {"env": "bandit_environment:ContinuousBandit-v0", "total_timesteps": 5120, **policy}
    run = RunFolder(train("ppo", tmp_path, **settings))
    returns = [row["charts/episodic_return"] for row in run.read_metrics() if "charts/episodic_return" in row]
    assert returns[0] < -0.8
    assert (run.read_evaluation() or {})["eval/episodic_return"] > -0.35


def test_ppo_learns_cartpole_in_15000_steps(tmp_path):
    settings = {**CARTPOLE, "num_envs": 8, "total_timesteps": 15_360, "num_ppo_epochs": 10, "gamma": 0.98, "lam": 0.8}
    run = RunFolder(train("ppo", tmp_path, **settings, learning_rate=2e-3, num_mini_batches=1))
    returns = [row["charts/episodic_return"] for row in run.read_metrics() if "charts/episodic_return" in row]
    assert sum(returns[:3]) / 3 < 40
    assert sum(returns[-5:]) / 5 > 60


def test_the_log_has_cleanrls_names_and_the_split_of_the_time(tmp_path):
    run = RunFolder(train("ppo", tmp_path))
    row = next(row for row in run.read_metrics() if "losses/policy_loss" in row)
    wanted = {
        *(f"losses/{name}" for name in ("policy_loss", "value_loss", "entropy", "approx_kl", "old_approx_kl")),
        *("losses/clipfrac", "losses/explained_variance", "charts/learning_rate", "charts/episodic_return"),
        *("charts/episodic_length", "charts/SPS", "time/environment", "time/rollout", "time/update"),
    }
    assert wanted <= row.keys()
    assert row["charts/episodic_length"] == 1.0


def test_an_evaluation_in_between_changes_no_training(tmp_path):
    without = train("ppo", tmp_path / "without", eval_sampling=True)
    with_them = train("ppo", tmp_path / "with", eval_sampling=True, eval_steps=3)
    assert largest_difference(without, with_them) == 0.0
    evaluations = [row for row in RunFolder(with_them).read_metrics() if "eval/episodic_return" in row]
    assert len(evaluations) == 7


def test_noise_and_clipping_are_for_training_only_and_the_logged_returns_are_true(tmp_path):
    settings = {"reward_flip_probability": 0.5, "reward_noise_std": 3.0, "clip_rewards": True}
    run = RunFolder(train("ppo", tmp_path, **settings))
    returns = [row["charts/episodic_return"] for row in run.read_metrics() if "charts/episodic_return" in row]
    assert all(0 <= value <= 1 for value in returns)
    assert {round(value, 6) for value in (run.read_evaluation() or {})["returns"]} <= {0.0, 0.3, 1.0}


def test_schedules_end_at_zero_and_the_last_line_is_logged(tmp_path):
    run = RunFolder(train("ppo", tmp_path, clip_scheduler_type="linear", logging_steps=7))
    rates = [row["charts/learning_rate"] for row in run.read_metrics() if "charts/learning_rate" in row]
    assert len(rates) == 3
    assert rates == pytest.approx([1e-2 * (1 - update / 20) for update in (6, 13, 19)])


def test_target_kl_ends_the_epochs_early(tmp_path, monkeypatch):
    from scope_rlhf.control.ppo import PPOUpdater

    steps, step = [], PPOUpdater.step
    monkeypatch.setattr(PPOUpdater, "step", lambda self, flat, rows: (steps.append(1), step(self, flat, rows))[1])
    train("ppo", tmp_path / "far", num_ppo_epochs=5)
    assert len(steps) == 20 * 5 * 2
    steps.clear()
    train("ppo", tmp_path / "near", num_ppo_epochs=5, target_kl=1e-9, lr_scheduler_type="constant")
    assert 20 * 2 <= len(steps) < 0.75 * 20 * 5 * 2


@pytest.fixture
def fresh_accelerator():
    """accelerate keeps the precision of the first Accelerator of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.filterwarnings("ignore:bf16. this CPU has no bfloat16:UserWarning")
def test_bfloat16_by_flag_keeps_learning_finite(tmp_path, fresh_accelerator):
    run = RunFolder(train("ppo", tmp_path, bf16=True))
    assert (run.read_evaluation() or {})["eval/episodic_return"] == 1.0
    assert json.loads((tmp_path / "config.json").read_text())["arguments"]["bf16"] is True
    # Log-probs of rollout and update come from the same precision.
    first = next(row for row in run.read_metrics() if "losses/ratio" in row)
    assert abs(first["losses/ratio"] - 1) < 0.2


def test_an_evaluation_that_is_cut_says_so():
    """An episode that never ended was reported as a whole one of 200,000 steps."""
    spec = resolve_environment("classic", "CartPole")
    space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)
    observer, policy = Observer(space, torch.device("cpu"), False), CategoricalPolicy(2)

    def act(observations):
        return torch.zeros(len(observations), dtype=torch.int64)

    with pytest.warns(UserWarning, match="2 of 2 episodes of the evaluation did not end within 5 steps"):
        cut = evaluate_returns(spec, act, policy, observer, 2, 0, max_steps=5)
    assert cut == {"returns": [5.0, 5.0], "lengths": [5.0, 5.0]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert max(evaluate_returns(spec, act, policy, observer, 2, 0)["lengths"]) < 20
