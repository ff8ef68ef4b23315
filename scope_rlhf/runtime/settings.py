"""What the errors about settings share: the nearest valid names, and dictionaries given as JSON."""

import difflib
import json
from collections.abc import Iterable
from typing import Any


def did_you_mean(given: Any, known: Iterable[Any]) -> str:
    """', did you mean X or Y?' with the known names that are near, whatever their case; '' where none is."""
    lower = {str(name).lower(): str(name) for name in known}
    near = difflib.get_close_matches(str(given).lower(), lower, n=3)
    return f", did you mean {' or '.join(lower[name] for name in near)}?" if near else ""


def json_object(name: str, value: Any) -> dict[str, Any] | None:
    """A dictionary as it is, or of its JSON; None for None. ValueError, naming the setting, for anything else."""
    if value is None or isinstance(value, dict):
        return value
    why = ""
    try:
        found = json.loads(value)
    except (TypeError, ValueError) as error:
        found, why = None, f" ({error})"
    if not isinstance(found, dict):
        raise ValueError(f"{name} must be a JSON object such as '{{\"name\": 1}}', got {value!r}{why}; set --{name}.")
    return found
