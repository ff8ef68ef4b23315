"""What the throughput table says follows from the runs it was given."""

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks.control_throughput import PEERS, ROOT, command, read_ours, summarize, throughput_table


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
    assert printed(summary)["sb3"] == ["1", "50", "50", "50", "0.50", "0.25", "1.00", "-"]


def test_the_table_shows_each_side_with_our_ratio_to_it():
    rows = printed(summarize([a_run("ours", 150), a_run("sb3", 100), a_run("ours", 250), a_run("sb3", 60)]))
    assert rows["ours"] == ["2", "200", "150", "250", "0.50", "0.25", "1.00", "1.00"]
    assert rows["sb3"] == ["2", "80", "60", "100", "0.50", "0.25", "1.00", "2.50"]


def printed(summary: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(throughput_table(summary))
    cells = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in console.export_text().splitlines() if "│" in line
    ]
    return {side: rest for side, *rest in cells}


def test_each_side_is_told_the_same_game_steps_and_where_to_write(tmp_path):
    args = argparse.Namespace(env="Breakout", timesteps=4096, threads=3, peers_python="/peers/bin/python")
    ours = command("ours", args, tmp_path)
    assert ours[:4] == [sys.executable, "-m", "scope_rlhf.cli", "control"]
    assert ours[ours.index("--env") + 1] == "Breakout" and ours[ours.index("--total_timesteps") + 1] == "4096"
    for side, env_id in (("cleanrl", "Breakout-v5"), ("sb3", "BreakoutNoFrameskip-v4")):
        words = command(side, args, tmp_path)
        assert words[0] == "/peers/bin/python" and (ROOT / words[1]).is_file()
        flags = dict(zip(words[2::2], words[3::2], strict=True))
        assert flags == {
            "--env_id": env_id, "--total_timesteps": "4096", "--threads": "3",
            "--output": str(tmp_path / "result.json"),
        }  # fmt: skip
    assert set(PEERS) == {"cleanrl", "sb3"}
