"""What settings share: options with their help, checks that say where to set them, the nearest valid names, and
dictionaries given as JSON.
"""

import difflib
import json
import math
from collections.abc import Iterable
from dataclasses import field
from typing import Any


def option(default: Any, text: str) -> Any:
    """A dataclass field with its help."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


class CheckedSettings:
    """Checks of a dataclass of settings; each raises ValueError with the value, what is valid, and the flag."""

    # Settings of every run; check_resume and check_report_to look at them.
    output_dir: str | None
    resume: bool
    resume_from_checkpoint: str | None
    report_to: list[str]

    def at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}; set --{name}.")

    def between(self, name: str, low: float, high: float, open_low: bool = False) -> None:
        value = getattr(self, name)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not (number and low <= value <= high) or (open_low and value == low):
            sign = ">" if open_low else ">="
            bound = f"a number {sign} {low:g}" if high == math.inf else f"a number from {low:g} to {high:g}"
            raise ValueError(f"{name} must be {bound}, got {value!r}; set --{name}.")

    def one_of(self, name: str, valid: tuple[str, ...]) -> None:
        if getattr(self, name) not in valid:
            raise ValueError(f"{name} must be {' or '.join(valid)}, got {getattr(self, name)!r}; set --{name}.")

    def not_empty(self, *names: str) -> None:
        """Folders: None, or a text that is not blank."""
        for name in names:
            if getattr(self, name) is not None and not str(getattr(self, name)).strip():
                raise ValueError(f"{name} is empty; set --{name} to a folder, or leave it out.")

    def check_resume(self) -> None:
        """Of the settings output_dir, resume and resume_from_checkpoint."""
        self.not_empty("output_dir", "resume_from_checkpoint")
        if self.resume and self.output_dir is None and not self.resume_from_checkpoint:
            raise ValueError("resume needs the run folder to go on with; set --output_dir.")
        if self.resume and self.resume_from_checkpoint:
            raise ValueError("resume and resume_from_checkpoint are two ways to go on; set one of them.")

    def check_report_to(self) -> None:
        """Of the setting report_to; "none" is dropped."""
        self.report_to = [name for name in self.report_to if name != "none"]
        for name in self.report_to:
            if name not in ("tensorboard", "wandb", "trackio"):
                raise ValueError(f"report_to {name!r} is unknown; valid: tensorboard, wandb, trackio, none.")


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
