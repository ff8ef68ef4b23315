"""Short runs on the bandit, in this process."""

import sys
from pathlib import Path

import torch

from scope_rlhf.control.a2c import train_a2c
from scope_rlhf.control.config import DQNConfig
from scope_rlhf.control.dqn import train_dqn
from scope_rlhf.control.on_policy_config import A2CConfig, PPOConfig
from scope_rlhf.control.ppo import train_ppo

sys.path.append(str(Path(__file__).parent))
BANDIT = {"suite": "gymnasium", "env": "bandit_environment:Bandit-v0", "num_eval_episodes": 4}
ON_POLICY = {**BANDIT, "num_envs": 4, "num_steps": 8, "total_timesteps": 640, "learning_rate": 1e-2}
REPLAY = {
    **BANDIT,
    "total_timesteps": 1500,
    "learning_rate": 1e-2,
    "learning_starts": 50,
    "batch_size": 16,
    "buffer_size": 500,
    "train_frequency": 2,
    "target_update_frequency": 50,
    "exploration_steps": 200,
    "eval_epsilon": 0.0,
}
KINDS = {
    "ppo": (PPOConfig, train_ppo, {**ON_POLICY, "num_mini_batches": 2}),
    "a2c": (A2CConfig, train_a2c, {**ON_POLICY, "total_timesteps": 2560}),
    "dqn": (DQNConfig, train_dqn, REPLAY),
}


def train(algorithm, folder, **settings):
    """The run folder of a short run."""
    config, function, defaults = KINDS[algorithm]
    return function(config(**{**defaults, "output_dir": str(folder), **settings}))


def learner(folder):
    """What the last checkpoint of a run holds of the learner."""
    newest = max(Path(folder).glob("checkpoint-*"), key=lambda f: int(f.name[11:]))
    return torch.load(newest / "learner.pt", weights_only=True)


def largest_difference(one, two):
    """Between the weights of two runs."""
    weights, others = learner(one)["model"], learner(two)["model"]
    assert weights.keys() == others.keys()
    return max(float((weights[key].double() - others[key].double()).abs().max()) for key in weights)
