"""Replay of DQN: frames once, as bytes; stacks are put together when they are sampled.

A stack of four frames shares three with the stack before it. Each environment has a ring of frames: an observation that
continues the one before adds its newest frame, any other (the start of an episode) adds all of its frames. That it
continues is found by comparing, so a stack is given back exactly as it came.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import psutil
import torch


class Replay:
    """Transitions of N environments, the newest `capacity` of them in all; sampled uniformly with replacement.

    shape, dtype: of one observation. stacked: its first dimension is a stack of frames, the newest one last.
    Per environment: `add` in order of time. Memory: about capacity x one frame, not one stack.
    """

    def __init__(self, capacity: int, num_envs: int, shape: tuple[int, ...], dtype: np.dtype, *, stacked: bool):
        if capacity < num_envs:
            raise ValueError(f"buffer_size={capacity} is less than the {num_envs} environments; set --buffer_size.")
        self.slots, self.num_envs = capacity // num_envs, num_envs
        self.depth = shape[0] if stacked else 1
        self._frame_shape = shape[1:] if stacked else shape
        self._stacked = stacked
        # Starts of episodes take `depth` frames: with room for them rarely a transition is dropped early.
        self._ring = self.slots + self.slots // 16 + 2 * self.depth + 2
        self._frames = np.zeros((num_envs, self._ring, *self._frame_shape), dtype=dtype)
        self._newest = np.full(num_envs, -1, dtype=np.int64)  # number of the newest frame, counted from 0
        self._before = np.full((num_envs, self.slots), -1, dtype=np.int64)  # number of the newest frame of the state
        self._after = np.full((num_envs, self.slots), -1, dtype=np.int64)
        self._actions = np.zeros((num_envs, self.slots), dtype=np.int64)
        self._rewards = np.zeros((num_envs, self.slots), dtype=np.float32)
        self._terminated = np.zeros((num_envs, self.slots), dtype=bool)
        self._added = np.zeros(num_envs, dtype=np.int64)
        self._last: list[np.ndarray | None] = [None] * num_envs

    def __len__(self) -> int:
        return int(np.minimum(self._added, self.slots).sum())

    def add(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        rewards: np.ndarray,
        terminated: np.ndarray,
        next_observations: np.ndarray,
        counts: np.ndarray,
    ) -> None:
        """One step of all environments, arrays [N, ...]; rows that do not count are left out."""
        for i in np.flatnonzero(counts):
            before = self._push(i, observations[i])
            after = self._push(i, next_observations[i])
            slot = self._added[i] % self.slots
            self._before[i, slot], self._after[i, slot] = before, after
            self._actions[i, slot], self._rewards[i, slot] = actions[i], rewards[i]
            self._terminated[i, slot] = terminated[i]
            self._added[i] += 1

    def _push(self, i: int, observation: np.ndarray) -> int:
        """Number of the observation's newest frame, after adding what the ring does not have of it."""
        last = self._last[i]
        if last is not None and np.array_equal(last, observation):
            return int(self._newest[i])
        frames = observation if self._stacked else observation[None]
        continues = self._stacked and last is not None and self.depth > 1 and np.array_equal(last[1:], observation[:-1])
        for frame in frames[-1:] if continues else frames:
            self._newest[i] += 1
            self._frames[i, self._newest[i] % self._ring] = frame
        self._last[i] = observation.copy()
        return int(self._newest[i])

    def sample(self, batch_size: int, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        """observations, next_observations [B, ...], actions, rewards, terminated [B]. ValueError where it is empty."""
        filled = np.minimum(self._added, self.slots)
        total = int(filled.sum())
        if not total:
            raise ValueError("the replay is empty: nothing to sample")
        # Transitions whose first frame was overwritten are drawn again; there are few, and none before the ring is
        # full.
        bounds = np.cumsum(filled)
        chosen_i, chosen_slot = np.empty(0, np.int64), np.empty(0, np.int64)
        while len(chosen_i) < batch_size:
            flat = generator.integers(total, size=batch_size - len(chosen_i))
            i = np.searchsorted(bounds, flat, side="right")
            slot = flat - (bounds[i] - filled[i])
            whole = self._before[i, slot] - self.depth + 1 > self._newest[i] - self._ring
            chosen_i, chosen_slot = np.concatenate([chosen_i, i[whole]]), np.concatenate([chosen_slot, slot[whole]])
        i, slot = chosen_i, chosen_slot
        return {
            "observations": self._stack(i, self._before[i, slot]),
            "actions": torch.from_numpy(self._actions[i, slot]),
            "rewards": torch.from_numpy(self._rewards[i, slot]),
            "terminated": torch.from_numpy(self._terminated[i, slot]),
            "next_observations": self._stack(i, self._after[i, slot]),
        }

    def _stack(self, i: np.ndarray, newest: np.ndarray) -> torch.Tensor:
        numbers = newest[:, None] + np.arange(1 - self.depth, 1)
        frames = self._frames[i[:, None], numbers % self._ring]
        return torch.from_numpy(frames if self._stacked else frames[:, 0])

    _ARRAYS = ("_newest", "_before", "_after", "_actions", "_rewards", "_terminated", "_added")

    def state_dict(self) -> dict[str, Any]:
        """All that is filled, as tensors."""
        used = int(min(self._newest.max() + 1, self._ring))
        state: dict[str, Any] = {name: torch.from_numpy(getattr(self, name)) for name in self._ARRAYS}
        state["frames"] = torch.from_numpy(self._frames[:, :used])
        state["last"] = [None if last is None else torch.from_numpy(last) for last in self._last]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """ValueError where the replay has another size."""
        if state["_before"].shape != self._before.shape:
            raise ValueError(
                f"the checkpoint's replay holds {tuple(state['_before'].shape)} transitions (environments x slots), "
                f"this run's {self._before.shape}; set --buffer_size and --num_envs to what was saved."
            )
        for name in self._ARRAYS:
            getattr(self, name)[...] = state[name].numpy()
        self._frames[:, : state["frames"].shape[1]] = state["frames"].numpy()
        self._last = [None if last is None else last.numpy().copy() for last in state["last"]]


def check_memory(buffer_size: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """ValueError where frames [*shape] of so many transitions are more than this machine's memory: it would end the run
    once they are there.
    """
    needed, there = 17 / 16 * buffer_size * math.prod(shape) * np.dtype(dtype).itemsize, psutil.virtual_memory().total
    if needed > there:
        raise ValueError(
            f"buffer_size={buffer_size} needs {needed / 2**30:,.1f} GiB for its frames, this machine has "
            f"{there / 2**30:,.1f} GiB; set --buffer_size."
        )
