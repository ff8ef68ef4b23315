"""Runs of control as the repository keeps them: one JSON line each, from which tables and pictures are made again.

    {"group": "CartPole, PPO", "label": "scope", "seed": 3, "evaluation": [500.0, ...], "steps": [...],
     "returns": [...], "commit": "c571cb9", "torch": "2.13.0+cpu"}

evaluation: returns of the last policy's episodes. steps, returns: the training episodes, as means over at most POINTS
equal parts of the run.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

POINTS = 60
Key = tuple[str, str, int]


@dataclass(frozen=True)
class RunRecord:
    """One seed of one cell of a table; `group` is its environment and condition, `label` what is compared."""

    group: str
    label: str
    seed: int
    evaluation: list[float]
    steps: list[int]
    returns: list[float]
    commit: str
    torch: str

    @property
    def key(self) -> Key:
        return self.group, self.label, self.seed

    @property
    def mean(self) -> float:
        """Mean return of the evaluation."""
        return float(np.mean(self.evaluation))

    def area(self, end: float | None = None) -> float:
        """Mean return of the curve up to the step `end`."""
        from scope_rlhf.metrics import learning_curve_area

        return learning_curve_area(self.steps, self.returns, end)


def thin(steps: Any, values: Any, points: int = POINTS) -> tuple[list[int], list[float]]:
    """Means of steps and values over `points` equal parts of the steps; parts without any are left out."""
    steps, values = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    if not len(steps):
        return [], []
    parts = np.minimum((steps / steps[-1] * points).astype(int), points - 1)
    kept = [parts == part for part in np.unique(parts)]
    return [round(float(steps[k].mean())) for k in kept], [float(f"{values[k].mean():.5g}") for k in kept]


def of_folder(folder: Path, group: str, label: str, seed: int) -> RunRecord | None:
    """The record of a finished run folder, else None."""
    from scope_rlhf.reports.control import learning_curve

    if not (folder / "finished.json").exists():
        return None
    config = json.loads((folder / "config.json").read_text())
    found = json.loads((folder / "evaluation.json").read_text())["returns"]
    commit = str((config.get("source") or {}).get("commit", "?"))[:7]
    evaluation = [float(f"{value:.6g}") for value in found]
    curve = thin(*learning_curve(folder))
    return RunRecord(group, label, seed, evaluation, *curve, commit, str(config["versions"]["torch"]))


def read(path: Path) -> dict[Key, RunRecord]:
    """The records of a file, none where there is no file."""
    if not path.exists():
        return {}
    records = [RunRecord(**json.loads(line)) for line in path.read_text().splitlines()]
    return {record.key: record for record in records}


def add(path: Path, new: Iterable[RunRecord | None]) -> dict[Key, RunRecord]:
    """Put these beside the records of a file, in place of those of the same cell and seed; all of them."""
    from scope_rlhf.runtime.files import write_text

    records = read(path) | {record.key: record for record in new if record is not None}
    lines = [json.dumps(asdict(records[key])) + "\n" for key in sorted(records)]
    if lines:
        write_text(path, "".join(lines))
    return records
