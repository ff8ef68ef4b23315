"""Environments that do what a script says: rewards, ends and observations are known beforehand."""

from typing import Any

import gymnasium
import numpy as np

MODES = ("NEXT_STEP", "SAME_STEP", "DISABLED")
SPOILT = 1000.0  # what a step of reset returns as its reward; it must never be seen


def place(environment: int, episode: int, t: int) -> list[float]:
    """The observation that says where it was made."""
    return [float(environment), float(episode), float(t)]


class ScriptedVector:
    """A vector environment in one of the autoreset modes.

    script[i]: the episodes of environment i in order, over and over, each (rewards, "terminated", "truncated" or
    "both"). A step of reset returns the reward SPOILT and all flags set.
    """

    def __init__(self, script: list[list[tuple[list[float], str]]], mode: str):
        self.script, self.num_envs = script, len(script)
        self.metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode[mode]}
        self.mode, self.closed = mode, False
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.single_action_space = gymnasium.spaces.Discrete(1000)
        self.actions: list[np.ndarray] = []

    def _place(self, i: int) -> list[float]:
        return place(i, self.episode[i], self.t[i])

    def _observations(self) -> np.ndarray:
        return np.array([self._place(i) for i in range(self.num_envs)], dtype=np.float32)

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if options is None:
            self.episode, self.t, self.ended = ([x] * self.num_envs for x in (0, 0, False))
        else:
            for i in np.flatnonzero(options["reset_mask"]):
                assert self.ended[i]
                self._start(i)
        return self._observations(), {}

    def _start(self, i: int) -> None:
        self.episode[i], self.t[i], self.ended[i] = self.episode[i] + 1, 0, False

    def step(self, actions: np.ndarray) -> Any:
        self.actions.append(actions)
        rewards, terminated, truncated = np.zeros(self.num_envs), *np.zeros((2, self.num_envs), dtype=bool)
        final = np.full(self.num_envs, None, dtype=object)
        for i, episodes in enumerate(self.script):
            if self.ended[i]:
                assert self.mode == "NEXT_STEP", "a finished environment was stepped"
                self._start(i)
                rewards[i], terminated[i], truncated[i] = SPOILT, True, True
                continue
            planned, end = episodes[self.episode[i] % len(episodes)]
            rewards[i] = planned[self.t[i]]
            self.t[i] += 1
            if self.t[i] == len(planned):
                terminated[i], truncated[i] = end in ("terminated", "both"), end in ("truncated", "both")
                self.ended[i] = True
                if self.mode == "SAME_STEP":
                    final[i] = np.array(self._place(i), dtype=np.float32)
                    self._start(i)
        infos = {"final_obs": final} if self.mode == "SAME_STEP" and any(x is not None for x in final) else {}
        return self._observations(), rewards, terminated, truncated, infos

    def close(self) -> None:
        self.closed = True


class ScriptedEnv(gymnasium.Env):
    """One gymnasium environment with the same script; observation (episode, t)."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(1000)

    def __init__(self, episodes: list[tuple[list[float], str]]):
        self.episodes, self.episode = episodes, -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return np.array([self.episode, 0], dtype=np.float32), {}

    def step(self, action: Any) -> Any:
        planned, end = self.episodes[self.episode % len(self.episodes)]
        reward = planned[self.t]
        self.t += 1
        over = self.t == len(planned)
        observation = np.array([self.episode, self.t], dtype=np.float32)
        return observation, reward, over and end != "truncated", over and end != "terminated", {}
