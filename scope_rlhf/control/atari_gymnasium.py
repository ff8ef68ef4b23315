"""Atari through gymnasium's wrappers: slower than the vector environment; it can draw its frameskip, and render."""

from typing import Any

import ale_py
import gymnasium
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from scope_rlhf.control.atari import MAX_FRAMES, AtariProtocol

gymnasium.register_envs(ale_py)


def wrapped_atari(game: str, protocol: AtariProtocol, episodic_life: bool, kwargs: dict[str, Any]) -> gymnasium.Env:
    """One game, observations [4, 84, 84] uint8; `kwargs` go to gymnasium.make."""
    env = gymnasium.make(
        f"ALE/{game}-v5",
        frameskip=(2, 5) if protocol.random_frameskip else 1,  # gymnasium draws from 2, 3, 4
        repeat_action_probability=protocol.repeat_action_probability,
        full_action_space=False,
        max_num_frames_per_episode=MAX_FRAMES,
        **kwargs,
    )
    env = AtariPreprocessing(
        env,
        noop_max=protocol.noop_max,
        frame_skip=1 if protocol.random_frameskip else protocol.frameskip,
        screen_size=84,
        grayscale_obs=True,
    )
    return FrameStackObservation(_Lives(env, episodic_life, protocol.fire_reset), 4, padding_type="zero")


class _Lives(gymnasium.Wrapper):
    """Ends the episode at a lost life without resetting the game, and fires at its start; infos say game_over."""

    def __init__(self, env: gymnasium.Env, episodic: bool, fire: bool):
        super().__init__(env)
        meanings = env.unwrapped.get_action_meanings()  # type: ignore[attr-defined]
        self._episodic, self._fire = episodic, fire and "FIRE" in meanings[1:2]
        self._lives, self._over, self._latest = 0, True, None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if not self._over and seed is None:
            # The game goes on where it is: a step here would hide its reward, and perhaps the end of the game.
            return self._latest, {}
        observation, info = self.env.reset(seed=seed, options=options)
        if self._fire:
            observation, _, terminated, truncated, info = self.env.step(1)
            if terminated or truncated:
                observation, info = self.env.reset(options=options)
        self._over, self._lives, self._latest = False, self._lives_left(), observation
        return observation, info

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._latest = observation
        left = self._lives_left()
        self._over = bool(terminated or truncated)
        lost, self._lives = left < self._lives, left
        return observation, reward, terminated or (self._episodic and lost), truncated, info | {"game_over": self._over}

    def _lives_left(self) -> int:
        return self.env.unwrapped.ale.lives()  # type: ignore[attr-defined]
