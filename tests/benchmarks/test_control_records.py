"""Records of runs: what is kept, what replaces what, and the tables made from them alone."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.control_records import RunRecord, add, of_folder, read, thin
from benchmarks.control_report import write_table
from benchmarks.control_tables import RUNS

RECORD = RunRecord("CartPole, PPO", "ppo", 1, [490.0, 500.0], [10, 20], [100.0, 300.0], "abc1234", "2.13.0")


def test_a_curve_is_thinned_to_means_over_equal_parts_of_its_steps():
    steps, values = thin(np.arange(1, 101), np.arange(1, 101) * 2.0, points=4)
    # Parts are [0, 25), [25, 50), [50, 75), [75, 100] of the 100 steps.
    assert steps == [12, 37, 62, 88] and values == [25.0, 74.0, 124.0, 175.0]
    assert thin([7, 100], [3.0, 5.0], points=60) == ([7, 100], [3.0, 5.0])
    assert thin([], []) == ([], [])


def test_the_area_of_a_thinned_curve_is_that_of_the_curve():
    from scope_rlhf.metrics import learning_curve_area

    steps = np.arange(256, 100_001, 256)
    values = 500 / (1 + np.exp((40_000 - steps) / 8_000))
    record = replace(RECORD, **dict(zip(("steps", "returns"), thin(steps, values), strict=True)))
    assert record.area() == pytest.approx(learning_curve_area(steps, values), rel=0.01)


def test_a_run_that_is_not_finished_has_no_record(tmp_path):
    assert of_folder(tmp_path, "g", "l", 1) is None


def test_the_record_of_a_run_is_what_its_folder_says(tmp_path):
    files = {
        "finished.json": {"step": 20},
        "evaluation.json": {"returns": [1.0, 2.123456789]},
        "config.json": {"source": {"commit": "abcdef0123"}, "versions": {"torch": "2.13.0"}},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    rows = [{"step": step, "charts/episodic_return": step * 2.0} for step in (10, 20)] + [{"step": 20, "other": 1}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = RunRecord("g", "l", 3, [1.0, 2.12346], [10, 20], [20.0, 40.0], "abcdef0", "2.13.0")
    assert of_folder(tmp_path, "g", "l", 3) == expected


def test_a_new_record_of_a_cell_and_seed_replaces_the_old_one_and_the_others_stay(tmp_path):
    path = tmp_path / "records.jsonl"
    add(path, [RECORD, None, replace(RECORD, seed=2)])
    found = add(path, [replace(RECORD, evaluation=[1.0])])
    assert found == read(path) and len(path.read_text().splitlines()) == 2
    assert found[RECORD.key].evaluation == [1.0] and found[("CartPole, PPO", "ppo", 2)].evaluation == [490.0, 500.0]
    assert read(tmp_path / "none.jsonl") == {} == add(tmp_path / "none.jsonl", [None])
    assert not (tmp_path / "none.jsonl").exists()


def test_a_table_needs_nothing_but_the_records(tmp_path):
    runs = [replace(RECORD, seed=seed, evaluation=[470.0 + seed]) for seed in (1, 2, 3)]
    runs += [replace(RECORD, label="scope", seed=seed, evaluation=[480.0 + seed]) for seed in (1, 2, 3)]
    path = write_table("learning", RUNS["learning"], {run.key: run for run in runs}, tmp_path)
    text = path.read_text()
    assert "| CartPole, PPO | scope | 3 | 482.0 [" in text and "+10.00 [" in text and "commit abc1234" in text
    assert (tmp_path / "control_learning.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="no finished run of table learning"):
        write_table("learning", RUNS["learning"], {}, tmp_path)


def test_cells_with_the_same_flags_share_a_run_and_others_do_not():
    by_folder = {}
    for cell in (cell for cells in RUNS.values() for cell in cells):
        by_folder.setdefault(cell.folder(1), set()).add(cell.flags)
    assert all(len(flags) == 1 for flags in by_folder.values())
    first = {(cell.panel, cell.label): cell.folder(1) for cells in RUNS.values() for cell in cells}
    assert first["CartPole, PPO", "ppo"] == first["CartPole", "ppo"] == first["CartPole, clean", "mse"]
    assert first["CartPole", "symmetric"] != first["CartPole", "symmetric, unmasked"] != first["CartPole", "ppo"]
