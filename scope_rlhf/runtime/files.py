"""Files that are either the old or the new version after a crash, never half of one."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

# Bytes at both ends of a file that enter content_digest.
_ENDS = 2**20


def write_text(path: Path, text: str) -> None:
    """Write beside `path`, flush to the disk, then rename over it. The folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Put a folder that `fill` has written in the place of `folder`: a failure, or a full disk, leaves the former one.

    Between taking the former one away and renaming there is a moment in which a kill leaves `.<name>.tmp` alone.
    """
    draft = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        fill(draft)
        former = folder.with_name(f".{folder.name}.former")
        shutil.rmtree(former, ignore_errors=True)
        if folder.exists():
            folder.rename(former)
        draft.rename(folder)
        shutil.rmtree(former, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_json(path: Path, data: Any) -> None:
    """Strict JSON: NaN and infinities become null, paths and unknown objects their text."""
    write_text(path, json.dumps(_plain(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """One object on each line, in the same strict JSON, the whole file at once."""
    write_text(path, "".join(json_line(row) for row in rows))


def json_line(row: Any) -> str:
    """One object as one line of strict JSON, with its line end."""
    return json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) + "\n"


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one on each line. A last line cut off by a crash is left out.

    Raises ValueError with the line number for any other line that is not a JSON object.
    """
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last line end is empty, or cut off
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is not a JSON object: {line[:80]!r}")
        rows.append(row)
    return rows


def _plain(value: Any) -> Any:
    """`value` in the types that JSON has; whole containers, since json.dumps offers no hook for floats."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, Enum):  # before str and int, which enumerations of transformers also are
        return _plain(value.value)
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    to_list = getattr(value, "tolist", None)  # numpy scalars and arrays, tensors
    return _plain(to_list()) if callable(to_list) else str(value)


def content_digest(path: Path) -> str:
    """16 digits that tell two contents of a file or a folder (its files, not those of folders in it) apart: SHA-256
    over names, sizes, and the first and last megabyte of each, since weights can be tens of gigabytes.
    """
    digest = hashlib.sha256()
    for file in sorted(f for f in path.iterdir() if f.is_file()) if path.is_dir() else [path]:
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as content:
            digest.update(content.read(_ENDS))
            content.seek(max(size - _ENDS, 0))
            digest.update(content.read(_ENDS))
    return digest.hexdigest()[:16]
