"""report.md: what was run, what came of it, and how to run it again."""

import os
from pathlib import Path
from typing import Any

from scope_rlhf.reports.curves import is_held_out
from scope_rlhf.reports.labels import (
    command_text,
    commit_text,
    format_number,
    format_parameter,
    objective_formula,
    objective_label,
)
from scope_rlhf.reports.markdown import code_block, escape_cell, inline_code, markdown_table
from scope_rlhf.reports.table import HEADER, evaluation_caption, evaluation_rows
from scope_rlhf.reports.win_rate import win_rate_section
from scope_rlhf.runtime import RunFolder, write_text

SAMPLES_SHOWN = 5
# Beyond these the language has suffered: what a reader of the reward alone would miss.
HIGH_KL = 15.0
HIGH_PERPLEXITY_RATIO = 1.5
DISTINCT_CHANGE = 0.15


def write_report(run_dir: str | os.PathLike[str]) -> Path:
    """Write report.md from the files of the run folder and return its path. Parts without data say so or are left out.

    Raises FileNotFoundError where the folder has no config.json. curves.png is linked where plot_curves has drawn it.
    """
    run = RunFolder(run_dir)
    config, evaluation = run.read_config(), run.read_evaluation() or {}
    objective = config.get("objective") or {}
    parts = [
        f"# {escape_cell(objective_label(objective, brief=True))}, seed {config.get('seed', '?')}",
        describe_run(config, run.read_metrics()),
        "## Result",
        result_section(evaluation),
    ]
    notes = honest_notes(evaluation, run.read_metrics(), config.get("arguments") or {})
    parts.append("\n".join(f"- {note}" for note in notes))
    if evaluation.get("win_rates"):
        parts += ["## Win rate", win_rate_section(evaluation["win_rates"])]
    if (run.path / "curves.png").exists():
        parts += ["## Curves", "![reward, KL and the rest by step](curves.png)"]
    if (run.path / "over_optimisation.png").exists():
        parts += ["## Over-optimisation", "![reward and held-out judge against KL](over_optimisation.png)"]
    parts += ["## Objective", objective_section(objective)]
    samples = run.read_samples()
    if samples:
        parts += ["## Samples", samples_section(samples)]
    parts += ["## Run it again", reproduce_section(config), "## Environment", environment_section(config)]
    path = run.path / "report.md"
    write_text(path, "\n\n".join(part for part in parts if part) + "\n")
    return path


def describe_run(config: dict[str, Any], metrics: list[dict[str, Any]]) -> str:
    """Model, data and rewards of the run, one line each."""
    arguments = config.get("arguments") or {}
    rows = [
        ("algorithm", _algorithm(arguments)),
        ("policy", arguments.get("model_name_or_path")),
        ("dataset", arguments.get("dataset_name")),
        ("reward model (optimised)", arguments.get("reward_model_name_or_path")),
        ("judge (held out)", arguments.get("judge_model_name_or_path")),
        ("KL coefficient", arguments.get("beta")),
        ("learning rate", arguments.get("learning_rate")),
        ("steps", max((row["step"] for row in metrics), default=None)),
        ("device", config.get("device")),
        ("started", config.get("started")),
    ]
    shown = [(escape_cell(name), inline_code(format_parameter(value))) for name, value in rows if value is not None]
    return markdown_table(("setting", "value"), shown)


def _algorithm(arguments: dict[str, Any]) -> str | None:
    name = arguments.get("algorithm")
    if name != "ppo":
        return name
    critic = arguments.get("critic")
    return f"ppo, {critic} critic" if critic else f"ppo, {arguments.get('advantage_estimator')} without a critic"


def result_section(evaluation: dict[str, Any]) -> str:
    """The table of before and after, and how it was measured."""
    rows = evaluation_rows(evaluation)
    if not rows:
        return "The run has no evaluation.json: it was not evaluated, or has not come that far."
    table = markdown_table(
        ("metric", *HEADER[1:]), [[escape_cell(row[0]), *(cell for cell in row[1:])] for row in rows], "lrrrr"
    )
    caption = evaluation_caption(evaluation)
    return f"{table}\n\n{caption[0].upper()}{caption[1:]}." if caption else table


def honest_notes(evaluation: dict[str, Any], metrics: list[dict[str, Any]], arguments: dict[str, Any]) -> list[str]:
    """What the numbers do and do not show, the doubtful ones by name."""
    notes = [
        "The training reward was optimised, so its rise overstates the gain. The held-out judge was not optimised, "
        "only measured.",
        "The intervals cover the choice of prompts for this one trained model, not the spread over training seeds.",
    ]
    values: dict[str, dict[str, Any]] = evaluation.get("metrics") or {}

    def get(name: str, key: str) -> float | None:
        value = values.get(name, {}).get(key)
        return float(value) if isinstance(value, int | float) else None

    low, high = get("judge", "low"), get("judge", "high")
    if low is not None and high is not None and low <= 0 <= high:
        notes.append("The interval of the judge's difference contains 0: a gain is not shown.")
    reward, judge = get("reward", "difference"), get("judge", "difference")
    if reward is not None and judge is not None and reward > 0 and judge < 0.5 * reward:
        notes.append(
            f"The judge moved by {format_number(judge, sign=True)} where the reward moved by "
            f"{format_number(reward, sign=True)}: part of the gain fits the reward model, not the task."
        )
    kl = get("kl", "after")
    if kl is not None and kl > HIGH_KL:
        notes.append(f"KL of {format_number(kl)} nats per sequence is far from the reference (over {HIGH_KL:g}).")
    before, after = get("perplexity", "before"), get("perplexity", "after")
    if before and after and after > HIGH_PERPLEXITY_RATIO * before:
        notes.append(
            f"Perplexity under the reference is {after / before:.1f} times its start: the language has changed."
        )
    before, after = get("distinct_2", "before"), get("distinct_2", "after")
    if before and after is not None and abs(after / before - 1) > DISTINCT_CHANGE:
        notes.append(f"Distinct-2 changed by {after / before - 1:+.0%}: compare the samples for repetition.")
    models = [arguments.get(f"{role}_model_name_or_path") for role in ("reward", "judge")]
    if models[0] is not None and models[0] == models[1]:
        notes.append("The judge is the reward model itself, so it is not held out and over-optimisation does not show.")
    held_out = {key for row in metrics for key in row if key.startswith("rewards/") and is_held_out(key)}
    if metrics and not held_out and "judge" not in values:
        notes.append("No held-out judge was measured: over-optimisation of the reward would not be seen here.")
    return notes


def objective_section(objective: dict[str, Any]) -> str:
    """Formula, class and parameters; for a user's own objective also its file and hash."""
    parts = []
    formula = objective_formula(objective)
    if formula:
        parts.append(code_block(formula))
    rows = [("name", objective.get("name")), ("class", objective.get("class"))]
    rows += list((objective.get("parameters") or {}).items())
    rows += [("file", objective.get("file")), ("SHA-256 of the file", objective.get("sha256"))]
    shown = [(escape_cell(name), inline_code(format_parameter(value))) for name, value in rows if value is not None]
    parts.append(markdown_table(("objective", "value"), shown))
    return "\n\n".join(parts)


def samples_section(samples: list[dict[str, Any]], count: int = SAMPLES_SHOWN) -> str:
    """The first prompts with their completions side by side and the scores below each."""

    def cell(sample: dict[str, Any], side: str) -> str:
        scores = [
            f"{name} {format_number(sample.get(f'{name}_{side}'))}"
            for name in ("reward", "judge")
            if sample.get(f"{name}_{side}") is not None
        ]
        text = escape_cell(sample.get(side, ""))
        return f"{text}<br>*{', '.join(scores)}*" if scores else text

    rows = [(escape_cell(s.get("prompt", "")), cell(s, "before"), cell(s, "after")) for s in samples[:count]]
    number = min(count, len(samples))
    note = f"The first {number} of {len(samples)} held-out prompts, not selected; all are in `samples.jsonl`."
    return f"{note}\n\n{markdown_table(('prompt', 'before', 'after'), rows)}"


def reproduce_section(config: dict[str, Any]) -> str:
    """The command and the commit."""
    parts = []
    command = command_text(config)
    if command:
        parts.append(code_block(command, "bash"))
    parts.append(f"Commit: {commit_text(config)}. All resolved arguments are in `config.json`.")
    earlier = config.get("earlier") or []
    if earlier:
        parts.append(f"The run was resumed {len(earlier)} time(s); the earlier commands are in `config.json`.")
    return "\n\n".join(parts)


def environment_section(config: dict[str, Any]) -> str:
    """Versions and the machine."""
    rows = [(name, value) for name, value in (config.get("versions") or {}).items()]
    rows += [(key.replace("_", " "), config.get(key)) for key in ("platform", "cpu_count", "device", "processes")]
    return markdown_table(
        ("", "version"),
        [(escape_cell(name), escape_cell(value)) for name, value in rows if value is not None],
    )
