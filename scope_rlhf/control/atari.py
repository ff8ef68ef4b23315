"""Atari: three protocols, and the environments that follow them.

| protocol | sticky actions | frameskip | no-ops first | a lost life ends the learner's episode | starts by firing |
|---|---|---|---|---|---|
| v5 (Machado et al., arXiv 1709.06009) | .25 | 4 | 0 | no | no |
| NoFrameskip-v4 (DQN, arXiv 1312.5602; baselines) | 0 | 4 | up to 30 | yes, in training | yes |
| v0 (what the scope paper names; gym's old ids) | .25 | 2, 3 or 4 at random | 0 | no | no |

All: grey 84 x 84, the maximum of the last two frames (v0: the last frame, as gym's old environments), 4 stacked,
minimal action set, an episode is cut after 108,000 frames. A game is reset when it is over, never at a lost life: the
vector environment's own episodic_life would reset the whole game there, so that no learner ever sees its second life.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scope_rlhf.control.vector import Environments

MAX_FRAMES = 108_000


@dataclass(frozen=True)
class AtariProtocol:
    """How one table's games are played; probabilities in [0, 1], counts in frames."""

    repeat_action_probability: float
    frameskip: int
    noop_max: int
    episodic_life: bool
    fire_reset: bool
    random_frameskip: bool = False

    def replaced(self, episodic_life: bool | None, repeat_action_probability: float | None) -> "AtariProtocol":
        """The protocol with what the user set. ValueError for a probability outside [0, 1]."""
        protocol = self if episodic_life is None else replace(self, episodic_life=episodic_life)
        if repeat_action_probability is None:
            return protocol
        if not 0 <= repeat_action_probability <= 1:
            raise ValueError(f"repeat_action_probability must lie in [0, 1], got {repeat_action_probability!r}.")
        return replace(protocol, repeat_action_probability=repeat_action_probability)


ATARI_PROTOCOLS = {
    "v5": AtariProtocol(0.25, 4, 0, episodic_life=False, fire_reset=False),
    "NoFrameskip-v4": AtariProtocol(0.0, 4, 30, episodic_life=True, fire_reset=True),
    "v0": AtariProtocol(0.25, 4, 0, episodic_life=False, fire_reset=False, random_frameskip=True),
}


def plain_game(name: str) -> str:
    """ALE/Pong-v5, PongNoFrameskip-v4 or Pong-v4 -> Pong."""
    return re.sub(r"^ALE/|(NoFrameskip)?-v\d+$", "", name)


def atari_games() -> dict[str, str]:
    """CamelCase name of every game -> name of its ROM."""
    import ale_py
    import gymnasium

    gymnasium.register_envs(ale_py)
    found = {}
    for name, spec in gymnasium.registry.items():
        if name.startswith("ALE/") and name.endswith("-v5") and "-ram" not in name:
            found[name[4:-3]] = spec.kwargs["game"]
    return found


def make_atari(
    game: str,
    backend: str,
    protocol: AtariProtocol,
    num_envs: int,
    seed: int,
    *,
    training: bool,
    kwargs: Mapping[str, Any],
) -> Environments:
    """The vector environment. `kwargs` go to the backend's constructor."""
    lives = protocol.episodic_life and training
    if backend == "ale":
        from ale_py.vector_env import AtariVectorEnv

        settings: dict[str, Any] = {
            "repeat_action_probability": protocol.repeat_action_probability,
            "frameskip": protocol.frameskip,
            "noop_max": protocol.noop_max,
            "use_fire_reset": protocol.fire_reset,
            "episodic_life": False,
            "life_loss_info": lives,
            "reward_clipping": False,
            "max_num_frames_per_episode": MAX_FRAMES,
        }
        envs = AtariVectorEnv(atari_games()[game], num_envs, **{**settings, **kwargs})
        return Environments(envs, episode_end=atari_episode_end, background=True)
    if backend == "envpool":
        from scope_rlhf.control.envpools import make_envpool

        settings = {
            "repeat_action_probability": protocol.repeat_action_probability,
            "frame_skip": protocol.frameskip,
            "noop_max": max(protocol.noop_max, 1),
            "use_fire_reset": protocol.fire_reset,
            "episodic_life": lives,
            "reward_clip": False,
            "max_episode_steps": MAX_FRAMES // protocol.frameskip,
        }
        return Environments(
            make_envpool(f"{game}-v5", num_envs, seed, {**settings, **kwargs}), episode_end=_envpool_episode_end
        )
    import gymnasium

    from scope_rlhf.control.atari_gymnasium import wrapped_atari

    made = [lambda: wrapped_atari(game, protocol, lives, dict(kwargs)) for _ in range(num_envs)]
    return Environments(gymnasium.vector.SyncVectorEnv(made), episode_end=_gymnasium_episode_end)


def single_atari(game: str, protocol: AtariProtocol) -> Any:
    """One environment with the same observations that renders RGB frames; a whole game is an episode."""
    from scope_rlhf.control.atari_gymnasium import wrapped_atari

    return wrapped_atari(game, protocol, False, {"render_mode": "rgb_array"})


def atari_episode_end(
    terminated: np.ndarray, truncated: np.ndarray, infos: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """ale: a game is over, and reset in the next step, where no life is left or time is up."""
    over = (terminated & (np.asarray(infos["lives"]) == 0)) | truncated
    return over, over


def _envpool_episode_end(
    terminated: np.ndarray, truncated: np.ndarray, infos: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """envpool: the step after a lost life is one of reset too, in which the game goes on."""
    done = terminated | truncated
    return done, (terminated & (np.asarray(infos["terminated"]) != 0)) | truncated


def _gymnasium_episode_end(
    terminated: np.ndarray, truncated: np.ndarray, infos: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """gymnasium: as envpool; its wrapper says in the infos which game is over."""
    done = terminated | truncated
    over = np.asarray(infos.get("game_over", np.ones_like(done)), dtype=bool)
    return done, (terminated & over) | truncated
