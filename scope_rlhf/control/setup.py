"""What a run is made of, checked before an environment starts, and the objects that hold it together."""

import importlib.util
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.nn.functional  # before a process group is there: see runtime.launch.leave_process_group
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list

from scope_rlhf.control.config import ControlConfig, DQNConfig
from scope_rlhf.control.environments import EnvironmentSpec, resolve_environment
from scope_rlhf.control.networks import check_network
from scope_rlhf.control.on_policy_config import OnPolicyConfig
from scope_rlhf.control.policies import CategoricalPolicy, Policy, describe_policy, make_policy
from scope_rlhf.control.probe import probe_film, probe_spaces
from scope_rlhf.control.replay import check_memory
from scope_rlhf.control.rewards import RewardShaper
from scope_rlhf.objectives import CriticLossFunction, describe_critic
from scope_rlhf.runtime.requirements import check_bf16, check_reporters


@dataclass(frozen=True)
class Setup:
    """A checked run: environment, spaces, policy, critic. sticky: probability for environments without an own one."""

    config: ControlConfig
    spec: EnvironmentSpec
    observation_space: Any
    action_space: Any
    policy: Policy
    critic: CriticLossFunction
    sticky: float

    def meta(self, algorithm: str, objective: dict[str, Any] | None) -> dict[str, Any]:
        """What a checkpoint has to agree with."""
        record = {
            "algorithm": algorithm,
            "env": f"{self.spec.suite}/{self.spec.name}",
            "network": [self.config.network, list(self.config.hidden_sizes)],
            "policy": dict(describe_policy(self.policy)),
            "observations": list(self.observation_space.shape),
            "normalize_observations": self.config.normalize_observations,
            "normalize_rewards": self.config.normalize_rewards,
            "critic": describe_critic(self.critic),
            "processes": world_size(),
            "num_envs": self.config.num_envs,
        }
        if isinstance(self.config, OnPolicyConfig):
            record["num_steps"] = self.config.num_steps
        return record if objective is None else record | {"objective": objective}


def prepare(config: ControlConfig) -> Setup:
    """Check everything that can be checked without starting an environment.

    Raises:
        ValueError: unknown environment, one that the algorithm or the policy cannot act in, a network that does not
            fit, environments that do not divide by the processes.
        ImportError: a package is missing; the message has the pip line.
    """
    processes = world_size()
    if config.num_envs % processes:
        raise ValueError(
            f"num_envs={config.num_envs} does not divide by the {processes} processes; set --num_envs to a multiple."
        )
    if isinstance(config, DQNConfig) and config.batch_size % processes:
        raise ValueError(
            f"batch_size={config.batch_size} does not divide by the {processes} processes; set --batch_size."
        )
    check_reporters(config.report_to)
    spec = resolve_environment(
        config.suite,
        config.env,
        backend=config.backend,
        protocol=config.protocol,
        env_kwargs=config.env_kwargs,  # type: ignore[arg-type]
        episodic_life=config.episodic_life,
        repeat_action_probability=config.repeat_action_probability,
    )
    _check_video(config, spec)
    if config.bf16:
        check_bf16()
    observation_space, action_space = probe_spaces(spec)
    if config.video is not None:
        probe_film(spec, observation_space)
    check_network(observation_space, config.network)
    if isinstance(config, OnPolicyConfig):
        policy = make_policy(
            action_space, config.policy, bins=config.bins, per_dimension=config.per_dimension, env=spec.name
        )
    else:
        import gymnasium

        if not isinstance(action_space, gymnasium.spaces.Discrete):
            instead = "; set --algorithm ppo or a2c, which take continuous ones"
            raise ValueError(
                f"DQN needs discrete actions, but {spec.name} has {action_space}"
                f"{instead if isinstance(action_space, gymnasium.spaces.Box) else ''}."
            )
        policy = CategoricalPolicy(int(action_space.n), int(action_space.start))
    if isinstance(config, DQNConfig):
        frame = observation_space.shape[1:] if spec.suite == "atari" else observation_space.shape
        check_memory(config.buffer_size, frame, observation_space.dtype)
    sticky = 0.0 if spec.suite == "atari" else config.repeat_action_probability or 0.0
    return Setup(config, spec, observation_space, action_space, policy, config.make_critic(), sticky)


def make_accelerator(config: ControlConfig) -> Accelerator:
    """Device, processes and precision. Without an accelerator processes talk by gloo."""
    log_with = list(config.report_to) or None
    return Accelerator(
        cpu=not torch.accelerator.is_available(),
        mixed_precision="bf16" if config.bf16 else "no",
        log_with=log_with,  # pyright: ignore[reportArgumentType]
        project_dir=config.output_dir,
    )


def make_shaper(config: ControlConfig, num_envs: int, seed: int) -> RewardShaper:
    """What a process's environments give to learn from, with the settings of the run."""
    return RewardShaper(
        num_envs,
        config.gamma,
        seed,
        clip_rewards=config.clip_rewards,
        normalize_rewards=config.normalize_rewards,
        reward_flip_probability=config.reward_flip_probability,
        reward_noise_std=config.reward_noise_std,
    )


def agreed_run_folder(env: str, algorithm: str) -> str:
    """new_run_folder of the first process, in all of them: their clocks differ."""
    PartialState(cpu=not torch.accelerator.is_available())
    return broadcast_object_list([new_run_folder(env, algorithm)])[0]


def new_run_folder(env: str, algorithm: str) -> str:
    """runs/control/<env>-<algorithm>/<time>."""
    name = f"{env}-{algorithm}".replace("/", "-").lower()
    return str(Path("runs/control") / name / datetime.now().strftime("%Y%m%d-%H%M%S"))


def environment_seed(seed: int, step: int, rank: int) -> int:
    """Seed of a process's first environment: the run's seed at the start, a new one for each resume."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0] % 2**30)


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _check_video(config: ControlConfig, spec: EnvironmentSpec) -> None:
    if config.video is None:
        return
    if spec.suite == "procgen":
        raise ValueError("videos of Procgen are not offered: envpool renders no single environment; leave --video out.")
    packages = ["PIL"] if config.video == "gif" else ["imageio", "imageio_ffmpeg"]
    if spec.suite in ("classic", "box2d"):
        packages.append("pygame")
    if spec.suite == "atari":
        packages.append("cv2")
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ImportError(
            f"video={config.video} of suite {spec.suite} needs {' and '.join(missing)}. Install with "
            f'`pip install "scope-rlhf[{"atari,video" if spec.suite == "atari" else "video"}]"`.'
        )
