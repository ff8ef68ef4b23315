"""A user's own objective, by dotted module or by path: `my_module:MyObjective`, `path/to/file.py:MyObjective`.

A file has no importable name, so plain pickling of its objects fails in every other process. The file is loaded under a
stable module name, which nested classes of it are found by, and its objective is registered with copyreg: a pickle
calls `allocate`, and any process that has this package loads the file again by its path.
"""

import copyreg
import hashlib
import importlib
import inspect
import linecache
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from scope_rlhf.objectives.base import Objective

CLASS_VARIABLES = ("needs_entropy", "needs_old_log_probs", "stops_gradient", "formula")


def load_user_class(spec: str) -> type:
    """The class that `module:Class` or `path/to/file.py:Class` names; class variables it lacks get their defaults.

    A file that changed since it was loaded is loaded again.

    Raises:
        ValueError: no such file, module or class, an error inside it (with its line), or not callable.
    """
    source, _, name = spec.rpartition(":")
    if not source or not name:
        raise ValueError(f"objective {spec!r} given, expected path/to/file.py:Class or module:Class")
    is_file = source.endswith(".py") or "/" in source or "\\" in source
    return _class_of_file(source, name) if is_file else _class_of_module(source, name)


def source_of(cls: type) -> tuple[Path, str] | None:
    """(file, sha256) of a user's class: of the text that was executed, where it was loaded by path. None: no file."""
    if "__objective_source__" in cls.__dict__:
        return cls.__dict__["__objective_source__"]
    try:
        path = Path(inspect.getfile(cls)).resolve()
        return path, hashlib.sha256(path.read_bytes()).hexdigest()
    except (TypeError, OSError):  # defined in a notebook or at a prompt
        return None


def allocate(path: str, name: str) -> object:
    """An empty object of class `name` of the file, for pickle to fill; the counterpart of `_reduce`."""
    cls = _class_of_file(path, name)
    return object.__new__(cls)


def _reduce(objective: object) -> tuple[Any, ...]:
    path, _ = type(objective).__dict__["__objective_source__"]
    state = object.__reduce_ex__(objective, 2)[2]
    return allocate, (str(path), type(objective).__qualname__), state


def _class_of_file(source: str, name: str) -> type:
    path = Path(source).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"objective {source}:{name}: no file {path}")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    module_name = f"scope_rlhf_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    module = sys.modules.get(module_name)
    if module is None or module.__dict__.get("__sha256__") != digest:
        module = _execute(path, content, module_name)
        module.__dict__["__sha256__"] = digest
    cls = _pick(module, name, str(path))
    if cls.__module__ == module_name and "__objective_source__" not in cls.__dict__:
        cls.__objective_source__ = (path, digest)  # type: ignore[attr-defined]
        if cls.__reduce_ex__ is object.__reduce_ex__ and cls.__reduce__ is object.__reduce__:
            copyreg.pickle(cls, _reduce)
    return cls


def _class_of_module(source: str, name: str) -> type:
    try:
        module = importlib.import_module(source)
    except (Exception, SystemExit) as error:
        spec = f"{source}:{name}"
        if isinstance(error, ModuleNotFoundError) and error.name and f"{source}.".startswith(f"{error.name}."):
            raise ValueError(
                f"objective {spec!r}: no module {error.name!r} on sys.path; for a file write "
                f"{source.replace('.', '/')}.py:{name}"
            ) from error
        raise ValueError(f"objective {spec!r}: importing {source} failed: {locate_error(error)}") from error
    return _pick(module, name, source)


def _execute(path: Path, content: bytes, module_name: str) -> ModuleType:
    module = ModuleType(module_name)
    module.__file__ = str(path)
    previous = sys.modules.get(module_name)
    sys.modules[module_name] = module  # dataclasses look their module up while the class is made
    linecache.checkcache(str(path))
    try:
        exec(compile(content, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:  # a script that calls sys.exit is no module
        if previous is None:
            del sys.modules[module_name]
        else:
            sys.modules[module_name] = previous
        raise ValueError(f"objective file {path} cannot be loaded: {locate_error(error, str(path))}") from error
    return module


def locate_error(error: BaseException, path: str | None = None) -> str:
    """`file:line: Type: message [line of code]`, at the last frame in `path` (default: the last frame)."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg} [{(error.text or '').strip()}]"
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((frame for frame in reversed(frames) if path is None or frame.filename == path), frames[-1])
    return f"{frame.filename}:{frame.lineno}: {type(error).__name__}: {error} [{frame.line}]"


def _pick(module: ModuleType, name: str, source: str) -> type:
    cls = module.__dict__.get(name)
    if cls is None:
        own = [
            n for n, value in vars(module).items() if isinstance(value, type) and value.__module__ == module.__name__
        ]
        raise ValueError(f"objective {source}:{name}: no class {name!r}; {source} defines {', '.join(own) or 'none'}")
    if not isinstance(cls, type):
        raise ValueError(
            f"objective {source}:{name}: {name} is a {type(cls).__name__}, expected a class (a frozen dataclass with "
            "__call__)"
        )
    call = next((base.__dict__["__call__"] for base in cls.__mro__ if "__call__" in base.__dict__), None)
    if call is None or call is Objective.__call__:
        raise ValueError(
            f"objective {source}:{name}: not callable, expected a method "
            "__call__(self, inputs: PolicyInputs) -> PolicyLoss"
        )
    for variable in CLASS_VARIABLES:
        if not hasattr(cls, variable):
            setattr(cls, variable, getattr(Objective, variable))
    return cls
