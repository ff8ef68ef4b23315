"""Reports of classification runs: curves, the table of classes, the confusions of the worst."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scope_rlhf.reports.curves import Panel, draw_curves, logged_panels
from scope_rlhf.reports.figures import figure_style, new_figure, save_figure
from scope_rlhf.reports.labels import format_number, format_parameter, objective_label
from scope_rlhf.reports.markdown import escape_cell, inline_code, markdown_table
from scope_rlhf.reports.run_report import environment_section, objective_section, reproduce_section
from scope_rlhf.runtime import RunFolder, write_text

if TYPE_CHECKING:
    from rich.table import Table

Run = str | os.PathLike[str]
PANELS = (
    Panel(
        "Validation", "share", {"validation/balanced_accuracy": "balanced accuracy", "validation/accuracy": "accuracy"}
    ),
    Panel("Precision over classes", "mean", {"validation/macro_precision": ""}),
    Panel("Spread of precision", "standard deviation over classes", {"validation/precision_std": ""}),
    Panel("-log p of the label", "nats, validation", {"validation/loss": ""}),
    Panel("Training loss", "per image", {"train/loss": ""}),
    Panel("Training accuracy", "share", {"train/accuracy": ""}),
    Panel("Calibration error", "validation", {"validation/calibration_error": ""}),
    Panel("Learning rate", "", {"learning_rate": ""}),
    Panel("Speed", "images per second", {"images_per_second": ""}),
)
METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy (mean recall)",
    "macro_precision": "precision, mean over classes",
    "precision_std": "precision, standard deviation over classes",
    "recall_std": "recall, standard deviation over classes",
    "macro_f1": "F1, mean over classes",
    "never_predicted": "classes that are never predicted",
    "accuracy_many": "accuracy, classes with more than 100 training images",
    "accuracy_medium": "accuracy, 20 to 100",
    "accuracy_few": "accuracy, fewer than 20",
    "calibration_error": "expected calibration error",
    "loss": "-log p of the label, nats",
}


def is_vision_run(run_dir: Run) -> bool:
    """Whether the run folder is one of classification."""
    return RunFolder(run_dir).read_config().get("algorithm") == "classification"


def plot_vision_curves(run_dir: Run) -> Path:
    """Draw metrics.jsonl of a classification run into curves.png. ValueError where nothing was logged."""
    run = RunFolder(run_dir)
    rows = run.read_metrics()
    logged = {key for row in rows for key, value in row.items() if isinstance(value, int | float)}
    if len({row.get("learning_rate") for row in rows}) == 1:  # a flat line
        logged.discard("learning_rate")
    return draw_curves(run, logged_panels(PANELS, logged), rows, _title(run.read_config()))


def plot_confusion(run_dir: Run) -> Path:
    """Draw the confusions of evaluation.json into confusion.png: rows are the true classes, shares of their images."""
    run = RunFolder(run_dir)
    evaluation = run.read_evaluation()
    if not evaluation:
        raise ValueError(f"{run.path} has no evaluation, so there are no confusions to draw")
    classes, counts = evaluation["confusion"]["classes"], evaluation["confusion"]["counts"]
    images = {row["class"]: row["test_images"] for row in evaluation["per_class"]}
    trained = {row["class"]: row["train_images"] for row in evaluation["per_class"]}
    shares = [[count / max(1, images[name]) for count in row] for name, row in zip(classes, counts, strict=True)]
    size = 2.4 + 0.42 * len(classes)
    figure = new_figure(size + 0.8, size)
    with figure_style():
        axes = figure.add_subplot()
        axes.grid(False)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for y, row in enumerate(counts):
            for x, count in enumerate(row):
                if count:
                    axes.text(x, y, count, ha="center", va="center", fontsize=7.5,
                              color="white" if shares[y][x] > 0.5 else "black")  # fmt: skip
        names = [name if len(name) <= 18 else f"{name[:17]}…" for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=90)
        axes.set_yticks(range(len(classes)), [f"{n} ({trained[c]})" for n, c in zip(names, classes, strict=True)])
        axes.set_xlabel("predicted")
        axes.set_ylabel("true class (training images)")
        whole = len(classes) == len(evaluation["per_class"])
        axes.set_title("Confusions" if whole else "Confusions of the worst classes by F1")
        return save_figure(figure, run.path / "confusion.png")


def vision_table(run_dir: Run) -> "Table":
    """The table printed at the end of a run."""
    from rich.table import Table

    run = RunFolder(run_dir)
    evaluation = run.read_evaluation() or {}
    table = Table(title=_title(run.read_config()))
    table.add_column("", no_wrap=True)
    table.add_column(f"{evaluation.get('part', '')}, {evaluation.get('images', 0)} images", justify="right")
    for name, value in _results(run):
        table.add_row(name, value)
    return table


def write_vision_report(run_dir: Run) -> Path:
    """Write report.md of a classification run and return its path."""
    run = RunFolder(run_dir)
    config, evaluation = run.read_config(), run.read_evaluation()
    parts = [
        f"# {escape_cell(_title(config))}",
        markdown_table(("result", "value"), [(escape_cell(name), value) for name, value in _results(run)], "lr"),
    ]
    if (run.path / "curves.png").exists():
        parts += ["## Curves", "![by update](curves.png)"]
    if evaluation:
        parts += ["## Classes", _classes_section(evaluation)]
        if (run.path / "confusion.png").exists():
            parts.append("![confusions](confusion.png)")
    parts += ["## Data", _data_section(config)]
    parts += ["## Objective", objective_section(config.get("objective") or {})]
    parts += ["## Settings", _settings(config), "## Run it again", reproduce_section(config)]
    versions = (config.get("versions") or {}) | (config.get("vision_versions") or {})
    parts += ["## Versions", environment_section({**config, "versions": versions})]
    path = run.path / "report.md"
    write_text(path, "\n\n".join(part for part in parts if part) + "\n")
    return path


def _results(run: RunFolder) -> list[tuple[str, str]]:
    rows, evaluation = run.read_metrics(), run.read_evaluation()
    found = []
    if evaluation:
        for key, name in METRICS.items():
            if key in evaluation["metrics"]:
                value = evaluation["metrics"][key]
                found.append((name, str(value) if isinstance(value, int) else format_number(value)))
        interval = evaluation["accuracy_interval"]
        low, high = format_number(interval["low"]), format_number(interval["high"])
        found[0] = (found[0][0], f"{found[0][1]} [{low}, {high}]")
        found.append(("epoch of the model (best validation)", str(evaluation.get("best_epoch"))))
    epochs = [row for row in rows if "images_per_second" in row]
    if epochs:
        found.append(("epochs", str(epochs[-1]["epoch"])))
        found.append(("training images per second", format_number(float(epochs[-1]["images_per_second"]))))
        found.append(("waiting for images", f"{epochs[-1]['time/waiting_share']:.0%} of the time"))
    return found


def _classes_section(evaluation: Mapping[str, Any]) -> str:
    rows = sorted(evaluation["per_class"], key=lambda row: row["f1"])
    shown = rows if len(rows) <= 30 else rows[:15] + rows[-15:]
    note = "" if len(rows) <= 30 else f"The 15 worst and the 15 best of {len(rows)} by F1; all are in evaluation.json."
    cells = [
        (escape_cell(row["class"]), str(row["train_images"]), str(row["test_images"]), str(row["predicted"]),
         *(format_number(float(row[key])) for key in ("precision", "recall", "f1")))
        for row in shown
    ]  # fmt: skip
    header = ("class", "training images", "test images", "predicted", "precision", "recall", "F1")
    return f"{note}\n\n{markdown_table(header, cells, 'lrrrrrr')}".strip()


def _data_section(config: Mapping[str, Any]) -> str:
    data = config.get("data") or {}
    counts = data.get("counts") or {}
    rows = [("data", f"{data.get('name')}, {len(data.get('classes') or [])} classes")]
    rows += [
        (f"{part} images", f"{sum(values)}, {min(values)} to {max(values)} a class") for part, values in counts.items()
    ]
    for name, what in (("corrupt", "skipped, cannot be read"), ("converted", "converted to 8-bit RGB")):
        found = data.get(name) or {}
        if found:
            listed = ", ".join(f"{v} {k}" for k, v in found.items()) if name == "converted" else ", ".join(found)
            rows.append((what, f"{len(found)}: {listed}" if name == "corrupt" else listed))
    ignored = data.get("ignored") or []
    if ignored:
        more = f" and {len(ignored) - 10} more" if len(ignored) > 10 else ""
        rows.append(("left out, no image files", f"{len(ignored)}: {', '.join(ignored[:10])}{more}"))
    return markdown_table(("", ""), [(escape_cell(name), escape_cell(value)) for name, value in rows])


def _settings(config: Mapping[str, Any]) -> str:
    rows = [
        (name, format_parameter(value))
        for name, value in (config.get("arguments") or {}).items()
        if value not in (None, [], {}) and name not in ("dataset_name", "output_dir")
    ]
    return markdown_table(("setting", "value"), [(escape_cell(name), inline_code(value)) for name, value in rows])


def _title(config: Mapping[str, Any]) -> str:
    parts = [str((config.get("data") or {}).get("name")), objective_label(config.get("objective") or {}, brief=True)]
    remedy = (config.get("long_tail") or {}).get("name")
    if remedy and remedy != "none":
        parts.append(str(remedy))
    return ", ".join(parts) + f", seed {config.get('seed', '?')}"
