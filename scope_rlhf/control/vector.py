"""One face for all vector environments: what a step gave, whether it counts, and which episodes ended with it.

Gymnasium's vector environments reset a finished one in the step after its last (NEXT_STEP), in the last step itself
(SAME_STEP) or not at all (DISABLED). In the first case a step ignores the action and returns the first observation of
the next episode: it is no transition, and `Step.counts` says so. In the second the last observation is in the infos.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Episode:
    """A finished episode: the true return (rewards before any clipping, scaling or noise) and its length in steps."""

    environment: int
    episodic_return: float
    length: int


@dataclass(frozen=True)
class Step:
    """What one step of N environments gave.

    observations [N, ...]: what to act on next. rewards [N], float32, true ones. terminated, truncated [N]: where both
    hold it is a termination. counts [N]: False where the step only reset its environment. final_observations: the
    states in which the transitions ended, rows that did not end their episode are not to be read; None where no
    episode was truncated.
    """

    observations: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    counts: np.ndarray
    final_observations: np.ndarray | None
    episodes: list[Episode] = field(default_factory=list)


class EpisodeEnd(Protocol):
    """For a step: where the environment resets itself afterwards, and where the true episode is over; both [N] bool.

    They differ where a lost life ends an episode for the learner, and the game goes on.
    """

    def __call__(
        self, terminated: np.ndarray, truncated: np.ndarray, infos: Mapping[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]: ...


def every_end(terminated: np.ndarray, truncated: np.ndarray, infos: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """EpisodeEnd of an environment without lives: each end is a true one."""
    done = terminated | truncated
    return done, done


class Environments:
    """N environments behind one face. `envs` is a gymnasium VectorEnv, or what steps like one.

    autoreset: next_step, same_step or disabled; default: what the environment's metadata says, and without it
    next_step, which is gymnasium's default and envpool's way. background: `envs` has send and recv, and steps on
    threads of its own between them.

    Raises ValueError for an unknown autoreset mode.
    """

    def __init__(
        self,
        envs: Any,
        *,
        episode_end: EpisodeEnd = every_end,
        autoreset: str | None = None,
        background: bool = False,
    ):
        mode = autoreset or getattr(envs, "metadata", {}).get("autoreset_mode") or "next_step"
        mode = str(getattr(mode, "name", mode)).lower()
        if mode not in ("next_step", "same_step", "disabled"):
            raise ValueError(f"autoreset mode {mode!r} given, expected next_step, same_step or disabled")
        self.envs, self.autoreset, self.episode_end, self.background = envs, mode, episode_end, background
        self.num_envs: int = envs.num_envs
        self.observation_space = envs.single_observation_space
        self.action_space = envs.single_action_space
        self._start()

    def _start(self) -> None:
        self._resetting = np.zeros(self.num_envs, dtype=bool)
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)
        self._sent: np.ndarray | None = None

    def reset(self, seed: int | None = None) -> np.ndarray:
        """Start all episodes anew; [N, ...]. `seed` seeds environment i with seed + i."""
        self._start()
        observations = np.asarray(self.envs.reset(seed=seed)[0])
        _require_finite(observations, "a first observation")
        return observations

    def step(self, actions: np.ndarray) -> Step:
        """Act in all environments. `actions` [N, ...] as the environments take them."""
        self.send(actions)
        return self.receive()

    def send(self, actions: np.ndarray) -> None:
        """Begin a step, in the background where the environments can; `receive` ends it."""
        self._sent = actions
        if self.background:
            self.envs.send(actions)

    def receive(self) -> Step:
        """What the step begun by `send` gave."""
        assert self._sent is not None, "send comes first"
        observations, rewards, terminated, truncated, infos = (
            self.envs.recv() if self.background else self.envs.step(self._sent)
        )
        self._sent = None
        counts = ~self._resetting
        terminated, truncated = (np.asarray(flags, dtype=bool) & counts for flags in (terminated, truncated))
        truncated &= ~terminated
        rewards = np.where(counts, np.asarray(rewards, dtype=np.float32), np.float32(0))
        observations = np.asarray(observations)
        _require_finite(observations, "an observation")
        _require_finite(rewards, "a reward")
        resets, over = self.episode_end(terminated, truncated, infos)
        resets, over = resets & counts, over & counts

        self._returns += rewards
        self._lengths += counts
        episodes = [Episode(int(i), float(self._returns[i]), int(self._lengths[i])) for i in np.flatnonzero(over)]
        self._returns[over], self._lengths[over] = 0, 0

        final = None
        if self.autoreset == "same_step":
            self._resetting = np.zeros_like(counts)
            final = _final_observations(observations, resets, infos) if truncated.any() else None
        else:
            self._resetting = resets
            final = observations if truncated.any() else None
            if self.autoreset == "disabled" and resets.any():
                fresh, _ = self.envs.reset(options={"reset_mask": resets})
                observations, self._resetting = np.asarray(fresh), np.zeros_like(counts)
        return Step(observations, rewards, terminated, truncated, counts, final, episodes)

    def close(self) -> None:
        """Close the environments; what has crashed stays silent."""
        try:
            self.envs.close()
        except Exception:  # the cause of the crash is what is to be reported, not what follows from it
            return


def _require_finite(values: np.ndarray, what: str) -> None:
    """ValueError, with the environment's number: from here on the statistics and the weights would be NaN."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        i = int(np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))[0])
        raise ValueError(f"environment {i} gave {what} that is NaN or infinite")


def _final_observations(observations: np.ndarray, ended: np.ndarray, infos: Mapping[str, Any]) -> np.ndarray:
    """SAME_STEP: the last observation of the episodes that ended, the given observation elsewhere."""
    if "final_obs" not in infos:
        raise RuntimeError("an episode was truncated, and the environment gave no final_obs: its end has no value")
    final = observations.copy()
    for i in np.flatnonzero(ended):
        final[i] = infos["final_obs"][i]
    return final
