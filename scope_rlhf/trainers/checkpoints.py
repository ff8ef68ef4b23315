"""Which checkpoint a run goes on from, and whether it is whole: the parent resumes without what a checkpoint lacks."""

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

STATE = "trainer_state.json"


def newest_checkpoint(folder: str | Path) -> Path | None:
    """The complete checkpoint-<step> folder with the largest step; None where there is none.

    The state is written last: a checkpoint without it was cut off by a kill, and the one before it is whole.
    """
    steps = {int(f.name[11:]): f for f in Path(folder).glob("checkpoint-*") if f.name[11:].isdigit()}
    whole = [step for step, checkpoint in steps.items() if is_json(checkpoint / STATE)]
    return steps[max(whole)] if whole else None


def is_json(file: Path) -> bool:
    """Whether the file is there and can be read."""
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def check_complete(folder: Path, rank: int, processes: int, sharded: bool) -> None:
    """ValueError for a checkpoint without optimizer, schedule or random state: the run would silently be another one.

    sharded: DeepSpeed and FSDP keep the optimizer in files of their own, and check them.
    """
    random = "rng_state.pth" if processes == 1 else f"rng_state_{rank}.pth"
    wanted = [random] if sharded else ["optimizer.pt", "scheduler.pt", random]
    missing = [name for name in wanted if not (folder / name).exists()]
    if missing:
        raise ValueError(
            f"{folder} cannot be resumed exactly: it lacks {', '.join(missing)} (removed, saved with --save_only_model "
            f"or by another number of processes than {processes}); set --resume_from_checkpoint to a whole one."
        )


@contextmanager
def damage_named(folder: str | Path) -> Iterator[None]:
    """ValueError that names the checkpoint for a file of it that does not load."""
    try:
        yield
    except (OSError, EOFError, SafetensorError, pickle.UnpicklingError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        said = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the checkpoint {folder} could not be loaded, a file of it is damaged or belongs to another model "
            f"({type(error).__name__}: {said}); set --resume_from_checkpoint to another one."
        ) from error
