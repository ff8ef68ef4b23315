"""How every report writes objectives, commands and numbers."""

import math
import shlex
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from scope_rlhf.runtime.environment import describe_commit

MISSING_VALUE = "-"
# The strength of an objective: written out even at its default.
_ALWAYS_SHOWN = ("alpha", "beta")


def objective_label(objective: dict[str, Any], brief: bool = False) -> str:
    """name(parameter=value, ...); brief leaves out parameters at their default, except alpha and beta."""
    parameters = objective.get("parameters") or {}
    if brief:
        defaults = _defaults(objective)
        parameters = {
            name: value
            for name, value in parameters.items()
            if name in _ALWAYS_SHOWN or name not in defaults or defaults[name] != value
        }
    name = str(objective.get("name", "unknown objective"))
    if objective.get("file"):  # path/to/file.py:Class would fill the title
        name = str(objective.get("class", name)).rpartition(".")[2]
    values = ", ".join(f"{key}={format_parameter(value)}" for key, value in parameters.items())
    return f"{name}({values})" if values else name


def objective_formula(objective: dict[str, Any]) -> str:
    """The one-line formula: the recorded one, else the catalogue's; empty where neither knows it."""
    return str(objective.get("formula") or getattr(_catalogue_class(objective), "formula", ""))


def command_text(config: dict[str, Any]) -> str:
    """The command to type for the same run."""
    command = [str(part) for part in config.get("command") or []]
    if not command:
        return ""
    program = Path(command[0])
    if program.suffix == ".py":
        processes = config.get("processes") or 1
        start = ["torchrun", "--nproc_per_node", str(processes)] if processes > 1 else ["python"]
        command = [*start, *command]
    elif program.is_absolute():
        command[0] = program.name
    return shlex.join(command)


def commit_text(config: dict[str, Any]) -> str:
    """The commit of the run's source, in words."""
    return describe_commit(config.get("source"))


def algorithm_name(arguments: dict[str, Any]) -> str:
    """grpo or ppo; runs from before there was a choice were grpo."""
    return str(arguments.get("algorithm") or "grpo")


def format_parameter(value: Any) -> str:
    """A parameter on one line: floats without noise, the rest as in Python."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def format_number(value: Any, sign: bool = False) -> str:
    """Three decimals below 10, two below 100, one above; a dash where there is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return MISSING_VALUE
    size = abs(value)
    if value == 0:
        return "0"
    plus = "+" if sign else ""
    if size < 0.0005 or size >= 1e6:
        return f"{value:{plus}.1e}"
    return f"{value:{plus}.{3 if size < 10 else 2 if size < 100 else 1}f}"


def format_interval(low: Any, high: Any) -> str:
    """[low, high] with signs; a dash where the interval is unbounded."""
    bounds = format_number(low, sign=True), format_number(high, sign=True)
    return MISSING_VALUE if MISSING_VALUE in bounds else f"[{bounds[0]}, {bounds[1]}]"


def _defaults(objective: dict[str, Any]) -> dict[str, Any]:
    known = _catalogue_class(objective)
    return {field.name: field.default for field in fields(known) if field.default is not MISSING} if known else {}


def _catalogue_class(objective: dict[str, Any]) -> Any:
    """The class of a shipped objective; None for a user's own, which a report does not import."""
    if objective.get("file"):
        return None
    # Loads torch, which the other reports do without.
    from scope_rlhf.objectives import OBJECTIVES

    return OBJECTIVES.get(objective.get("name"))
