"""Checkpoints of a learner: whole or absent, and exact. Not for the trainers on TRL, which save by transformers.

checkpoint-<step>/
  learner.pt        weights, optimizer, counters, running statistics: the same on every process
  process-<rank>.pt random states, and what else each process has of its own
  checkpoint.json   what it belongs to (data or environment, network, processes); written last
"""

import contextlib
import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scope_rlhf.runtime.files import write_json

META = "checkpoint.json"


def checkpoint_folders(output_dir: str | os.PathLike[str]) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = {int(f.name[11:]): f for f in Path(output_dir).glob("checkpoint-*") if f.name[11:].isdigit()}
    return [found[step] for step in sorted(found) if (found[step] / META).exists()]


def save_checkpoint(
    output_dir: Path,
    step: int,
    meta: Mapping[str, Any],
    learner: Mapping[str, Any],
    process: Mapping[str, Any],
    *,
    rank: int = 0,
    wait: Any = None,
    keep: int = 2,
) -> Path:
    """Write checkpoint-<step> beside the others, then drop the oldest beyond `keep`.

    It is written under another name and renamed when it is whole: after a crash or on a full disk the earlier ones are
    as they were. All processes call it; `wait` is their barrier.
    """
    folder, draft = output_dir / f"checkpoint-{step}", output_dir / f".checkpoint-{step}.tmp"
    wait = wait or (lambda: None)
    try:
        if rank == 0:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
        wait()
        _write(draft / f"process-{rank}.pt", process)
        if rank == 0:
            _write(draft / "learner.pt", learner)
        wait()
        if rank == 0:
            write_json(draft / META, {"step": step, **meta})
            _promote(draft, folder)
            for old in checkpoint_folders(output_dir)[:-keep]:
                shutil.rmtree(old, ignore_errors=True)
        wait()
    finally:
        if rank == 0 and not (draft / META).exists():  # a whole one is for `find_checkpoint`
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def _promote(draft: Path, folder: Path) -> None:
    """Put a whole draft in its place, and in that of what this step had before: `find_checkpoint` does it where a kill
    came in between.
    """
    if folder.exists():
        shutil.rmtree(folder)
    draft.rename(folder)


def _write(file: Path, state: Mapping[str, Any]) -> None:
    try:
        with file.open("wb") as target:
            torch.save(dict(state), target)
            target.flush()
            os.fsync(target.fileno())
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"{file.parent.name[1:-4]} cannot be written to {file.parent.parent} ({error}); the checkpoints that are "
            "there stay as they were. Free some space, or set --output_dir."
        ) from error


def check_finite(step: int, values: Mapping[str, torch.Tensor]) -> None:
    """ValueError where a tensor has a NaN or an infinity: what a run learns from there on is not worth a checkpoint.
    Waits for the device.
    """
    bad = [name for name, value in values.items() if not bool(value.isfinite().all())]
    if bad:
        raise ValueError(
            f"the run has diverged: {bad[0]} is NaN or infinite at step {step}; set a lower --learning_rate, or "
            "--max_grad_norm. Checkpoints of earlier steps are as they were."
        )


def find_checkpoint(output_dir: Path, resume: bool, resume_from_checkpoint: str | None) -> Path | None:
    """The folder to go on from; None for a new run.

    Raises ValueError: resume without a checkpoint, a folder that is none, or a new run in a folder that has some.
    """
    if resume_from_checkpoint is not None:
        folder = Path(resume_from_checkpoint)
        if not (folder / META).is_file():
            inner = checkpoint_folders(folder) if folder.is_dir() else []
            hint = f" It is a run folder; set --resume_from_checkpoint {inner[-1]}." if inner else ""
            raise ValueError(f"resume_from_checkpoint {folder} is no whole checkpoint: it has no {META}.{hint}")
        return folder
    if resume:
        for draft in output_dir.glob(".checkpoint-*.tmp"):
            if (draft / META).exists():  # written last
                with contextlib.suppress(FileNotFoundError):  # another process was first
                    _promote(draft, output_dir / draft.name[1:-4])
    folders = checkpoint_folders(output_dir)
    if resume:
        if not folders:
            raise ValueError(
                f"resume was asked for, but {output_dir} has no checkpoint; set --output_dir or leave it out."
            )
        return folders[-1]
    if folders or (output_dir / "metrics.jsonl").exists():
        raise ValueError(
            f"output_dir {output_dir} holds another run; add --resume to go on with it, or set another --output_dir."
        )
    return None


def read_meta(folder: Path) -> dict[str, Any]:
    """checkpoint.json. ValueError where it is damaged."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / META} cannot be read: {error}; {another_checkpoint(folder)}") from error
    if not isinstance(meta, dict) or not isinstance(meta.get("step"), int):
        raise ValueError(f"{folder / META} is not that of a checkpoint: it has no step; {another_checkpoint(folder)}")
    return meta


def another_checkpoint(damaged: Path) -> str:
    """The way out: the newest other checkpoint of the run, where there is one."""
    others = [str(folder) for folder in checkpoint_folders(damaged.parent) if folder.name != damaged.name]
    return (
        f"set --resume_from_checkpoint {others[-1]} in place of --resume."
        if others
        else ("set --resume_from_checkpoint to another checkpoint.")
    )


def check_meta(
    meta: Mapping[str, Any], expected: Mapping[str, Any], folder: Path, flags: Mapping[str, str] | None = None
) -> None:
    """ValueError where what the checkpoint belongs to is not what is expected. flags: where each key is set, for those
    whose flag is not their name.
    """
    flags = {"processes": "the number of processes", **(flags or {})}
    if missing := [key for key in expected if key not in meta]:
        raise ValueError(
            f"{folder / META} is damaged, or of another version: it has no {', '.join(missing)}; "
            f"{another_checkpoint(folder)}"
        )
    for key, wanted in expected.items():
        if meta[key] != _as_json(wanted):
            raise ValueError(
                f"{folder} belongs to another run: its {_differences(key, meta[key], _as_json(wanted))}; set "
                f"{flags.get(key, '--' + key)} to what was saved, or start a new run in another --output_dir."
            )


def _differences(key: str, saved: Any, now: Any) -> str:
    """Saved and present value of a key, of two dictionaries only what differs."""
    if isinstance(saved, dict) and isinstance(now, dict):
        keys = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
        return ", ".join(_differences(f"{key} {name}", saved.get(name), now.get(name)) for name in keys)
    return f"{key} is {saved!r}, this run has {now!r}"


def changed_settings(folder: Path, now: Mapping[str, Any], free: Collection[str]) -> str:
    """The settings that were others in the run of this checkpoint, as words; '' for none, or where its config.json is
    not there. `free` ones, which only say where, how long and how often, are left out.
    """
    try:
        before = json.loads((folder.parent / "config.json").read_text(encoding="utf-8"))["arguments"]
    except (OSError, ValueError, KeyError):
        return ""
    changed = [name for name in now if name in before and name not in free and before[name] != _as_json(now[name])]
    return ", ".join(f"{name} {before[name]!r} -> {now[name]!r}" for name in changed)


def load_checkpoint(
    folder: Path, rank: int, learner: Iterable[str], process: Iterable[str] = ("random",)
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(learner, process) as saved; the arguments name parts that they have. ValueError, with its file, for a damaged
    one.
    """
    states = []
    parts = {"learner.pt": learner, f"process-{rank}.pt": process}
    for name, needed in parts.items():
        try:
            with zipfile.ZipFile(folder / name) as archive:  # torch.load checks no sums
                if damaged := archive.testzip():
                    raise zipfile.BadZipFile(f"{damaged} is not what was written")
            states.append(torch.load(folder / name, map_location="cpu", weights_only=True))
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
            said = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{folder / name} cannot be loaded ({type(error).__name__}: {said}); {another_checkpoint(folder)}"
            ) from error
        if missing := [part for part in needed if part not in states[-1]]:
            raise ValueError(
                f"{folder / name} is damaged, or of another version: no {missing[0]} in it; "
                f"{another_checkpoint(folder)}"
            )
    return states[0], states[1]


def random_state() -> dict[str, Any]:
    """Random states of this process: Python, numpy, torch, CUDA."""
    version, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (
            version,
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go on as random_state found it."""
    version, keys, position, has_gauss, cached = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((version, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))
