"""Settings of the control experiments: command line over --config over the defaults of suite and algorithm.

The defaults are published settings where there are any: CleanRL's for Atari, those of Cobbe et al. (arXiv 1912.01588)
for Procgen, the symmetric paper's for MuJoCo (arXiv 2405.17618), RL Baselines3 Zoo's for CartPole and LunarLander.
"""

from collections.abc import Sequence
from typing import Any

from scope_rlhf.control.config import ControlConfig, DQNConfig
from scope_rlhf.control.environments import SUITES
from scope_rlhf.control.on_policy_config import A2CConfig, PPOConfig
from scope_rlhf.experiments.command_line import parse_settings, read_config, spell, take_config, value_of
from scope_rlhf.objectives import make_trainer_objective
from scope_rlhf.runtime.settings import did_you_mean, json_object

ALGORITHMS: dict[str, type[ControlConfig]] = {"ppo": PPOConfig, "a2c": A2CConfig, "dqn": DQNConfig}

_ATARI = {"env": "Breakout", "clip_rewards": True, "eval_sampling": True, "num_eval_episodes": 10}
_ATARI |= {"total_timesteps": 10_000_000, "learning_rate": 2.5e-4, "ent_coef": 0.01}
_PIXELS_DQN = {
    "env": "Breakout",
    "clip_rewards": True,
    "num_eval_episodes": 10,
    "total_timesteps": 10_000_000,
    "learning_rate": 6.25e-5,
    "buffer_size": 1_000_000,
    "learning_starts": 20_000,
}
_VECTOR_DQN = {
    "total_timesteps": 50_000,
    "learning_rate": 1e-3,
    "adam_epsilon": 1e-8,
    "batch_size": 64,
    "learning_starts": 1_000,
    "train_frequency": 2,
    "target_update_frequency": 500,
    "exploration_steps": 8_000,
    "exploration_final": 0.04,
    "eval_epsilon": 0.0,
}
_LUNAR_LANDER = {"env": "LunarLander", "gamma": 0.999, "lam": 0.98, "ent_coef": 0.01, "total_timesteps": 1_000_000}

DEFAULTS: dict[tuple[str, str], dict[str, Any]] = {
    ("classic", "ppo"): {
        "env": "CartPole",
        "num_steps": 32,
        "num_ppo_epochs": 20,
        "num_mini_batches": 1,
        "gamma": 0.98,
        "lam": 0.8,
        "learning_rate": 1e-3,
        "clip_scheduler_type": "linear",
    },
    ("classic", "a2c"): {"env": "CartPole", "num_envs": 8, "total_timesteps": 500_000, "logging_steps": 50},
    ("classic", "dqn"): {**_VECTOR_DQN, "env": "CartPole"},
    ("box2d", "ppo"): {
        **_LUNAR_LANDER,
        "num_envs": 16,
        "num_steps": 1024,
        "num_mini_batches": 256,
        "learning_rate": 3e-4,
        "lr_scheduler_type": "constant",
    },
    # RL Baselines3 Zoo's 8 x 5 steps with RMSprop ended at 60 points here (seed 101), these at 163 and 185 (101, 102).
    # Its policy stays random, by .75 of 1.39 nats; its most probable actions alone reach 133 and 63.
    ("box2d", "a2c"): {
        "env": "LunarLander",
        "num_envs": 16,
        "num_steps": 16,
        "lam": 0.95,
        "learning_rate": 1e-3,
        "optimizer": "adam",
        "eval_sampling": True,
        "total_timesteps": 1_000_000,
        "logging_steps": 20,
    },
    ("box2d", "dqn"): {**_VECTOR_DQN, "env": "LunarLander", "total_timesteps": 200_000, "learning_rate": 6.3e-4},
    ("mujoco", "ppo"): {
        "env": "HalfCheetah",
        "num_envs": 1,
        "num_steps": 2048,
        "num_mini_batches": 32,
        "num_ppo_epochs": 10,
        "learning_rate": 3e-4,
        "total_timesteps": 1_000_000,
        "normalize_observations": True,
        "normalize_rewards": True,
    },
    ("mujoco", "a2c"): {
        "env": "HalfCheetah",
        "num_envs": 8,
        "total_timesteps": 1_000_000,
        "normalize_observations": True,
        "normalize_rewards": True,
        "logging_steps": 100,
    },
    ("atari", "ppo"): {**_ATARI, "cliprange": 0.1},
    ("atari", "a2c"): {**_ATARI, "learning_rate": 7e-4, "vf_coef": 0.25, "logging_steps": 100},
    ("atari", "dqn"): _PIXELS_DQN,
    ("procgen", "ppo"): {
        "env": "StarPilot",
        "network": "impala",
        "num_envs": 64,
        "num_steps": 256,
        "num_ppo_epochs": 3,
        "num_mini_batches": 8,
        "learning_rate": 5e-4,
        "lr_scheduler_type": "constant",
        "gamma": 0.999,
        "ent_coef": 0.01,
        "normalize_rewards": True,
        "total_timesteps": 25_000_000,
        "eval_sampling": True,
    },
    ("procgen", "dqn"): {**_PIXELS_DQN, "env": "StarPilot"},
}


def parse_control(
    argv: Sequence[str], prog: str | None = None, suite: str | None = None, algorithm: str | None = None
) -> tuple[str, ControlConfig]:
    """(algorithm, settings). `suite` and `algorithm` are what a recipe is for: nothing else can be asked of it.

    Raises ValueError for an unknown suite, algorithm, flag or key, and for settings that cannot work.
    """
    argv, config_file = take_config(spell(argv))
    config = read_config(config_file, env_names_setting=True) if config_file else {}
    chosen = value_of(argv, "--algorithm") or config.pop("algorithm", None) or algorithm or "ppo"
    config.pop("algorithm", None)
    argv = _without(argv, "--algorithm")
    if chosen not in ALGORITHMS:
        raise ValueError(f"algorithm must be {', '.join(ALGORITHMS)}, got {chosen!r}; set --algorithm.")
    if algorithm not in (None, chosen):
        raise ValueError(f"this recipe is {algorithm}, got algorithm {chosen!r}; use `scope-rlhf control`.")
    of_suite = value_of(argv, "--suite") or config.get("suite") or suite or "classic"
    if suite not in (None, of_suite):
        raise ValueError(f"this recipe is for suite {suite}, got {of_suite!r}; use `scope-rlhf control`.")
    if of_suite not in SUITES:
        meant = did_you_mean(of_suite, SUITES)
        raise ValueError(f"suite {of_suite!r} is unknown{meant}; valid: {', '.join(SUITES)}; set --suite.")
    defaults = {"suite": of_suite, "env": "", **DEFAULTS.get((of_suite, chosen), {})}
    _fit_to_objective(value_of(argv, "--objective"), value_of(argv, "--objective_kwargs"), config, defaults)
    (settings,) = parse_settings((ALGORITHMS[chosen],), defaults, argv, config, config_file, prog)
    return chosen, settings


def _fit_to_objective(named: str | None, kwargs: str | None, config: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Leave out what was written for another objective: the file's objective_kwargs where the command line names an
    objective; clips of a suite (or, again, of the file) where the objective has none, and the entropy bonus where it
    has one of its own.
    """
    if named is not None and named != config.get("objective"):
        config.pop("objective_kwargs", None)
    name, parameters = named or config.get("objective") or "ppo", kwargs or config.get("objective_kwargs")
    try:
        objective = make_trainer_objective(name, json_object("objective_kwargs", parameters))
    except Exception:  # told later, with the flag
        return
    unfit = [] if hasattr(objective, "clip_low") else ["cliprange", "clip_scheduler_type"]
    if name == "policy_entropy":
        unfit.append("ent_coef")
    for setting in unfit:
        defaults.pop(setting, None)
        if named is not None:
            config.pop(setting, None)


def _without(argv: Sequence[str], flag: str) -> list[str]:
    """The command line without a flag and its value."""
    rest, skip = [], False
    for word in argv:
        if skip:
            skip = False
        elif word == flag:
            skip = True
        elif not word.startswith(f"{flag}="):
            rest.append(word)
    return rest
