"""What a checkpoint of the parent leaves out: the rollout in use, the micro-batch it stands at, unlogged metrics, and
the order of the prompts.

Without them a run that is resumed inside a generation batch samples anew, and one that is resumed after its first data
epoch goes through the prompts in the order of the first epoch: each silently becomes another run.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch

STATE_VERSION = 1


def rollout_file(folder: Path, rank: int) -> Path:
    """Each process keeps its own share of the rollout."""
    return folder / f"rollout_rank{rank}.pt"


def save_rollout(folder: Path, rank: int, processes: int, state: dict[str, Any]) -> None:
    """Write the state of one process beside the checkpoint, all of it or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    file = rollout_file(folder, rank)
    partial = file.with_suffix(".tmp")
    torch.save({"version": STATE_VERSION, "processes": processes, **state}, partial)
    os.replace(partial, file)


def load_rollout(folder: Path, rank: int, processes: int, device: torch.device) -> dict[str, Any] | None:
    """The state that save_rollout wrote; None where there is none or the number of processes is another one."""
    file = rollout_file(folder, rank)
    if not file.exists():
        return None
    try:
        state = torch.load(
            file, map_location=torch.device("cpu") if device.type == "cpu" else device, weights_only=True
        )
    except Exception as error:
        raise ValueError(f"{file} is damaged ({type(error).__name__}); resume from an earlier checkpoint.") from error
    return state if (state["version"], state["processes"]) == (STATE_VERSION, processes) else None


def read_state(file: Path) -> dict[str, Any]:
    """A JSON file of a checkpoint; ValueError naming it where a kill or a full disk has cut it off."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); resume from an earlier checkpoint.") from error


def skip_orders(sampler: Any, micro_batches: int) -> None:
    """Take away from TRL's RepeatSampler the orders of the data epochs that lie before that many micro-batches.

    It draws one order for each epoch from a generator of its own, which a resumed run begins anew.
    """
    if getattr(sampler, "shuffle", False):
        in_epoch = sampler.num_samples // sampler.batch_size * sampler.repeat_count
        for _ in range(micro_batches // in_epoch):
            torch.randperm(sampler.num_samples, generator=sampler.generator)
