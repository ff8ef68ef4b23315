"""Environments by suite and name: Atari, Procgen, MuJoCo, Box2D, classic control, or any registered with gymnasium.

`resolve_environment` checks suite, name, protocol, backend and extras without starting anything;
`make_environments` starts them. Rewards are always the true ones: clipping, scaling and noise come later (rewards.py).

| suite | default backend | others | names |
|---|---|---|---|
| atari | ale (ale_py.vector_env, C++) | envpool, gymnasium | Breakout, MsPacman, ... |
| procgen | envpool | | StarPilot, CoinRun, ... |
| mujoco | gymnasium | envpool | HalfCheetah, Hopper-v5, ... |
| box2d | gymnasium | envpool | LunarLander, BipedalWalker, CarRacing, ... |
| classic | gymnasium | envpool | CartPole, Acrobot, Pendulum, ... |
| gymnasium | gymnasium | | any registered id, also module:Id-v0 |
"""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from scope_rlhf.control.atari import (
    ATARI_PROTOCOLS,
    AtariProtocol,
    atari_games,
    make_atari,
    plain_game,
    single_atari,
)
from scope_rlhf.control.registry import not_in_suite, registered_id
from scope_rlhf.control.vector import Environments, every_end
from scope_rlhf.runtime.settings import did_you_mean
from scope_rlhf.runtime.threads import available_cores

SUITES: dict[str, tuple[str, ...]] = {
    "atari": ("ale", "envpool", "gymnasium"),
    "procgen": ("envpool",),
    "mujoco": ("gymnasium", "envpool"),
    "box2d": ("gymnasium", "envpool"),
    "classic": ("gymnasium", "envpool"),
    "gymnasium": ("gymnasium",),
}
# The packages that a suite or a backend imports, and the extra that installs them.
_NEEDS = {
    "atari": (("gymnasium", "ale_py"), "atari"),
    "procgen": (("gymnasium",), "procgen"),
    "mujoco": (("gymnasium", "mujoco"), "mujoco"),
    "box2d": (("gymnasium", "Box2D", "pygame"), "box2d"),
    "classic": (("gymnasium",), "classic"),
    "gymnasium": (("gymnasium",), "classic"),
}
# What env_kwargs must not change behind the back of settings and protocols.
_NOT_KWARGS = {
    "num_envs": "set --num_envs",
    "seed": "set --seed",
    "render_mode": "set --video to film an episode",
    "episodic_life": "set --episodic_life",
    "life_loss_info": "set --episodic_life",
    "repeat_action_probability": "set --repeat_action_probability",
    "reward_clipping": "set --clip_rewards; logged returns stay the true ones",
    "reward_clip": "set --clip_rewards; logged returns stay the true ones",
    "batch_size": "all environments step together; leave it out",
    "autoreset_mode": "finished environments are reset in the way that the backend has; leave it out",
}
PROCGEN_MODES = ("easy", "hard", "extreme")


@dataclass(frozen=True)
class EnvironmentSpec:
    """A checked environment: what make_environments needs, and what the run records.

    name: the backend's own id. protocol: for Atari how frames, resets and lives are treated; for Procgen the
    distribution mode.
    """

    suite: str
    name: str
    backend: str
    protocol: str | None = None
    atari: AtariProtocol | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    envpool_id: str | None = None


def resolve_environment(
    suite: str,
    name: str,
    *,
    backend: str | None = None,
    protocol: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    episodic_life: bool | None = None,
    repeat_action_probability: float | None = None,
) -> EnvironmentSpec:
    """The environment of that name, checked; nothing is started.

    Raises:
        ValueError: unknown suite, backend, protocol or name (the nearest names are suggested), or an option that the
            suite would ignore.
        ImportError: a package is missing; the message has the pip line.
    """
    if suite not in SUITES:
        raise ValueError(
            f"suite {suite!r} is unknown{did_you_mean(suite, SUITES)}; valid: {', '.join(SUITES)}; set --suite."
        )
    if backend is None:
        drawn = suite == "atari" and protocol in ATARI_PROTOCOLS and ATARI_PROTOCOLS[protocol].random_frameskip
        backend = "gymnasium" if drawn else SUITES[suite][0]
    if backend not in SUITES[suite]:
        raise ValueError(f"backend {backend!r} given, suite {suite} has {', '.join(SUITES[suite])}; set --backend.")
    if not name:
        raise ValueError(f"suite {suite} needs the name of an environment; set --env.")
    if suite != "atari" and episodic_life is not None:
        raise ValueError(f"episodic_life={episodic_life} given, but only suite atari has lives; leave it out.")
    _require(suite, backend)
    kwargs = dict(env_kwargs or {})
    for key, instead in _NOT_KWARGS.items():
        if key in kwargs:
            raise ValueError(f"env_kwargs has {key!r}, which is not for the environment: {instead}.")
    if suite == "atari":
        return _resolve_atari(name, backend, protocol, kwargs, episodic_life, repeat_action_probability)
    if suite == "procgen":
        return _resolve_procgen(name, protocol, kwargs)
    if protocol is not None:
        raise ValueError(f"protocol={protocol!r} given, but suite {suite} has none; leave --protocol out.")
    spec_id = registered_id(suite, name)
    if backend == "envpool":
        from scope_rlhf.control.envpools import require_envpool_id

        return EnvironmentSpec(suite, spec_id, backend, kwargs=kwargs, envpool_id=require_envpool_id(spec_id, suite))
    return EnvironmentSpec(suite, spec_id, backend, kwargs=kwargs)


def make_environments(spec: EnvironmentSpec, num_envs: int, seed: int, *, training: bool = True) -> Environments:
    """Start `num_envs` environments, seeded seed, seed + 1, ...; reset them before the first step.

    training=False: an episode is a whole game also where the protocol ends it at a lost life.
    """
    if spec.suite == "atari":
        assert spec.atari is not None
        return make_atari(spec.name, spec.backend, spec.atari, num_envs, seed, training=training, kwargs=spec.kwargs)
    if spec.backend == "envpool":
        from scope_rlhf.control.envpools import make_envpool

        return Environments(make_envpool(str(spec.envpool_id), num_envs, seed, spec.kwargs), episode_end=every_end)
    import gymnasium

    envs = gymnasium.make_vec(spec.name, num_envs=num_envs, **spec.kwargs)
    return Environments(envs)


def make_parts(spec: EnvironmentSpec, num_envs: int, seed: int) -> list[Environments]:
    """The same environments in two parts where they step on threads of their own (Atari's ale), else in one.

    One part steps while the network acts for the other, and has half of the cores.
    """
    if spec.backend != "ale" or num_envs < 2:
        return [make_environments(spec, num_envs, seed)]
    spec = replace(spec, kwargs={"num_threads": max(1, available_cores() // 2), **spec.kwargs})
    first = num_envs // 2
    return [make_environments(spec, first, seed), make_environments(spec, num_envs - first, seed + first)]


def make_single(spec: EnvironmentSpec) -> Any:
    """One gymnasium environment that renders RGB frames, observations and actions as in training; for videos.

    Raises ValueError where a suite offers none.
    """
    import gymnasium

    if spec.suite == "atari":
        assert spec.atari is not None
        return single_atari(spec.name, spec.atari)
    if spec.suite == "procgen":
        raise ValueError("videos of Procgen are not offered: envpool renders no single environment; leave --video out.")
    return gymnasium.make(spec.name, render_mode="rgb_array", **spec.kwargs)


def _resolve_atari(
    name: str,
    backend: str,
    protocol: str | None,
    kwargs: dict[str, Any],
    episodic_life: bool | None,
    repeat_action_probability: float | None,
) -> EnvironmentSpec:
    games = atari_games()
    plain = plain_game(name)
    if plain not in games:
        raise ValueError(not_in_suite("atari", name, games))
    if plain != name:
        raise ValueError(
            f"env={name!r} given, expected the game alone, {plain!r}; its protocol is --protocol "
            f"{' or '.join(ATARI_PROTOCOLS)}."
        )
    chosen = protocol or "v5"
    if chosen not in ATARI_PROTOCOLS:
        raise ValueError(
            f"protocol {protocol!r} is unknown{did_you_mean(protocol, ATARI_PROTOCOLS)}; valid for Atari: "
            f"{', '.join(ATARI_PROTOCOLS)}; set --protocol."
        )
    settings = ATARI_PROTOCOLS[chosen].replaced(episodic_life, repeat_action_probability)
    _at_least(1, kwargs, "stack_num", "frameskip", "img_height", "img_width")
    if settings.random_frameskip and backend != "gymnasium":
        raise ValueError(
            f"protocol {chosen} draws its frameskip, backend {backend} takes one number; set --backend gymnasium, or "
            "leave it out."
        )
    return EnvironmentSpec("atari", plain, backend, chosen, settings, kwargs)


def _resolve_procgen(name: str, protocol: str | None, kwargs: dict[str, Any]) -> EnvironmentSpec:
    from scope_rlhf.control.envpools import procgen_games

    mode = protocol or "hard"
    if mode not in PROCGEN_MODES:
        raise ValueError(f"protocol {mode!r} is unknown; Procgen has {', '.join(PROCGEN_MODES)}; set --protocol.")
    games = procgen_games()
    found = {game.lower(): game for game in games}.get(name.lower())
    if found is None:
        raise ValueError(not_in_suite("procgen", name, games))
    _at_least(0, kwargs, "num_levels", "start_level")
    return EnvironmentSpec(
        "procgen", found, "envpool", mode, kwargs=kwargs, envpool_id=f"{found}{mode.capitalize()}-v0"
    )


def _at_least(least: int, kwargs: Mapping[str, Any], *names: str) -> None:
    """ale and envpool hang on some of what is no such number."""
    for name in names:
        value = kwargs.get(name, least)
        if not isinstance(value, int) or value < least:
            raise ValueError(f"env_kwargs has {name}={value!r}, expected a whole number >= {least}; set --env_kwargs.")


def _require(suite: str, backend: str) -> None:
    packages, extra = _NEEDS[suite]
    if backend == "envpool":
        packages = ("gymnasium", "envpool")
    elif suite == "atari" and backend == "gymnasium":
        packages = (*packages, "cv2")
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        extra = "envpool" if backend == "envpool" and suite != "procgen" else extra
        raise ImportError(
            f"suite {suite} on backend {backend} needs {' and '.join(missing)}. Install with "
            f'`pip install "scope-rlhf[{extra}]"`.'
        )
