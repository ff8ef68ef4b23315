"""From true rewards to what the learner sees: sign, scale, and noise. Training only; evaluation sees none of it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from scope_rlhf.control.normalisation import RewardNormaliser, Sum


class RewardShaper:
    """In this order: clip to the sign, flip the sign with probability `flip`, scale by the running spread, add noise.

    The noise of the symmetric paper (arXiv 2405.17618): Atari rewards are flipped with probability .1, MuJoCo's get
    N(0, .05) after their normalisation. It has a generator of its own, so that the environments and the policy's
    sampling are those of a run without noise.
    """

    def __init__(
        self,
        num_envs: int,
        gamma: float,
        seed: int,
        *,
        clip_rewards: bool = False,
        normalize_rewards: bool = False,
        reward_flip_probability: float = 0.0,
        reward_noise_std: float = 0.0,
    ):
        self.clip_rewards, self.flip, self.noise_std = clip_rewards, reward_flip_probability, reward_noise_std
        self.normaliser = RewardNormaliser(num_envs, gamma) if normalize_rewards else None
        self._generator = np.random.default_rng([seed, 0x6E6F697365])  # "noise"

    def __call__(self, rewards: np.ndarray, ended: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Rewards [N] float32 to train on. ended, counts [N]: as in RewardNormaliser; rows that do not count give 0."""
        shaped = np.sign(rewards) if self.clip_rewards else rewards
        if self.flip:
            shaped = np.where(self._generator.random(len(shaped)) < self.flip, -shaped, shaped)
        if self.normaliser is not None:
            shaped = self.normaliser(shaped, ended, counts)
        if self.noise_std:
            shaped = shaped + self.noise_std * self._generator.standard_normal(len(shaped))
        return np.where(counts, shaped, 0).astype(np.float32)

    def synchronise(self, all_reduce: Sum | None) -> None:
        if self.normaliser is not None:
            self.normaliser.moments.synchronise(all_reduce)

    def state_dict(self) -> dict[str, Any]:
        """The generator of this process and the statistics, which are common to all."""
        moments = None if self.normaliser is None else self.normaliser.moments.state_dict()
        return {"generator": self._generator.bit_generator.state, "moments": moments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on; the running returns start anew, as the environments do."""
        self._generator.bit_generator.state = state["generator"]
        if self.normaliser is not None and state["moments"] is not None:
            self.normaliser.moments.load_state_dict(state["moments"])
            self.normaliser.restart()


class StickyActions:
    """With probability p an environment repeats its last action (Machado et al., arXiv 1709.06009), for environments
    without such an option of their own. Not over the border of an episode. Training and evaluation alike.
    """

    def __init__(self, probability: float, seed: int):
        self.probability = probability
        self._generator = np.random.default_rng([seed, 0x737469636B79])  # "sticky"
        self._last: np.ndarray | None = None
        self._fresh: np.ndarray | None = None

    def __call__(self, actions: np.ndarray) -> np.ndarray:
        """What is done in place of `actions` [N, ...]."""
        if not self.probability:
            return actions
        if self._last is None or self._fresh is None:
            self._last, self._fresh = actions, np.ones(len(actions), dtype=bool)
        repeats = (self._generator.random(len(actions)) < self.probability) & ~self._fresh
        self._last = np.where(repeats.reshape(-1, *[1] * (actions.ndim - 1)), self._last, actions)
        return self._last

    def observe(self, ended: np.ndarray, counts: np.ndarray) -> None:
        """After a step: where an episode is over, or its environment was only reset, nothing is repeated next."""
        self._fresh = ended | ~counts

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self._generator.bit_generator.state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._generator.bit_generator.state = state["generator"]
        self._last = self._fresh = None
