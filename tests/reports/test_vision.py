import json

import pytest

from scope_rlhf.cli import main
from scope_rlhf.metrics import SeedResult, compare
from scope_rlhf.reports.seed_table import read_results
from scope_rlhf.reports.vision import is_vision_run
from scope_rlhf.reports.vision_table import conclusions, table_cells, write_vision_table


def results(shift=0.03, seeds=6):
    """ppo, a row that is higher by `shift` in every seed, and one that is not."""
    found = []
    for seed in range(seeds):
        base = 0.8 + 0.01 * seed
        wobble = 0.004 * (-1) ** seed
        for row, value in (("ppo", base), ("ppo + ldam_drw", base + shift + wobble / 2), ("scope", base + wobble)):
            metrics = {"macro_precision": value, "precision_std": 0.1, "balanced_accuracy": value}
            found.append(SeedResult(row, seed, metrics))
    return found


@pytest.mark.parametrize("broken", [None, float("nan")])
def test_a_seed_without_a_finite_number_does_not_end_the_table(tmp_path, broken):
    some = [r if r.seed else SeedResult(r.row, 0, {**r.metrics, "macro_precision": broken}) for r in results()]
    assert compare(some, "macro_precision")["ppo"][0].n == 5
    write_vision_table(some, tmp_path, title="x", note="", name="x")


def test_a_table_has_the_published_numbers_and_is_made_again_from_its_records(tmp_path):
    assert len(conclusions(results())) == 3
    header, cells = table_cells(results(), "table1")
    assert header[-1].startswith("published table1")
    assert [line[-1] for line in cells] == ["0.2383 / 0.2471", "-", "0.2814 / 0.2436"]
    assert table_cells(results(), "table2")[1][2][-1] == "0.5956 / 0.2195"
    written = write_vision_table(results(), tmp_path, title="Digits", note="a note", name="x")
    first = written.read_text()
    assert "| `ppo + ldam_drw` | 6 |" in first
    again = read_results(tmp_path / "x.jsonl")
    assert again == results()
    write_vision_table(again, tmp_path, title="Digits", note="a note", name="x")
    assert written.read_text() == first
    assert (tmp_path / "x.png").stat().st_size > 5000


def test_a_run_has_its_report_with_classes_confusions_and_curves(tmp_path, capsys):
    flags = ["--num_train_epochs", "3", "--objective", "scope", "--long_tail", "ldam_drw", "--disable_tqdm", "true"]
    assert main(["vision", *flags, "--output_dir", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    assert "digits, scope(alpha=1), ldam_drw, seed 1" in printed
    assert "precision, standard deviation over classes" in printed
    assert is_vision_run(tmp_path / "run")
    text = (tmp_path / "run" / "report.md").read_text()
    assert all(part in text for part in ("## Classes", "## Data", "train images", "(confusion.png)", "(curves.png)"))
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert text.count("\n| ") > len(evaluation["per_class"])
    for picture in ("curves.png", "confusion.png"):
        (tmp_path / "run" / picture).unlink()
    assert main(["report", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "confusion.png").exists()
    assert (tmp_path / "run" / "report.md").read_text() == text
