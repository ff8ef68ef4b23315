"""A user's own function, by `path/to/file.py:function` or `module:function`."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def load_function(spec: str, setting: str) -> Callable[..., Any]:
    """What the text names. ValueError, beginning with `setting`, for a file, a module or a function that is not there
    or does not import.
    """
    source, _, name = spec.rpartition(":")
    is_file = source.endswith(".py") or "/" in source
    path = Path(source).expanduser()
    if not name or not source or (is_file and not path.is_file()):
        found = f"no file {source!r} was found" if is_file else "it names no function"
        raise ValueError(f"{setting}={spec!r}: expected FILE.py:FUNCTION or MODULE:FUNCTION, and {found}.")
    try:
        module = _execute(path) if is_file else importlib.import_module(source)
    except Exception as error:
        raise ValueError(f"{setting}={spec!r}: {source} does not import ({type(error).__name__}: {error}).") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{setting}={spec!r}: {source} has no function {name!r}.")
    return function


def _execute(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
