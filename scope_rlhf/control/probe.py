"""Does an environment start, and can it be filmed? Tried on one of it before a run begins."""

from typing import Any

import numpy as np

from scope_rlhf.control.environments import EnvironmentSpec, make_environments, make_single
from scope_rlhf.control.rollout import CRASHES


def probe_spaces(spec: EnvironmentSpec) -> tuple[Any, Any]:
    """(observation space, action space) of one environment, which is made, reset (but for envpool), and closed again.

    ValueError where it cannot be made, with its own words.
    """
    try:
        return _probe(spec)
    except ImportError:
        raise
    except CRASHES as error:
        given = f" with env_kwargs={dict(spec.kwargs)}" if spec.kwargs else ""
        at = "--env_kwargs" if spec.kwargs else "--env"
        said = " ".join(str(error).split())[:300].removesuffix(f"; set {at}.")
        raise ValueError(f"{spec.name} does not start{given}: {type(error).__name__}: {said}; set {at}.") from error


def probe_film(spec: EnvironmentSpec, observation_space: Any) -> None:
    """Render a frame of the environment that a film would be made of. ValueError where that does not work here."""
    try:
        env = make_single(spec)
        try:
            observation, _ = env.reset(seed=0)
            frame = np.asarray(env.render())
        finally:
            env.close()
    except CRASHES as error:
        said = " ".join(str(error).split())[:300]
        hint = "; without a display, set the variable MUJOCO_GL=egl or osmesa" if spec.suite == "mujoco" else ""
        raise ValueError(
            f"{spec.name} cannot be filmed here: {type(error).__name__}: {said}{hint}; leave --video out."
        ) from error
    if frame.ndim != 3 or np.shape(observation) != observation_space.shape:
        raise ValueError(
            f"{spec.name} cannot be filmed: alone it gives frames of shape {frame.shape} and observations of "
            f"{np.shape(observation)}, in training observations have {observation_space.shape}; leave --video out."
        )


def _probe(spec: EnvironmentSpec) -> tuple[Any, Any]:
    if spec.backend == "gymnasium" and spec.suite != "atari":
        import gymnasium

        # No wrappers: the spaces are the environment's own.
        env = gymnasium.make(spec.name, disable_env_checker=True, **spec.kwargs)
        spaces = env.observation_space, env.action_space
        env.reset(seed=0)
        env.close()
        return spaces
    envs = make_environments(spec, 1, 0)
    spaces = envs.observation_space, envs.action_space
    if spec.backend != "envpool":
        envs.reset(0)
    envs.close()
    return spaces
