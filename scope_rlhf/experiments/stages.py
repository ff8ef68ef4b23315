"""Stages of a chain: each in a folder named by the hash of all that it depends on, and skipped once it is done."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from transformers import TrainingArguments

from scope_rlhf import __version__
from scope_rlhf.experiments.arguments import check_push
from scope_rlhf.experiments.policy_run import make_hub_repository, push_model
from scope_rlhf.models.embedded import is_model_folder
from scope_rlhf.runtime import is_main_process
from scope_rlhf.runtime.files import content_digest, json_line, write_json
from scope_rlhf.runtime.threads import set_threads

STAGE_FILE = "stage.json"
# Raised with every change of what a stage makes or records, so that no stage is taken for one of other code.
STAGE_VERSION = 3
# Settings that say nothing about what a stage produces.
NO_INPUT = frozenset(
    (
        "output_dir", "logging_dir", "run_name", "report_to", "disable_tqdm", "logging_steps", "logging_first_step",
        "save_steps", "save_strategy", "save_total_limit", "resume_from_checkpoint", "hub_model_id", "hub_token",
        "push_to_hub", "hub_private_repo", "hub_strategy", "num_threads", "trackio_space_id", "project", "local_rank",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Stage:
    """A stage that is done: its folder, what it measured, the seconds it took, and whether it was done before."""

    name: str
    folder: Path
    results: dict[str, Any]
    seconds: float
    cached: bool

    @property
    def model(self) -> Path:
        """Where a stage that makes a model has saved it."""
        return self.folder / "model"


def stage_inputs(*settings: dict[str, Any], **more: Any) -> dict[str, Any]:
    """All settings but those of NO_INPUT, `more`, STAGE_VERSION and the version of this package, as JSON has them."""
    merged = {name: value for part in settings for name, value in part.items() if name not in NO_INPUT}
    return json.loads(json_line({**merged, **more, "scope_rlhf": __version__, "stage_version": STAGE_VERSION}))


def stage_folder(root: str | Path, name: str, inputs: dict[str, Any]) -> Path:
    """<root>/<name>-<the first 12 digits of the SHA-256 of the inputs>."""
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]
    return Path(root) / f"{name}-{key}"


def read_stage(folder: Path) -> dict[str, Any] | None:
    """stage.json of a stage that is done; None where it is not, or where the file is damaged."""
    try:
        record = json.loads((folder / STAGE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and isinstance(record.get("results"), dict) and "seconds" in record
    return record if whole and record["results"] else None


def run_stage(
    root: str | Path, name: str, inputs: dict[str, Any], work: Callable[[Path], dict[str, Any]], console: Console
) -> Stage:
    """The stage's results: read where it is done, else those of work(folder), which are JSON.

    stage.json is written last, so that a killed stage is not taken for a finished one; `work` finds what the earlier
    attempt has left in the folder and may go on from it. All processes call it together.
    """
    folder = stage_folder(root, name, inputs)
    state = PartialState()
    record = read_stage(folder)
    state.wait_for_everyone()  # no process may see what the first one writes below
    if record is not None:
        console.print(f"[bold]{name}[/]: done before, {folder}", soft_wrap=True)
        return Stage(name, folder, record["results"], float(record["seconds"]), True)
    console.print(f"[bold]{name}[/] -> {folder}", soft_wrap=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output_dir {root} cannot be written: {error}; set --output_dir.") from error
    state.wait_for_everyone()
    started = time.perf_counter()
    results = work(folder)
    state.wait_for_everyone()
    seconds = time.perf_counter() - started
    if state.is_main_process:
        write_json(folder / STAGE_FILE, {"name": name, "inputs": inputs, "results": results, "seconds": seconds})
    state.wait_for_everyone()
    console.print(f"[bold]{name}[/]: {seconds:.0f} s")
    # All processes go on with what the first one has found; on a disk of its own a process has its own results only.
    record = read_stage(folder) or {"results": json.loads(json_line(results))}
    return Stage(name, folder, record["results"], seconds, False)


def model_identity(name: str) -> str:
    """What a stage depends on by a model's name: the content of a local folder, otherwise the name itself."""
    path = Path(name).expanduser()
    return content_digest(path) if is_model_folder(path) else name


def stage_root(training: TrainingArguments) -> Path:
    """The folder of the stages: --output_dir, or runs/tldr where it is left out."""
    given = training.output_dir not in (None, "", "trainer_output")
    return Path(str(training.output_dir)) if given else Path("runs/tldr")


def check_stage(training: TrainingArguments) -> None:
    """ValueError for settings that a supervised stage does not take."""
    check_push(training)
    if training.resume_from_checkpoint:
        raise ValueError("a stage goes on by itself: leave --resume_from_checkpoint out and give the same arguments.")


def run_alone(
    training: TrainingArguments,
    num_threads: int | None,
    run: Callable[[Path, Console], Stage],
    table: Callable[[dict[str, Any]], Table],
) -> int:
    """The main function of a recipe of one stage: run it, print its table, push its model; the exit status."""
    set_threads(num_threads)
    console = Console(quiet=training.process_index != 0)
    if training.hub_model_id:
        make_hub_repository(training)
    stage = run(stage_root(training), console)
    console.print(table(stage.results))
    console.print(f"model: {stage.model}", soft_wrap=True)
    if training.hub_model_id and is_main_process():
        push_model(stage.model, training)
        console.print(f"pushed to {training.hub_model_id}")
    return 0
