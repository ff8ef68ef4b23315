"""What the throughput table says follows from the runs it was given."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.control_throughput import HEADER, ROOT, TASKS, command, page, read_ours, summarize, table_rows


def update(step: int, environment: float, rollout: float, spent: float) -> dict[str, Any]:
    return {
        "step": step,
        "charts/SPS": 1.0,  # since the start of the run, so never the answer
        "time/environment": environment,
        "time/rollout": rollout,
        "time/update": spent,
    }


def write_run(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def a_run(side: str, rate: float, update_seconds: float = 1.0) -> dict[str, Any]:
    return {
        "side": side,
        "steps_per_second": rate,
        "split": {"environment": 0.5, "rollout": 0.25, "update": update_seconds},
    }


def test_steps_per_second_is_the_median_over_updates_after_the_first_two(tmp_path):
    # Rates 1, 2, then 1024/1 = 1024, 1024/2 = 512, 1024/4 = 256: their median is 512; with the first two it is 256.
    rows = [update(1024, 512, 256, 256), update(2048, 256, 128, 128)]
    rows += [update(3072, 0.25, 0.25, 0.5), update(4096, 0.5, 0.5, 1.0), update(5120, 1.0, 0.5, 2.5)]
    result = read_ours(write_run(tmp_path, rows))
    assert result["steps_per_second"] == 512
    assert result["iterations"] == [1024, 512, 1, 2, 4]
    assert result["seconds"] == 512 + 1 + 2 + 4
    assert result["split"] == {"environment": 0.5, "rollout": 0.5, "update": 1.0}


def test_a_last_update_with_fewer_steps_is_rated_by_its_own_steps(tmp_path):
    rows = [update(step, 0.5, 0.25, 0.25) for step in (100, 200)] + [update(210, 0.5, 0.25, 0.25)]
    assert read_ours(write_run(tmp_path, rows))["steps_per_second"] == 10


def test_lines_that_are_no_updates_are_skipped_and_the_run_may_lie_deeper(tmp_path):
    rows = [update(step, 0.5, 0.25, 0.25) for step in (100, 200, 300)]
    deeper = write_run(tmp_path / "run-1", [*rows[:2], {"step": 250, "evaluation/return": 3.0}, rows[2]])
    assert read_ours(tmp_path) == read_ours(deeper)
    assert read_ours(tmp_path)["steps_per_second"] == 100


def test_runs_that_cannot_be_rated_are_refused(tmp_path):
    rows = [update(step, 0.5, 0.25, 0.25) for step in (100, 200, 300)]
    with pytest.raises(ValueError, match="found 0"):
        read_ours(tmp_path)
    with pytest.raises(ValueError, match="2 updates, of which 2 are not counted"):
        read_ours(write_run(tmp_path / "short", rows[:2]))
    with pytest.raises(ValueError, match="line 3: step 200 does not follow 200"):
        read_ours(write_run(tmp_path / "repeated", [*rows[:2], rows[1]]))
    partial = {key: value for key, value in rows[2].items() if key != "time/update"}
    with pytest.raises(ValueError, match="line 3: an update without time/update"):
        read_ours(write_run(tmp_path / "partial", [*rows[:2], partial]))


def test_the_summary_compares_medians_and_keeps_the_extremes():
    rates = {"ours": (300, 100, 200), "cleanrl": (80, 100, 400), "sb3": (50, 40, 60)}
    runs = [a_run(side, rates[side][i], update_seconds=float(i)) for i in range(3) for side in rates]
    summary = summarize(runs)
    assert [(side, row["median"], row["min"], row["max"]) for side, row in summary.items()] == [
        ("ours", 200, 100, 300),
        ("cleanrl", 100, 80, 400),
        ("sb3", 50, 40, 60),
    ]
    assert [row["ours_over_it"] for row in summary.values()] == [1, 2, 4]
    assert summary["sb3"]["split"] == {"environment": 0.5, "rollout": 0.25, "update": 1.0}


def test_without_our_side_the_table_has_no_ratio():
    summary = summarize([a_run("cleanrl", 100), a_run("sb3", 50)])
    assert [row["ours_over_it"] for row in summary.values()] == [None, None]
    assert table_rows("atari", summary)[1] == (
        "atari", "sb3", "1", "50", "50", "50", "0.50", "0.25", "1.00", "-", "-",
    )  # fmt: skip


def test_the_table_shows_each_side_with_both_our_ratios_to_it():
    rates = {"ours": (1150, 1250), "bf16": (2000, 2800), "sb3": (100, 60)}
    rows = table_rows("atari", summarize([a_run(side, rates[side][i]) for i in range(2) for side in rates]))
    shown = ["2", "1,200", "1,150", "1,250", "0.50", "0.25", "1.00", "1.00", "2.00"]
    assert list(rows[0]) == ["atari", "ours", *shown] and len(rows[0]) == len(HEADER)
    assert rows[1][-2:] == ("0.50", "1.00") and rows[2][-2:] == ("15.00", "30.00")


def test_the_page_has_the_command_the_machine_and_every_row():
    about = {
        "tasks": ["atari", "mujoco"],
        "repetitions": 5,
        "timesteps": 16384,
        "date": "2026-01-02",
        "threads": 2,
        "commit": "abc1234",
    }
    about |= {"machine": "a machine", "versions": {"ours": {"torch": "2.13.0"}, "sb3": {"torch": "2.12.0"}}}
    rows = table_rows("atari", summarize([a_run("ours", 150), a_run("sb3", 100)]))
    text = page(about, rows)
    assert (
        "control_throughput.py atari mujoco --repetitions 5" in text
        and "abc1234, 2026-01-02: a machine, 2 threads" in text
    )
    assert "| atari | sb3 | 1 | 100 | 100 | 100 | 0.50 | 0.25 | 1.00 | 1.50 | - |" in text
    assert "torch 2.12.0, torch 2.13.0." in text


@pytest.mark.parametrize(("task", "side"), [(task, side) for task, sides in TASKS.items() for side in sides])
def test_each_side_is_told_the_same_steps_and_where_to_write(task, side, tmp_path):
    args = argparse.Namespace(timesteps=4096, threads=3, peers_python="/peers/bin/python")
    words = command(task, side, args, tmp_path)
    assert words[words.index("--total_timesteps") + 1] == "4096"
    if side in ("ours", "bf16"):
        assert words[:4] == [sys.executable, "-m", "scope_rlhf.cli", "control"]
        assert words[words.index("--output_dir") + 1] == str(tmp_path) and ("--bf16" in words) == (side == "bf16")
    else:
        assert words[0] == "/peers/bin/python" and (ROOT / words[1]).is_file()
        assert words[words.index("--threads") + 1] == "3"
        assert words[words.index("--output") + 1] == str(tmp_path / "result.json")


def test_the_flags_of_ours_are_flags_of_the_command():
    from scope_rlhf.experiments.control import parse_control

    for sides in TASKS.values():
        for side in ("ours", "bf16"):
            if side in sides:
                words = [str(ROOT / word) if word.endswith(".yaml") else word for word in sides[side].split()]
                assert parse_control(words) is not None
