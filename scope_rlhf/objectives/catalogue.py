"""Objectives by name: the catalogue, the constructor, the trainer's clip, and the record kept of an objective."""

import dataclasses
import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from scope_rlhf.objectives.base import Objective
from scope_rlhf.objectives.focal import Focal
from scope_rlhf.objectives.policy_entropy import PolicyEntropy
from scope_rlhf.objectives.ppo import PPO
from scope_rlhf.objectives.scope import Scope
from scope_rlhf.objectives.symmetric import Symmetric
from scope_rlhf.objectives.user import load_user_class, source_of

OBJECTIVES: Mapping[str, type[Objective]] = MappingProxyType(
    {
        "ppo": PPO,
        "policy_entropy": PolicyEntropy,
        "focal": Focal,
        "scope": Scope,
        "symmetric": Symmetric,
    }
)


def make_objective(name: str, /, **kwargs: Any) -> Objective:
    """The objective of that name, or a user's own class by `path/to/file.py:Class` or `module:Class`.

    Raises:
        ValueError: unknown name or parameter (listing the valid ones), a value out of range, or a user's class that
            cannot be loaded or constructed.
    """
    cls = objective_class(name)
    valid = _parameters(cls)
    for key in kwargs:
        if valid is not None and key not in valid:
            listed = f"valid: {', '.join(valid)}" if valid else "it takes none"
            raise ValueError(f"objective {name!r} has no parameter {key!r}{_meant(key, valid)}; {listed}")
    try:
        return cls(**kwargs)
    except ValueError:
        raise
    except Exception as error:
        listed = "anything" if valid is None else ", ".join(valid) or "none"
        raise ValueError(
            f"objective {name!r} refuses the parameters {kwargs}: {type(error).__name__}: {error}; valid: {listed}"
        ) from error


def objective_class(name: str) -> type[Objective]:
    """The class behind a catalogue name or a user's spec, not constructed. Raises ValueError as `make_objective`."""
    if not isinstance(name, str):
        raise ValueError(f"objective {name!r} ({type(name).__name__}) given, expected a name as text")
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    if ":" in name:
        return load_user_class(name)
    raise ValueError(
        f"unknown objective {name!r}{_meant(name, OBJECTIVES)}; valid: {', '.join(OBJECTIVES)}, or your own class as "
        "path/to/file.py:Class or module:Class"
    )


def make_trainer_objective(
    spec: str,
    objective_kwargs: Mapping[str, Any] | None = None,
    *,
    epsilon: float | None = None,
    epsilon_high: float | None = None,
    names: tuple[str, str] = ("epsilon", "epsilon_high"),
) -> Objective:
    """`make_objective(spec, **objective_kwargs)` with a trainer's clip options as clip_low and clip_high.

    epsilon None: not set, the objective keeps its own clip; epsilon_high None: the same as epsilon. A clip in
    `objective_kwargs` stands; `names` are the trainer's spellings, for messages.

    Raises:
        ValueError: a clip set in both places to different values, or set for an objective without clip parameters;
            also as `make_objective`.
    """
    kwargs = dict(objective_kwargs or {})
    given = {"clip_low": (names[0], epsilon), "clip_high": (names[1], epsilon_high)}
    for field, (option, value) in given.items():
        if value is not None and field in kwargs and kwargs[field] != value:
            raise ValueError(
                f"{option}={value!r} and objective parameter {field}={kwargs[field]!r} are two values for one clip; "
                "set one of them"
            )
    wanted = {"clip_low": epsilon, "clip_high": epsilon if epsilon_high is None else epsilon_high}
    wanted = {field: value for field, value in wanted.items() if value is not None}
    valid = _parameters(objective_class(spec)) if wanted else None
    for field, value in wanted.items():
        if valid is not None and field not in valid:
            option = given[field][0] if given[field][1] is not None else names[0]
            raise ValueError(
                f"{option}={value!r} given, but objective {spec!r} has no {field} to set; leave {option} out"
                f" (its parameters: {', '.join(valid) or 'none'})"
            )
        kwargs.setdefault(field, value)
    return make_objective(spec, **kwargs)


def describe_objective(objective: object) -> dict[str, Any]:
    """What an objective is, for run configs and cards: name, class, parameters, formula where it has one.

    Of a user's own class also file and sha256.

    name makes it again through `make_objective(name, **parameters)`: the catalogue's, `file:Class` (the file relative
    to the working directory where it lies below it), or `module:Class`. sha256 is that of the text that runs, so a
    resume can compare; both are None for a class typed at a prompt. Parameters that are no plain values are their repr.
    """
    cls = type(objective)
    record: dict[str, Any] = {
        "name": next(
            (name for name, known in OBJECTIVES.items() if known is cls), f"{cls.__module__}:{cls.__qualname__}"
        ),
        "class": f"{cls.__module__}.{cls.__qualname__}",
        "parameters": {key: _plain(value) for key, value in _values(objective).items()},
    }
    if getattr(cls, "formula", ""):
        record["formula"] = cls.formula  # type: ignore[attr-defined]
    if record["name"] in OBJECTIVES:
        return record
    source = source_of(cls)
    record["file"] = None if source is None else _shown(source[0])
    record["sha256"] = None if source is None else source[1]
    if "__objective_source__" in cls.__dict__:
        record["name"] = f"{record['file']}:{cls.__qualname__}"
        record["class"] = cls.__qualname__
    return record


def _parameters(cls: type) -> list[str] | None:
    """Names the constructor takes; None where it takes any (**kwargs)."""
    parameters = inspect.signature(cls).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]


def _values(objective: object) -> dict[str, Any]:
    if dataclasses.is_dataclass(objective):
        return {field.name: getattr(objective, field.name) for field in dataclasses.fields(objective) if field.init}
    return dict(getattr(objective, "__dict__", {}))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return repr(value)


def _shown(path: Path) -> str:
    working_directory = Path.cwd().resolve()
    return str(path.relative_to(working_directory) if path.is_relative_to(working_directory) else path)


def _meant(given: str, valid: Any) -> str:
    close = difflib.get_close_matches(str(given), list(valid), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
