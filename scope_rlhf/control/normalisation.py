"""Running mean and spread of observations and of discounted returns, saved with the learner."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

Sum = Callable[[torch.Tensor], torch.Tensor]


class RunningMeanStd:
    """Mean and variance of all rows so far (Chan, Golub and LeVeque 1979), float64, elementwise.

    Several processes: each adds its own rows to what all have in common; `synchronise` makes the sum the new common
    part, so that every process has the same statistics at the start of a rollout. With one process it changes nothing.
    """

    def __init__(self, shape: tuple[int, ...] = ()):
        self.count, self.mean, self.squares = 0.0, np.zeros(shape), np.zeros(shape)
        self._common = (0.0, self.mean.copy(), self.squares.copy())

    @property
    def variance(self) -> np.ndarray:
        """Biased variance; 1 before the first rows."""
        return self.squares / self.count if self.count else np.ones_like(self.mean)

    def update(self, rows: np.ndarray) -> None:
        """Add rows [M, *shape]."""
        if not len(rows):
            return
        rows = np.asarray(rows, dtype=np.float64)
        mean = rows.mean(axis=0)
        self._add(len(rows), mean, np.square(rows - mean).sum(axis=0))

    def synchronise(self, all_reduce: Sum | None) -> None:
        """Add what every process has seen since the last call. `all_reduce` sums a tensor over the processes."""
        if all_reduce is not None:
            # Sums around the common mean: exact to rounding, and they add up.
            count, mean, squares = self._common
            gap = self.mean - mean
            new = self.count - count
            # Moments of the new rows around the common mean.
            first = self.count * gap
            second = self.squares + self.count * np.square(gap) - squares
            packed = torch.from_numpy(np.concatenate([[new], first.ravel(), second.ravel()]))
            total = all_reduce(packed).cpu().numpy()
            first = total[1 : 1 + first.size].reshape(first.shape)
            second = total[1 + first.size :].reshape(first.shape)
            self.count = count + total[0]
            shift = first / max(self.count, 1.0)
            self.mean = mean + shift
            self.squares = np.maximum(squares + second - self.count * np.square(shift), 0.0)
        self._common = (self.count, self.mean.copy(), self.squares.copy())

    def _add(self, count: float, mean: np.ndarray, squares: np.ndarray) -> None:
        whole, gap = self.count + count, mean - self.mean
        self.squares = self.squares + squares + np.square(gap) * self.count * count / whole
        self.mean = self.mean + gap * count / whole
        self.count = whole

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and tensors: what torch.load takes with weights_only."""
        return {
            "count": float(self.count),
            "mean": torch.from_numpy(np.array(self.mean)),
            "squares": torch.from_numpy(np.array(self.squares)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]
        self.mean, self.squares = (state[name].numpy().copy() for name in ("mean", "squares"))
        self._common = (self.count, self.mean.copy(), self.squares.copy())


class ObservationNormaliser:
    """(observation - mean) / sqrt(variance + 1e-8), clipped to +- 10, as gymnasium and Stable-Baselines3 do it."""

    clip, epsilon = 10.0, 1e-8

    def __init__(self, shape: tuple[int, ...]):
        self.moments = RunningMeanStd(shape)

    def __call__(self, observations: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
        """Normalised [N, *shape] float32. `counts` [N]: rows that enter the statistics first; None: none does."""
        if counts is not None:
            self.moments.update(observations[counts])
        scaled = (observations - self.moments.mean) / np.sqrt(self.moments.variance + self.epsilon)
        return np.clip(scaled, -self.clip, self.clip).astype(np.float32)


class RewardNormaliser:
    """reward / sqrt(variance of the discounted return + 1e-8), clipped to +- 10; the mean is not subtracted.

    The discounted return of environment i runs as R_i <- gamma R_i + r_i and starts anew with each episode.
    """

    clip, epsilon = 10.0, 1e-8

    def __init__(self, num_envs: int, gamma: float):
        self.moments, self.gamma = RunningMeanStd(), gamma
        self._running = np.zeros(num_envs)

    def __call__(self, rewards: np.ndarray, ended: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Scaled rewards [N]; ended [N]: the episode is over after this step; counts [N]: rows that are transitions."""
        self._running = np.where(counts, self._running * self.gamma + rewards, self._running)
        self.moments.update(self._running[counts])
        self._running[ended] = 0
        scaled = rewards / np.sqrt(self.moments.variance + self.epsilon)
        return np.clip(scaled, -self.clip, self.clip).astype(np.float32)

    def restart(self) -> None:
        """The environments begin new episodes: their running returns with them."""
        self._running[:] = 0
