"""The report of a Pass@k folder: tables and picture, from names that hold anything."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from scope_rlhf.evaluation.pass_at_k import Samples, summarise
from scope_rlhf.reports import pass_at_k
from scope_rlhf.reports.pass_at_k import (
    pass_at_k_markdown,
    pass_at_k_table,
    plot_pass_at_k,
    write_pass_at_k_report,
)
from scope_rlhf.runtime.files import write_json

pytest.importorskip("matplotlib")

NASTY = "a | $b_1$ [red]"


@pytest.fixture
def summary(tmp_path):
    """Two systems on 4 prompts of 4 samples: 0, 1, 2, 4 right and all right."""
    few = np.array([np.arange(4) < rights for rights in (0, 1, 2, 4)])
    ended = np.arange(16).reshape(4, 4) < 14
    systems = [
        Samples("base", list("wxyz"), [["c"] * 4] * 4, few, ended, "temperature 1"),
        Samples(NASTY, list("wxyz"), [["c"] * 4] * 4, few | True, None, "as given"),
    ]
    found = summarise(systems, [1, 4]) | {"dataset": "arithmetic", "verifier": "exact_answer"}
    write_json(tmp_path / "passk.json", found)
    return json.loads((tmp_path / "passk.json").read_text())


def test_the_tables_hold_the_numbers_and_the_differences(summary, tmp_path, markdown_tables):
    report, picture = write_pass_at_k_report(tmp_path)
    assert (report.name, picture.name) == ("passk.md", "passk.png") and picture.read_bytes().startswith(b"\x89PNG")
    text = report.read_text()
    values, differences = markdown_tables(text)
    assert values[0] == ["", "Avg@4", "Pass@1", "Pass@4", "samples", "ended"]
    # 7 of 16 right; 3 of 4 prompts with a right one; 14 of 16 ended.
    base, nasty = values[1:]
    assert base[0] == "base" and base[1].startswith("43.8 [") and base[3].startswith("75.0 [")
    assert base[1] == base[2] and base[4:] == ["4", "87.5"]
    assert nasty == [NASTY, *["100.0 [100.0, 100.0]"] * 3, "4", "-"]
    assert differences[0] == ["", "Avg@4", "Pass@1", "Pass@4"]
    assert differences[1][0] == NASTY and differences[1][1].startswith("+56.2 [+") and len(differences) == 2
    assert "4 prompts of arithmetic" in text and "Verifier: exact\\_answer" in text and "- base: temperature 1" in text


def test_one_system_has_no_differences_and_one_prompt_no_interval(markdown_tables):
    one = Samples("one", ["p"], [["c", "d"]], np.array([[True, False]]))
    found = summarise([one], [1, 2]) | {"dataset": "letters", "verifier": "v"}
    found = json.loads(json.dumps(found).replace("-Infinity", "null").replace("Infinity", "null"))
    (table,) = markdown_tables(pass_at_k_markdown(found))
    assert table[1] == ["one", "50.0", "50.0", "100.0", "2", "-"]


def test_the_table_of_the_terminal_has_the_same_cells(summary):
    out = io.StringIO()
    Console(file=out, width=200).print(pass_at_k_table(summary))
    text = out.getvalue()
    assert NASTY in text and "43.8 [" in text and "87.5" in text and "4 prompts of arithmetic" in text


def test_the_picture_has_a_line_and_a_band_for_each_system(summary, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(pass_at_k, "save_figure", lambda figure, path: figures.append(figure) or path)
    plot_pass_at_k(summary, tmp_path / "x.png")
    (axes,) = figures[0].axes
    assert [line.get_xdata().tolist() for line in axes.lines] == [[1, 2, 4]] * 2
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([43.75, 100 * (0 + 1 / 2 + 5 / 6 + 1) / 4, 75])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["base", NASTY]
    band = axes.collections[0].get_paths()[0].get_extents()
    points = summary["systems"][0]["pass_at_k"]
    assert (band.y0, band.y1) == pytest.approx((100 * points["1"]["low"], 100 * points["4"]["high"]))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4"]


def test_a_folder_without_numbers_and_a_damaged_one_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds no Pass@k: it has no passk.json"):
        write_pass_at_k_report(tmp_path)
    (tmp_path / "passk.json").write_text("{")
    with pytest.raises(ValueError, match="passk.json is damaged"):
        write_pass_at_k_report(tmp_path)
