"""The metrics through `evaluate.load`, without a network, against the functions that they call."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import evaluate
import pytest

from scope_rlhf.evaluation.modules import METRIC_MODULES, metric_path
from scope_rlhf.metrics import (
    calibration_error,
    distinct_n,
    length_controlled_win_rate,
    paired_interval,
    preference_accuracy,
    rouge_scores,
    win_rate,
)

FORWARD, BACKWARD = ["A", "B", "A", "tie", "invalid", "A"], ["A", "B", "B", "tie", "A", "A"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", refuse)


def compute(name, **inputs) -> dict:
    found = evaluate.load(metric_path(name)).compute(**inputs)
    assert found is not None
    return found


def test_win_rate_is_that_of_the_function():
    found, expected = (
        compute("win_rate", forward=FORWARD, backward=BACKWARD, seed=3),
        win_rate(FORWARD, BACKWARD, seed=3),
    )
    assert (found["win_rate"], found["low"], found["high"]) == (
        expected.rate.value,
        expected.rate.low,
        expected.rate.high,
    )
    assert found["decided"] == expected.decided.value == pytest.approx(2 / 3)
    assert (found["decided_low"], found["decided_high"]) == (expected.decided.low, expected.decided.high)
    assert (found["wins"], found["ties"], found["losses"], found["invalid"]) == (2, 2, 1, 1)
    assert (found["order_consistency"], found["first_position"]) == (0.8, expected.first_position)
    assert compute("win_rate", forward=["tie"], backward=["tie"])["decided"] is None


def test_the_others_are_those_of_the_functions():
    scores, lengths = [1.0, 0.0, 0.5, 1.0, 0.0, 1.0], [3.0, -2.0, 1.0, 0.0, 2.0, -1.0]
    expected = length_controlled_win_rate(scores, lengths)
    found = compute("length_controlled_win_rate", scores=scores, length_difference=lengths)
    assert found == {"win_rate": expected.value, "low": expected.low, "high": expected.high}
    margins = [0.5, -0.2, 2.0, 1.0]
    found, accuracy = compute("preference_accuracy", margins=margins, bins=2), preference_accuracy(margins)
    error = calibration_error(margins, 2)
    assert found == {"accuracy": 0.75, "low": accuracy.low, "high": accuracy.high, "calibration_error": error}
    texts = ["a b a b", "c d"]
    assert (
        compute("distinct_n", predictions=texts, n=2)["distinct_n"] == distinct_n([t.split() for t in texts], 2) == 0.75
    )
    pair = {"predictions": ["the cat sat"], "references": ["a cat sat down"]}
    assert compute("rouge", **pair) == rouge_scores(**pair)
    found, paired = (
        compute("paired_difference", before=[1, 2, 3], after=[2, 4, 3]),
        paired_interval([1, 2, 3], [2, 4, 3]),
    )
    assert found == {"before": 2, "after": 3, "difference": 1, "low": paired.low, "high": paired.high}


def test_batches_that_are_added_are_computed_together():
    metric = evaluate.load(metric_path("win_rate"))
    for forward, backward in zip(FORWARD, BACKWARD, strict=True):
        metric.add(forward=forward, backward=backward)
    assert metric.compute() == compute("win_rate", forward=FORWARD, backward=BACKWARD)


def test_errors_of_the_functions_come_through_and_every_module_says_what_it_takes():
    with pytest.raises(ValueError, match="a verdict must be one of A, B, tie, invalid, got 'first'"):
        compute("win_rate", forward=["first"], backward=["A"])
    with pytest.raises(ValueError, match="unknown metric 'bleu'; valid names: distinct_n, length_controlled"):
        metric_path("bleu")
    folders = {file.parent.name for file in Path(metric_path("win_rate")).parents[1].glob("*/*.py")}
    assert folders == set(METRIC_MODULES)
    for name in METRIC_MODULES:
        metric = evaluate.load(metric_path(name))
        assert all(feature in metric.inputs_description for feature in metric.features), name


@pytest.mark.slow
def test_a_wheel_contains_them(tmp_path):
    root, source = Path(__file__).parents[2], tmp_path / "source"
    shutil.copytree(root / "scope_rlhf", source / "scope_rlhf", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    assert {f"scope_rlhf/evaluation/modules/{name}/{name}.py" for name in METRIC_MODULES} <= names
