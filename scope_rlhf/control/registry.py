"""Names in gymnasium's registry, and which suite has one."""

import importlib
import importlib.util
import re
from collections.abc import Iterable

from scope_rlhf.control.atari import atari_games, plain_game
from scope_rlhf.control.envpools import procgen_games
from scope_rlhf.runtime.settings import did_you_mean

_MODULES = {"mujoco": "envs.mujoco", "box2d": "envs.box2d", "classic": "envs.classic_control"}


def registered_id(suite: str, name: str) -> str:
    """The id in gymnasium's registry; a name without a version is its newest."""
    import gymnasium

    if ":" in name:  # module:Id-v0, the module registers it
        module, _, name = name.partition(":")
        if not module or not name:
            raise ValueError(f"env {module}:{name} must be module:Id, such as my_module:MyEnv-v0; set --env.")
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise ImportError(f"env {module}:{name}: the module needs another one: {error}") from error
            raise ValueError(f"env {module}:{name}: there is no module {module!r} to import; set --env.") from error
    inside = _MODULES.get(suite)
    known = [
        key
        for key, spec in gymnasium.registry.items()
        if inside is None or (isinstance(spec.entry_point, str) and inside in spec.entry_point)
    ]
    versions = [key for key in known if re.fullmatch(rf"{re.escape(name)}-v\d+", key)]
    chosen = name if name in known else max(versions, key=lambda key: int(key.rpartition("-v")[2]), default=None)
    if chosen is None:
        raise ValueError(not_in_suite(suite, name, {key.rpartition("-v")[0] or key for key in known}))
    return chosen


def not_in_suite(suite: str, name: str, known: Iterable[str]) -> str:
    """What to say of a name that the suite does not have: the suite that has it, or the nearest `known` names."""
    if elsewhere := suite_of(name):
        return f"environment {name!r} is not in suite {suite}, but in {elsewhere}; set --suite {elsewhere}."
    known = sorted(known)
    listed = f"; valid: {', '.join(known)}" if len(known) < 30 else ""
    near = did_you_mean(name.rpartition("-v")[0] or name, known)
    return f"environment {name!r} is not in suite {suite}{near}{listed}; set --env, or --suite."


def suite_of(name: str) -> str | None:
    """The suite that has an environment of this name, with or without its version, as far as packages are installed."""
    import gymnasium

    for key, spec in gymnasium.registry.items():
        if name in (key, key.rpartition("-v")[0]):
            for suite, inside in _MODULES.items():
                if isinstance(spec.entry_point, str) and inside in spec.entry_point:
                    return suite
    if name.startswith("ALE/") or (importlib.util.find_spec("ale_py") and plain_game(name) in atari_games()):
        return "atari"
    if importlib.util.find_spec("envpool") and name.lower() in map(str.lower, procgen_games()):
        return "procgen"
    return None
