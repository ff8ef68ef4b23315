"""The folder of one run: what was asked, what was measured, what came out. Reports read nothing else.

config.json      command line, resolved arguments, seed, objective, commit, versions, machine, start time (UTC)
metrics.jsonl    one object per log with "step" and flat numbers; grows line by line
evaluation.json  before and after on the held-out prompts, with intervals
samples.jsonl    the same prompts completed before and after
error.txt        the traceback, where the run failed
"""

import json
import os
import platform
import traceback
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from scope_rlhf import __version__
from scope_rlhf.runtime.environment import command_line, device_name, package_versions, source_commit
from scope_rlhf.runtime.files import json_line, read_json_lines, write_json, write_json_lines, write_text
from scope_rlhf.runtime.launch import TRACEBACK_KEPT, is_main_process


class RunFolder:
    """One run's files. Writing makes the folder; on every rank but the first, writing does nothing.

    As a context manager it makes the folder and locks it against a second run (the lock ends with the process, however
    it ends), drops the error.txt of an earlier failure, keeps the traceback of what ends the block there and says so in
    a note on the exception, which run_main prints behind the error. ValueError where the folder cannot be made or
    another process runs in it.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.evaluation_file = self.path / "evaluation.json"
        self.samples_file = self.path / "samples.jsonl"
        self.error_file = self.path / "error.txt"
        self._lock: IO[str] | None = None

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    # Writing

    def write_config(
        self, arguments: dict[str, Any], objective: dict[str, Any], seed: int, *, resumed: bool = False, **more: Any
    ) -> dict[str, Any]:
        """Write config.json and return it. `more` adds keys of the caller's own; a taken key is a ValueError.

        A resumed run keeps the command, commit and start time of what it continues in the list "earlier".
        """
        config: dict[str, Any] = {
            "command": command_line(),
            "arguments": arguments,
            "objective": objective,
            "seed": seed,
            "source": source_commit(),
            "versions": {"scope-rlhf": __version__, "python": platform.python_version(), **package_versions()},
            "platform": platform.platform(),
            "cpu_count": os.cpu_count(),
            "device": device_name(),
            "processes": int(os.environ.get("WORLD_SIZE", "1")),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        taken = sorted(config.keys() & more.keys() | {"earlier"} & more.keys())
        if taken:
            raise ValueError(f"config.json already has {', '.join(taken)}; give the extra keys other names")
        config |= more
        if resumed and self.config_file.exists():
            former = self.read_config()
            start = {key: former.get(key) for key in ("command", "source", "started")}
            config["earlier"] = [*former.get("earlier", []), start]
        if is_main_process():
            write_json(self.config_file, config)
        return config

    def append_metrics(self, step: int, metrics: dict[str, Any]) -> None:
        """Add one line and flush it to the disk: a crash costs at most the line being written."""
        if not is_main_process():
            return
        line = json_line({"step": step, **metrics})
        self.path.mkdir(parents=True, exist_ok=True)
        with self.metrics_file.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":  # a line that a crash cut off: nothing may be glued to it
                    file.truncate(_end_of_last_line(file, size))
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())

    def truncate_metrics(self, step: int) -> int:
        """Drop the lines after `step`, which a resumed run logs again; -1 drops all. Returns the number dropped."""
        if not self.metrics_file.exists() or not is_main_process():
            return 0
        rows = self.read_metrics()
        kept = [row for row in rows if row["step"] <= step]
        write_json_lines(self.metrics_file, kept)
        return len(rows) - len(kept)

    def write_evaluation(self, evaluation: dict[str, Any]) -> None:
        if is_main_process():
            write_json(self.evaluation_file, evaluation)

    def write_samples(self, samples: list[dict[str, Any]]) -> None:
        if is_main_process():
            write_json_lines(self.samples_file, samples)

    def check_free(self) -> None:
        """ValueError where another run is in the folder: asked before its files are looked at, by the first process."""
        if not is_main_process() or not (self.path / ".lock").exists():
            return
        try:
            with (self.path / ".lock").open("r+") as file:
                _lock(file)
        except OSError as error:
            raise ValueError(
                f"output_dir {self.path} is in use by another run; give another --output_dir or wait for its end."
            ) from error

    # Reading

    def read_config(self) -> dict[str, Any]:
        return self._read_object(self.config_file)

    def read_evaluation(self) -> dict[str, Any] | None:
        """evaluation.json, or None where the run has not come that far."""
        return self._read_object(self.evaluation_file) if self.evaluation_file.exists() else None

    def read_metrics(self) -> list[dict[str, Any]]:
        """The logged lines in order; empty where there are none. ValueError for a line without a step."""
        rows = read_json_lines(self.metrics_file) if self.metrics_file.exists() else []
        for number, row in enumerate(rows, start=1):
            if not isinstance(row.get("step"), int):
                raise ValueError(f"{self.metrics_file}, line {number} has no whole-number step")
        return rows

    def read_samples(self) -> list[dict[str, Any]]:
        return read_json_lines(self.samples_file) if self.samples_file.exists() else []

    def _read_object(self, file: Path) -> dict[str, Any]:
        if not self.path.is_dir():
            raise FileNotFoundError(f"run folder {self.path} does not exist")
        if not file.exists():
            raise FileNotFoundError(f"{self.path} is not a run folder: it has no {file.name}")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is not JSON: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{file} is not a JSON object")
        return content

    # Failing

    def __enter__(self) -> Self:
        if is_main_process():
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self._lock = (self.path / ".lock").open("w")
            except OSError as error:
                raise ValueError(f"output_dir {self.path} cannot be written: {error}; set --output_dir.") from error
            try:
                _lock(self._lock)
            except OSError as error:
                self._lock.close()
                raise ValueError(
                    f"output_dir {self.path} is in use by another run; give another --output_dir or wait for its end."
                ) from error
            self.error_file.unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and self.path.is_dir() and is_main_process():
            write_text(self.error_file, "".join(traceback.format_exception(kind, error, trace)))
            error.add_note(f"{TRACEBACK_KEPT}{self.error_file}.")
        if self._lock is not None:
            (self.path / ".lock").unlink(missing_ok=True)
            self._lock.close()
            self._lock = None


def _lock(file: IO[str]) -> None:
    """OSError where another process holds the lock. No lock where the system has none (Windows)."""
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _end_of_last_line(file: Any, size: int) -> int:
    """Offset behind the last line end of a binary file, 0 where there is none."""
    file.seek(0)
    return file.read(size).rfind(b"\n") + 1
