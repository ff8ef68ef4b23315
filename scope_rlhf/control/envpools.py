"""envpool, an optional backend: C++ environments on a thread pool. Its Procgen loads Qt 5, a wheel on PyPI."""

import ctypes
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scope_rlhf.runtime.settings import did_you_mean

# In this order: each needs the ones before it.
_QT = ("libicudata.so.56", "libicuuc.so.56", "libicui18n.so.56", "libQt5Core.so.5", "libQt5Gui.so.5")


def make_envpool(env_id: str, num_envs: int, seed: int, kwargs: Mapping[str, Any]) -> Any:
    """The environments; `kwargs` go to envpool.make. ValueError for one that envpool does not have."""
    envpool = _import_envpool()
    try:
        envs = envpool.make(env_id, env_type="gymnasium", num_envs=num_envs, seed=seed, **kwargs)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"envpool refuses {env_id} with {dict(kwargs)}: {error}; set --env_kwargs.") from error
    return _EnvPool(envs, num_envs)


def envpool_ids() -> list[str]:
    """All ids that this envpool has."""
    return sorted(_import_envpool().list_all_envs())


def require_envpool_id(env_id: str, suite: str) -> str:
    """The id as it is. ValueError, with the nearest ones, where this envpool has none of it."""
    ids = envpool_ids()
    if env_id not in ids:
        raise ValueError(
            f"envpool has no {env_id!r}{did_you_mean(env_id, ids)}; set --backend gymnasium (suite {suite})."
        )
    return env_id


def procgen_games() -> list[str]:
    """Names of the Procgen games: Starpilot, Coinrun, ..."""
    return sorted({match[1] for i in envpool_ids() if (match := re.fullmatch(r"(\w+?)(Easy|Hard|Extreme)-v0", i))})


class _EnvPool:
    """envpool with single spaces and a batch of N, as gymnasium's vector environments have them."""

    metadata = {"autoreset_mode": "next_step"}  # noqa: RUF012

    def __init__(self, envs: Any, num_envs: int):
        self.envs, self.num_envs = envs, num_envs
        self.single_observation_space, self.single_action_space = envs.observation_space, envs.action_space

    def reset(self, seed: int | None = None) -> Any:
        """`seed` is not used: envpool is seeded when it is made."""
        return self.envs.reset()

    def step(self, actions: Any) -> Any:
        return self.envs.step(actions)

    def close(self) -> None:
        self.envs.close()


def _import_envpool() -> Any:
    if importlib.util.find_spec("envpool") is None:
        raise ImportError('envpool is not installed. Install it with `pip install "scope-rlhf[envpool]"`.')
    _preload_qt()
    import envpool  # pyright: ignore[reportMissingImports]

    return envpool


def _preload_qt() -> None:
    """Load the Qt 5 libraries of the wheel PyQt5-Qt5, where there is one, before envpool looks for the system's."""
    spec = importlib.util.find_spec("PyQt5")
    for place in spec.submodule_search_locations or () if spec else ():
        folder = Path(place) / "Qt5" / "lib"
        for name in _QT:
            if (folder / name).exists():
                ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
