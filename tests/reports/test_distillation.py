import json

import pytest
from rich.console import Console

from scope_rlhf.metrics import SeedResult
from scope_rlhf.reports.distillation import distillation_table, write_distillation_table
from scope_rlhf.reports.seed_table import read_results


def results(seeds):
    found = [SeedResult("teacher", 1, {"accuracy": 0.98, "avg": 0.97, "pass@8": 1.0})]
    for seed in range(1, seeds + 1):
        for row, value in (("start", 0.3), ("opd", 0.5), ("scope", 0.6), ("scope tau=2", 0.5)):
            wobble = 0.01 * seed * (-1 if row == "scope tau=2" and seed % 2 else 1)
            metrics = {"accuracy": value, "avg": value + wobble, "pass@8": 0.9, "kl_wrong": 2 - value}
            found.append(SeedResult(row, seed, metrics | ({} if row == "start" else {"seconds_per_step": 0.2})))
    return found


@pytest.fixture
def runs(tmp_path):
    folders = {}
    for result in results(3):
        folder = tmp_path / f"{result.row.replace(' ', '-')}-{result.seed}"
        folder.mkdir()
        rows = [{"step": s, "reward": 0.3 + 0.01 * s, "distillation/log_ratio_wrong": 2 - 0.1 * s} for s in (5, 10, 15)]
        if result.row not in ("teacher", "start"):
            (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        folders[result.row, result.seed] = folder
    return folders


def test_the_table_compares_methods_with_the_first_method_and_never_with_the_teacher(tmp_path, runs):
    file = write_distillation_table(results(3), tmp_path / "t", runs, title="Letters", note="`a`", ks=[8])
    text = file.read_text()
    assert "Avg@8 minus opd" in text and "| `scope` | 3 | 0.600 [0.600, 0.600] |" in text
    row = next(line for line in text.splitlines() if line.startswith("| `scope` "))
    assert "+0.100 [+0.100, +0.100]" in row
    teacher = next(line for line in text.splitlines() if line.startswith("| `teacher` "))
    assert teacher.split("|")[-4:-1] == [" - ", " - ", " - "]
    assert "Avg@8, against opd" in text and "scope higher" in text
    assert "teacher higher" not in text and "start lower" not in text
    assert read_results(tmp_path / "t" / "table.jsonl") == results(3)
    for name in ("table.png", "table_curves.png"):
        assert (tmp_path / "t" / name).stat().st_size > 5000 and f"({name})" in text


def test_one_seed_has_curves_and_no_differences(tmp_path, runs):
    text = write_distillation_table(results(1), tmp_path / "t", runs, title="x", note="", ks=[8]).read_text()
    assert "one seed tells no difference" in text and "![differences]" not in text
    assert not (tmp_path / "t" / "table.png").exists()


def test_the_terminal_shows_whole_names_and_the_difference_to_the_control():
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(distillation_table(results(3), [8]))
    shown = console.export_text()
    assert "scope tau=2" in shown and "+0.100" in shown and "…" not in shown
