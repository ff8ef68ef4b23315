"""The report of a reward evaluation, from figures of known values and names that hold anything."""

import json

import pytest

from scope_rlhf.evaluation.completions import System
from scope_rlhf.evaluation.rewards import Scored, summarise
from scope_rlhf.reports import rewards
from scope_rlhf.reports.rewards import plot_rewards, rewards_markdown, write_rewards_report
from scope_rlhf.runtime.files import write_json

pytest.importorskip("matplotlib")

NASTY = "a | b <i>$x_1$"


@pytest.fixture
def folder(tmp_path):
    prompts = [f"p {i}" for i in range(4)]
    systems = [System("sft", prompts, ["x y"] * 4), System(NASTY, prompts, ["x y z"] * 4, [True] * 4)]
    values = ([1.0, 2.0, 3.0, 4.0], [3.0, 4.0, 5.0, 6.0])
    scored = [Scored(s, {"judge": v}) for s, v in zip(systems, values, strict=True)]
    summary = summarise(scored, {"judge": "held-out judge"}) | {
        "scorers": {"held-out judge": NASTY},
        "notes": ["Note."],
    }
    write_json(tmp_path / "rewards.json", summary)
    return tmp_path


def test_the_tables_hold_means_differences_and_quantiles(folder, markdown_tables):
    written = write_rewards_report(folder)
    assert [file.name for file in written] == ["report.md", "rewards.png"]
    text = written[0].read_text()
    means, differences, spread = markdown_tables(text)
    assert means[0] == ["", "sft", NASTY] and means[1][0] == "held-out judge"
    assert means[1][1].startswith("2.500 [") and means[1][2].startswith("4.500 [")
    # Every prompt gains 2, so that nothing is uncertain about it.
    assert differences[1] == ["held-out judge", "+2.000 [+2.000, +2.000]"]
    assert spread[1] == ["held-out judge", "1.118; 1.150 / 1.750 / 2.500 / 3.250 / 3.850",
                         "1.118; 3.150 / 3.750 / 4.500 / 5.250 / 5.850"]  # fmt: skip
    assert [row[0] for row in means[2:]] == ["distinct-2 (words)", "length (words)", "ended by itself"]
    assert means[4][1] == "-" and "Note." in text


def test_the_picture_shows_quantiles_means_and_differences(folder, monkeypatch):
    figures = []
    monkeypatch.setattr(rewards, "save_figure", lambda figure, path: figures.append(figure) or path)
    summary = json.loads((folder / "rewards.json").read_text())
    plot_rewards(summary, folder / "x.png")
    spread, difference = figures[0].axes
    assert spread.get_title(loc="left") == "held-out judge"
    assert [label.get_text() for label in spread.get_yticklabels()] == ["sft", NASTY]
    assert spread.lines[0].get_xdata() == pytest.approx([1.15, 3.85])
    assert [float(bar.lines[0].get_xdata()[0]) for bar in spread.containers] == [2.5, 4.5]
    assert [float(bar.lines[0].get_xdata()[0]) for bar in difference.containers] == [2.0]


def test_one_system_without_a_scorer_has_a_table_and_a_picture_of_its_length(tmp_path):
    summary = summarise([Scored(System("a", ["p", "q"], ["x y", "z"]), {})], {})
    text = rewards_markdown(summary)
    assert "Scorers: none." in text and "Paired difference" not in text
    assert plot_rewards(summary, tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_an_evaluation_and_a_damaged_one_are_named(tmp_path):
    with pytest.raises(ValueError, match="holds no reward evaluation: it has no rewards.json"):
        write_rewards_report(tmp_path)
    (tmp_path / "rewards.json").write_text("{")
    with pytest.raises(ValueError, match="rewards.json is damaged"):
        write_rewards_report(tmp_path)
