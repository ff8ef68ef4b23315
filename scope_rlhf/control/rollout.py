"""Rollouts: T steps of N environments, and what they give to learn from.

Pixels stay uint8, channels last, until a minibatch is made. Each step waits for the device once, for the actions; of
environments in two parts, one steps while the network acts for the other.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scope_rlhf.control.networks import channels_first, is_pixels
from scope_rlhf.control.normalisation import ObservationNormaliser, Sum
from scope_rlhf.control.policies import Policy
from scope_rlhf.control.rewards import RewardShaper, StickyActions
from scope_rlhf.control.vector import Environments, Episode, Step
from scope_rlhf.objectives import CriticLossFunction
from scope_rlhf.rl import gae
from scope_rlhf.runtime.launch import RunFailure
from scope_rlhf.runtime.threads import threads

# Up to this many environments act on one thread.
SINGLE_THREADED = 16


# An environment may also call exit: that would end the run without a word.
CRASHES = (Exception, SystemExit)


class EnvironmentFailure(RunFailure):
    """An environment raised; the run saves what it has learned and ends."""


@dataclass
class Rollout:
    """T steps of N environments. observations [T, N, ...] as stored; actions [T, N, ...]; log_probs [T, N], or
    [T, N, K] per dimension; values, rewards, terminated, truncated, truncation_values, counts [T, N]; last_values [N].

    counts: False at steps that only reset an environment. episodes: those finished, with the step they ended in.
    seconds_environment: those spent in starting steps and waiting for them, of `seconds` in all.
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

    environments: all of this process's, in one part or several. Parts that step in the background do so while the
    network acts for the next one; what they give does not depend on it. model(observations) -> (policy outputs,
    critic outputs); it is called without gradient. Only one part can have sticky actions or normalised observations.
    """

    def __init__(
        self,
        environments: Sequence[Environments],
        model: Callable[[Tensor], tuple[Tensor, Tensor]],
        policy: Policy,
        critic: CriticLossFunction,
        observer: Observer,
        shaper: RewardShaper,
        sticky: StickyActions,
        num_steps: int,
    ):
        assert len(environments) == 1 or not (sticky.probability or observer.normaliser)
        self.model, self.policy, self.critic = model, policy, critic
        self.observer, self.shaper, self.sticky, self.num_steps = observer, shaper, sticky, num_steps
        ends = list(accumulate(part.num_envs for part in environments))
        self.num_envs = ends[-1]
        self._parts = [(part, slice(end - part.num_envs, end)) for part, end in zip(environments, ends, strict=True)]
        device, shape = observer.device, (num_steps, self.num_envs)
        self._observations = torch.zeros(*shape, *observer.shape, dtype=observer.dtype, device=device)
        self._actions = torch.zeros(*shape, *policy.action_shape, dtype=policy.action_dtype, device=device)
        decisions = (policy.decisions,) if policy.decisions > 1 else ()
        self._log_probs = torch.zeros(*shape, *decisions, device=device)
        self._values = torch.zeros(*shape, device=device)
        self._latest: list[Tensor] = []
        self._waited = 0.0

    def restart(self, seed: int, *, resumed: bool = False) -> None:
        """Start all episodes anew. resumed: their first observations stand in for those of the saved run, which are in
        its statistics already.
        """
        self._latest = []
        for part, rows in self._parts:
            try:
                observations = part.reset(seed + rows.start)
            except CRASHES as error:
                raise EnvironmentFailure(
                    f"the environments failed to start: {type(error).__name__}: {error}"
                ) from error
            self._latest.append(self.observer.store(observations, np.full(len(observations), not resumed)))

    def collect(self) -> Rollout:
        """T steps. EnvironmentFailure where an environment raises."""
        # On a CPU a few observations are no faster on several threads, and idle ones spin while the environments' own
        # threads want the cores.
        few = self.observer.device.type == "cpu" and self.num_envs <= SINGLE_THREADED
        # The network's own autocast is inside; an outer context, though it casts nothing, keeps the bfloat16 copies of
        # the weights from step to step.
        keep = torch.autocast(self.observer.device.type, enabled=False)
        with threads(1 if few else None), torch.no_grad(), keep:
            return self._collect()

    def _collect(self) -> Rollout:
        assert self._latest, "restart comes first"
        started, self._waited = time.perf_counter(), 0.0
        device, shape = self.observer.device, (self.num_steps, self.num_envs)
        rewards = np.zeros(shape, dtype=np.float32)
        terminated, truncated, counts = (np.zeros(shape, dtype=bool) for _ in range(3))
        truncation_values = torch.zeros(shape, device=device)
        episodes: list[tuple[int, Episode]] = []
        for part in range(len(self._parts)):
            self._act(part, 0)
        for t in range(self.num_steps):
            for part, (_, rows) in enumerate(self._parts):
                step = self._receive(part, t)
                terminated[t, rows], truncated[t, rows], counts[t, rows] = step.terminated, step.truncated, step.counts
                rewards[t, rows] = step.rewards
                episodes += [(t, replace(it, environment=it.environment + rows.start)) for it in step.episodes]
                if step.final_observations is not None:
                    cut = np.flatnonzero(step.truncated)
                    final = self.observer.view(self.observer.store(step.final_observations[cut]))
                    values = self.critic.decode(self.model(final)[1])
                    truncation_values[t, torch.from_numpy(cut + rows.start)] = values
                self._latest[part] = self.observer.store(step.observations, np.ones_like(step.counts))
                if rows.stop == self.num_envs:
                    ended = terminated[t] | truncated[t]
                    self.sticky.observe(ended, counts[t])
                    rewards[t] = self.shaper(rewards[t], ended, counts[t])
                if t + 1 < self.num_steps:
                    self._act(part, t + 1)
        last = [self.critic.decode(self.model(self.observer.view(latest))[1]) for latest in self._latest]
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
            torch.cat(last),
            episodes,
            self._waited,
            time.perf_counter() - started,
        )

    def _act(self, part: int, t: int) -> None:
        """Choose the actions of a part's step t, and begin it."""
        environments, rows = self._parts[part]
        self._observations[t, rows] = self._latest[part]
        outputs, value_outputs = self.model(self.observer.view(self._observations[t, rows]))
        outputs = outputs.float()
        actions = self.policy.sample(outputs)
        self._actions[t, rows] = actions
        chosen = self.sticky(self.policy.to_environment(actions))
        with self._environment(t):
            environments.send(chosen)
        self._log_probs[t, rows] = self.policy.log_probs(outputs, actions)
        self._values[t, rows] = self.critic.decode(value_outputs)

    def _receive(self, part: int, t: int) -> Step:
        with self._environment(t):
            return self._parts[part][0].receive()

    @contextmanager
    def _environment(self, t: int) -> Iterator[None]:
        """Count the seconds inside, and name step t where an environment raises."""
        before = time.perf_counter()
        try:
            yield
        except CRASHES as error:
            raise EnvironmentFailure(
                f"an environment failed in step {t} of a rollout: {type(error).__name__}: {error}"
            ) from error
        self._waited += time.perf_counter() - before

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
