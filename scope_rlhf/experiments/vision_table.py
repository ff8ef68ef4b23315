"""`scope-rlhf vision table`: every row over seeds, on the same splits, and the paper's table of them."""

import argparse
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from scope_rlhf.experiments.command_line import is_given, read_config, spell, take_config
from scope_rlhf.experiments.jobs import run_jobs
from scope_rlhf.experiments.vision_arguments import settings_of
from scope_rlhf.runtime.settings import json_object
from scope_rlhf.vision.config import VisionConfig

_REMEDIES = ("class_balanced", "logit_adjustment", "ldam_drw", "balanced_sampling")
ROW_SETS: dict[str, list[str]] = {
    "paper": ["ppo", "policy_entropy", "focal", "scope"],
    "catalogue": ["ppo", "policy_entropy", "focal", "scope", "symmetric"],
    "remedies": [f"ppo + {name}" for name in _REMEDIES],
    "combined": [f"scope + {name}" for name in _REMEDIES],
    "alphas": [f'scope {{"alpha": {alpha}}}' for alpha in (0.1, 0.3, 0.5, 2.0, 4.0)],
}
ROW_SETS["all"] = ["ppo"] + [row for name in ("catalogue", "remedies", "combined", "alphas") for row in ROW_SETS[name]]
ROW_SETS["all"] = list(dict.fromkeys(ROW_SETS["all"]))
# Of the table itself; a file may hold them too.
_OWN = ("rows", "seeds", "first_seed", "jobs", "published")
# What a row says, or the table itself, and where it is set in place of the flag of one run.
_OF_ROWS = {
    **dict.fromkeys(
        ("objective", "objective_kwargs", "long_tail", "long_tail_kwargs"), "the rows of a table; set --rows"
    ),
    "seed": "one run; set --first_seed and --seeds",
    **dict.fromkeys(
        ("resume", "resume_from_checkpoint", "split_file"),
        "one run; a table goes on by itself where its --output_dir has runs",
    ),
}


def main(argv: Sequence[str], prog: str | None = None) -> int:
    """Train what is missing of the table and print it. ValueError for a row or a setting that cannot work, before
    anything is trained.
    """
    from rich.console import Console

    from scope_rlhf.reports.vision_table import PUBLISHED, conclusions, rich_table, write_vision_table

    argv, config_file = take_config(spell(argv))
    config = read_config(config_file) if config_file else {}
    own, rest = _own_settings(argv, config, prog)
    if own.published not in PUBLISHED:
        raise ValueError(f"published must be {' or '.join(PUBLISHED)}, got {own.published!r}; set --published.")
    for name, instead in _OF_ROWS.items():
        if is_given(rest, config, name) or f"--{name}" in rest:
            raise ValueError(f"{name} is for {instead}.")
    rows = expand_rows(own.rows)
    settings = {row: make_settings(row, rest, config, config_file, prog) for row in rows}
    first = next(iter(settings.values()))
    data = Path(first.dataset_name).name
    output = Path(first.output_dir or f"runs/vision/{data}-table/{datetime.now().strftime('%Y%m%d-%H%M%S')}")
    seeds = range(own.first_seed, own.first_seed + own.seeds)
    cells = [(row, seed, cell_argv(row, rest, output, seed), config_file) for seed in seeds for row in rows]
    console = Console()
    keep_settings(output, first)
    console.print(
        f"{len(rows)} rows x {len(seeds)} seeds, {own.jobs} at a time, into {output}", highlight=False, soft_wrap=True
    )
    results = run_cells(cells, own.jobs, first.disable_tqdm, {name: config.get(name) for name in config})
    title = table_title(first)
    note = f"`{_command(argv, config_file)}`"
    console.print(rich_table(results, own.published, title))
    written = write_vision_table(results, output, title=title, note=note, published=own.published)
    for line in conclusions(results):
        console.print(f"- {line}", markup=False, highlight=False)
    console.print(f"table: {written}", markup=False, highlight=False, soft_wrap=True)
    return 0


def keep_settings(output: Path, settings: VisionConfig) -> None:
    """Note what all rows have in common in settings.json. ValueError where the folder is of a table with other ones:
    its splits and its finished rows are not those of this table.
    """
    from dataclasses import asdict

    from scope_rlhf.runtime.files import write_json
    from scope_rlhf.vision.session import FREE_SETTINGS

    mine = {k: v for k, v in asdict(settings).items() if k not in FREE_SETTINGS and k not in _OF_ROWS}
    mine = json.loads(json.dumps(mine))
    file = output / "settings.json"
    if file.exists():
        theirs = json.loads(file.read_text(encoding="utf-8"))
        changed = [f"{k} {theirs.get(k)!r} -> {mine[k]!r}" for k in mine if theirs.get(k) != mine[k]]
        if changed:
            raise ValueError(f"{output} is of another table ({', '.join(changed)}); set another --output_dir.")
    else:
        try:
            write_json(file, mine)
        except OSError as error:
            raise ValueError(f"output_dir {output} cannot be written: {error}; set --output_dir.") from error


def expand_rows(rows: Sequence[str]) -> list[str]:
    """Rows with the sets in their place, each once. ValueError for an empty list, or a row that is no text."""
    if not all(isinstance(row, str) for row in rows):
        raise ValueError(f"rows must be texts such as ppo or 'scope {{\"alpha\": 0.3}}', got {rows!r}; set --rows.")
    found = [row for name in rows for row in ROW_SETS.get(name, [" ".join(name.split())])]
    if not found:
        raise ValueError(f"rows is empty; set --rows to {', '.join(ROW_SETS)} or single rows.")
    return list(dict.fromkeys(found))


def row_flags(row: str) -> list[str]:
    """The flags of a row: `objective [JSON] [+ remedy [JSON]]`. ValueError for anything else."""
    parts = row.split(" + ")
    glued = any("+" in part.partition("{")[0] for part in parts if ":" not in part.partition("{")[0])
    if len(parts) > 2 or glued or not all(part.strip() for part in parts):
        raise ValueError(f"row {row!r} must be `objective [JSON] [+ remedy [JSON]]`; set --rows.")
    flags = []
    for part, name in zip(parts, ("objective", "long_tail"), strict=False):
        word, _, parameters = part.strip().partition(" ")
        flags += [f"--{name}", word]
        if parameters:
            flags += [f"--{name}_kwargs", json.dumps(json_object(f"{name}_kwargs", parameters))]
    return flags


def make_settings(
    row: str, argv: Sequence[str], config: dict[str, Any], config_file: str | None, prog: str | None = None
) -> VisionConfig:
    """The settings of a row. ValueError, naming the row, where they cannot work."""
    try:
        return settings_of([*argv, *row_flags(row)], config, config_file, prog)
    except ValueError as error:
        raise ValueError(f"row {row!r}: {error}") from error


def cell_argv(row: str, argv: Sequence[str], output: Path, seed: int) -> list[str]:
    """The command line of one run. All rows of a seed have one split, which the first of them writes."""
    folder = output / "".join(c if c.isalnum() or c in "._" else "-" for c in row).strip("-") / f"seed-{seed}"
    place = ["--output_dir", str(folder), "--split_file", str(output / "splits" / f"seed-{seed}.json")]
    return [*argv, *row_flags(row), *place, "--seed", str(seed), "--disable_tqdm", "true"]


def run_cells(cells: Sequence[tuple[str, int, list[str], str | None]], jobs: int, quiet: bool, config: Any) -> Any:
    """Results of all runs, in their order; those that are there already are read."""
    from scope_rlhf.metrics import SeedResult
    from scope_rlhf.runtime.threads import available_cores

    threads = None if jobs == 1 else max(1, available_cores() // jobs)
    found = run_jobs(run_cell, [(argv, config, file, threads) for _, _, argv, file in cells], jobs, quiet)
    return [SeedResult(row, seed, metrics) for (row, seed, _, _), metrics in zip(cells, found, strict=True)]


def run_cell(argv: list[str], config: dict[str, Any], config_file: str | None, threads: int | None) -> dict[str, float]:
    """Test metrics of one run: of its evaluation.json where it is finished, else after training, from its newest
    checkpoint where it has one.
    """
    from scope_rlhf.experiments.vision import run_vision
    from scope_rlhf.runtime.checkpoints import checkpoint_folders
    from scope_rlhf.runtime.run_folder import RunFolder

    settings = settings_of(argv, config, config_file)
    folder = Path(str(settings.output_dir))
    done = RunFolder(folder).read_evaluation() if (folder / "finished.json").exists() else None
    if done is not None:
        return done["metrics"]
    settings.resume = bool(checkpoint_folders(folder))
    if not settings.resume:
        (folder / "metrics.jsonl").unlink(missing_ok=True)  # of a run that was killed before its first checkpoint
    if settings.num_threads is None and threads is not None:
        settings.num_threads = threads
    return run_vision(settings)["metrics"]


def table_title(config: VisionConfig) -> str:
    """Data and long tail in words."""
    tail = f", long tail {config.imbalance_ratio:g} ({config.imbalance_type})" if config.imbalance_ratio > 1 else ""
    return f"{Path(config.dataset_name).name}{tail}"


def _own_settings(
    argv: Sequence[str], config: dict[str, Any], prog: str | None
) -> tuple[argparse.Namespace, list[str]]:
    """The table's own settings, taken out of the command line and the file, and the rest of the command line."""
    import torch

    from scope_rlhf.runtime.threads import available_cores

    parser = argparse.ArgumentParser(prog=prog, add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--rows", nargs="+", default=["paper"])
    parser.add_argument("--published", default="table1")
    jobs = 1 if torch.accelerator.is_available() else available_cores()
    for name, default in (("seeds", 3), ("first_seed", 1), ("jobs", jobs)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = {name: config.pop(name) for name in _OWN if name in config}
    if isinstance(given.get("rows"), str):
        given["rows"] = [given["rows"]]
    parser.set_defaults(**given)
    try:
        own, rest = parser.parse_known_args(list(argv))
    except argparse.ArgumentError as error:
        raise ValueError(f"{error}; `--help` has the settings.") from error
    for name, least in (("seeds", 1), ("first_seed", 0), ("jobs", 1)):
        value = getattr(own, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}; set --{name}.")
    return own, rest


def _command(argv: Sequence[str], config_file: str | None) -> str:
    import shlex

    file = ["--config", config_file] if config_file else []
    return shlex.join(["scope-rlhf", "vision", "table", *file, *argv])
