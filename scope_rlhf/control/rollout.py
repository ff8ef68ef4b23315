"""Rollouts: T steps of N environments, and what they give to learn from.

Pixels stay uint8, channels last, until a minibatch is made. Each step waits for the device once, for the actions.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scope_rlhf.control.networks import channels_first, is_pixels
from scope_rlhf.control.normalisation import ObservationNormaliser, Sum
from scope_rlhf.control.policies import Policy
from scope_rlhf.control.rewards import RewardShaper, StickyActions
from scope_rlhf.control.vector import Environments, Episode
from scope_rlhf.objectives import CriticLossFunction
from scope_rlhf.rl import gae
from scope_rlhf.runtime.threads import threads

# Up to this many environments act on one thread.
SINGLE_THREADED = 16


class EnvironmentFailure(RuntimeError):
    """An environment raised; the run saves what it has learned and ends."""


@dataclass
class Rollout:
    """T steps of N environments. observations [T, N, ...] as stored; actions [T, N, ...]; log_probs [T, N], or
    [T, N, K] per dimension; values, rewards, terminated, truncated, truncation_values, counts [T, N]; last_values [N].

    counts: False at steps that only reset an environment. episodes: those finished, with the step they ended in.
    """

    observations: Tensor
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    truncation_values: Tensor
    counts: Tensor
    last_values: Tensor
    episodes: list[tuple[int, Episode]] = field(default_factory=list)
    seconds_environment: float = 0.0
    seconds: float = 0.0

    def advantages(self, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
        """Advantages and returns [T, N] by GAE: bootstrapped at a truncation, not at a termination; 0 where nothing
        counts.
        """
        advantages, returns = gae(
            self.rewards.T,
            self.values.T,
            self.counts.T,
            gamma,
            lam,
            terminated=self.terminated.T,
            truncated=self.truncated.T,
            truncation_values=self.truncation_values.T,
            last_values=self.last_values,
        )
        return advantages.T, returns.T


class Observer:
    """Observations of the environments -> what the network takes: pixels channels last, vectors normalised."""

    def __init__(self, space: Any, device: torch.device, normalise: bool):
        self.pixels = is_pixels(space)
        self.swap = self.pixels and channels_first(space)
        shape = tuple(space.shape)
        self.shape = (*shape[1:], shape[0]) if self.swap else shape
        self.dtype = torch.uint8 if self.pixels else torch.float32
        self.device = device
        if normalise and self.pixels:
            raise ValueError("normalize_observations is for vectors; pixels are divided by 255. Leave it out.")
        self.normaliser = ObservationNormaliser(shape) if normalise else None

    def store(self, observations: np.ndarray, counts: np.ndarray | None = None) -> Tensor:
        """[N, ...] as kept in a buffer; `counts` [N]: rows that enter the running statistics."""
        if self.normaliser is not None:
            observations = self.normaliser(observations, counts)
        stored = torch.from_numpy(np.ascontiguousarray(observations)).to(self.device)
        return (stored.permute(0, 2, 3, 1) if self.swap else stored).to(self.dtype)

    def view(self, stored: Tensor) -> Tensor:
        """[N, ...] of a buffer as the network takes it; no copy."""
        return stored.permute(0, 3, 1, 2) if self.pixels else stored


class Collector:
    """Acts in the training environments and keeps what happened.

    model(observations) -> (policy outputs, critic outputs); it is called without gradient. `step` counts the steps of
    this process's environments.
    """

    def __init__(
        self,
        environments: Environments,
        model: Callable[[Tensor], tuple[Tensor, Tensor]],
        policy: Policy,
        critic: CriticLossFunction,
        observer: Observer,
        shaper: RewardShaper,
        sticky: StickyActions,
        num_steps: int,
    ):
        self.environments, self.model, self.policy, self.critic = environments, model, policy, critic
        self.observer, self.shaper, self.sticky, self.num_steps = observer, shaper, sticky, num_steps
        device, shape = observer.device, (num_steps, environments.num_envs)
        self._observations = torch.zeros(*shape, *observer.shape, dtype=observer.dtype, device=device)
        self._actions = torch.zeros(*shape, *policy.action_shape, dtype=policy.action_dtype, device=device)
        decisions = (policy.decisions,) if policy.decisions > 1 else ()
        self._log_probs = torch.zeros(*shape, *decisions, device=device)
        self._values = torch.zeros(*shape, device=device)
        self._latest: Tensor | None = None

    def restart(self, seed: int) -> None:
        """Start all episodes anew."""
        try:
            observations = self.environments.reset(seed)
        except Exception as error:
            raise EnvironmentFailure(f"the environments failed to start: {type(error).__name__}: {error}") from error
        self._latest = self.observer.store(observations, np.ones(len(observations), dtype=bool))

    def collect(self) -> Rollout:
        """T steps. EnvironmentFailure where an environment raises."""
        # On a CPU a few observations are no faster on several threads, and idle ones spin while the environments' own
        # threads want the cores.
        few = self.observer.device.type == "cpu" and self.environments.num_envs <= SINGLE_THREADED
        with threads(1 if few else None), torch.no_grad():
            return self._collect()

    def _collect(self) -> Rollout:
        assert self._latest is not None, "restart comes first"
        started, in_environment = time.perf_counter(), 0.0
        shape = (self.num_steps, self.environments.num_envs)
        rewards = np.zeros(shape, dtype=np.float32)
        terminated, truncated, counts = (np.zeros(shape, dtype=bool) for _ in range(3))
        truncation_values = torch.zeros(shape, device=self.observer.device)
        episodes: list[tuple[int, Episode]] = []
        for t in range(self.num_steps):
            self._observations[t] = self._latest
            outputs, value_outputs = self.model(self.observer.view(self._observations[t]))
            actions = self.policy.sample(outputs.float())
            self._actions[t] = actions
            self._log_probs[t] = self.policy.log_probs(outputs.float(), actions)
            self._values[t] = self.critic.decode(value_outputs)

            chosen = self.sticky(self.policy.to_environment(actions))
            before = time.perf_counter()
            try:
                step = self.environments.step(chosen)
            except Exception as error:
                raise EnvironmentFailure(
                    f"an environment failed in step {t} of a rollout: {type(error).__name__}: {error}"
                ) from error
            in_environment += time.perf_counter() - before

            ended = step.terminated | step.truncated
            self.sticky.observe(ended, step.counts)
            rewards[t] = self.shaper(step.rewards, ended, step.counts)
            terminated[t], truncated[t], counts[t] = step.terminated, step.truncated, step.counts
            if step.final_observations is not None:
                cut = np.flatnonzero(step.truncated)
                final = self.observer.view(self.observer.store(step.final_observations[cut]))
                truncation_values[t, torch.from_numpy(cut)] = self.critic.decode(self.model(final)[1])
            episodes += [(t, episode) for episode in step.episodes]
            self._latest = self.observer.store(step.observations, np.ones_like(step.counts))
        last_values = self.critic.decode(self.model(self.observer.view(self._latest))[1])
        device = self.observer.device
        return Rollout(
            self._observations,
            self._actions,
            self._log_probs,
            self._values,
            torch.from_numpy(rewards).to(device),
            torch.from_numpy(terminated).to(device),
            torch.from_numpy(truncated).to(device),
            truncation_values,
            torch.from_numpy(counts).to(device),
            last_values,
            episodes,
            in_environment,
            time.perf_counter() - started,
        )

    def synchronise(self, all_reduce: Sum | None) -> None:
        """Make the running statistics those of all processes."""
        if self.observer.normaliser is not None:
            self.observer.normaliser.moments.synchronise(all_reduce)
        self.shaper.synchronise(all_reduce)


class MinibatchLoader:
    """Rows of a rollout's observations as the network takes them.

    On CPUs the bytes of a minibatch are copied into one float buffer that is used again: a fresh one of 30 MB costs
    more in page faults than the copy. What it returned last is overwritten by the next call.
    """

    def __init__(self, observer: Observer):
        self.observer = observer
        self._bytes = self._floats = torch.empty(0)

    def __call__(self, observations: Tensor, rows: Tensor) -> Tensor:
        """observations [M, ...] as stored, rows [n] int64 -> [n, ...]."""
        if not self.observer.pixels or observations.device.type != "cpu":
            return self.observer.view(observations[rows])
        n = len(rows)
        if len(self._floats) < n:
            self._bytes = torch.empty(n, *observations.shape[1:], dtype=torch.uint8)
            self._floats = torch.empty(n, *observations.shape[1:])
        torch.index_select(observations, 0, rows, out=self._bytes[:n])
        return self.observer.view(self._floats[:n].copy_(self._bytes[:n]))
