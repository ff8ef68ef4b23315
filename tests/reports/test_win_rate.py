"""The report of win-rate folders: table, picture and page, from files that hold anything a model writes."""

from html.parser import HTMLParser

import pytest

from scope_rlhf.evaluation.completions import System
from scope_rlhf.evaluation.judges import FunctionJudge
from scope_rlhf.evaluation.win_rate import compare
from scope_rlhf.reports import win_rate
from scope_rlhf.reports.win_rate import plot_win_rates, read_summary, win_rate_markdown, write_win_rate_report

pytest.importorskip("matplotlib")

NASTY = '</p><script>alert("x")</script> | {braces} $a_1$ & `code`'
TEXTS = ["a win", "b", "same", "odd"]
OTHERS = ["bb", "a loss for b", "emas", "odd too"]


def judge(prompt, first, second):
    if first.startswith("odd"):
        return NASTY
    return "tie" if len(first) == len(second) else "first" if len(first) > len(second) else "second"


@pytest.fixture
def make_folder(tmp_path):
    """make_folder("name", name_a=..., judge=...) writes one comparison and returns its folder."""

    def make(name="one", name_a="new", name_b="old", judge=judge, texts=TEXTS):
        prompts = [f"POST: {i} {NASTY}\n\nTL;DR:" for i in range(4)]
        a, b = System(name_a, prompts, texts, [True, True, False, True], "greedy"), System(name_b, prompts, OTHERS)
        compare(a, b, FunctionJudge(judge, f"judge of {NASTY}"), resamples=200).write(tmp_path / name)
        return tmp_path / name

    return make


class Page(HTMLParser):
    """Articles with their attributes and text; every tag that occurs; attributes of every tag."""

    def __init__(self, text):
        super().__init__()
        self.articles, self.tags, self.buttons, self.options = [], [], {}, []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.inside = tag
        if tag == "article":
            self.articles.append((dict(attrs), []))
        if tag == "button":
            self.button = dict(attrs)["data-outcome"]

    def handle_data(self, data):
        if self.inside == "button":
            self.buttons[self.button] = data
        elif self.inside == "option":
            self.options.append(data)
        elif self.articles:
            self.articles[-1][1].append(data)


def test_the_table_holds_every_figure_of_the_comparison(make_folder, markdown_tables):
    written = write_win_rate_report([make_folder()])
    assert [file.name for file in written] == ["report.md", "pairs.html", "win_rate.png"]
    ((header, row),) = markdown_tables(written[0].read_text())
    cells = dict(zip(header, row, strict=True))
    assert (cells["A"], cells["B"], cells["judge"]) == ("new", "old", f"judge of {NASTY}")
    assert cells["win rate of A"].startswith("50.0 % [") and cells["wins / ties / losses"] == "1 / 1 / 1"
    # One of two, z = 1.959964: Wilson's bounds are .0945 and .9055.
    assert cells["decided pairs only"] == "50.0 % [9.5, 90.5]"
    assert (cells["n"], cells["invalid"], cells["same in both orders"]) == ("3", "25.0 %", "100.0 %")
    assert (cells["words A / B"], cells["without end A / B"]) == ("1.2 / 2.0", "25.0 % / unknown")
    assert cells["empty A / B"] == "0 / 0"
    assert written[2].read_bytes().startswith(b"\x89PNG")


def test_the_page_shows_all_pairs_with_the_judges_words_and_runs_nothing_that_a_model_wrote(make_folder):
    text = write_win_rate_report([make_folder()])[1].read_text()
    page = Page(text)
    assert [attributes["data-outcome"] for attributes, _ in page.articles] == ["win", "loss", "tie", "invalid"]
    assert page.tags.count("script") == 1 and "{braces}" in text and "{{" not in text
    shown = " ".join(page.articles[3][1])
    assert "odd too" in shown and 'alert("x")' in shown and f"returned {NASTY!r}" in shown
    assert page.buttons == {"all": "all 4", "win": "win 1", "tie": "tie 1", "loss": "loss 1", "invalid": "invalid 1"}


def test_several_comparisons_share_a_report_and_are_told_apart(make_folder, tmp_path, markdown_tables):
    folders = [make_folder("one"), make_folder("two", name_a='x "against" y', name_b=NASTY)]
    written = write_win_rate_report(folders, tmp_path / "both")
    assert {file.parent for file in written} == {tmp_path / "both"}
    assert len(markdown_tables(written[0].read_text())[0]) == 3
    page = Page(written[1].read_text())
    assert len(page.articles) == 8
    names = ["new against old", f'x "against" y against {NASTY}']
    assert page.options == ["all comparisons", *names]
    assert [a["data-versus"] for a, _ in page.articles] == [names[0]] * 4 + [names[1]] * 4
    assert page.articles[4][1].count('A: x "against" y ') == 1


def test_an_empty_completion_is_said_to_be_empty(make_folder):
    written = write_win_rate_report([make_folder(texts=["", "b", " ", "odd"])])
    assert written[1].read_text().count("<i>empty</i>") == 2 and "| 2 / 0 |" in written[0].read_text()


def test_the_picture_has_both_rates_with_their_intervals(make_folder, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(win_rate, "save_figure", lambda figure, path: figures.append(figure) or path)
    summary = read_summary(make_folder())
    plot_win_rates([summary], tmp_path / "w.png")
    bars = figures[0].axes[0].containers
    assert [bar.get_label() for bar in bars] == ["win rate", "length-controlled"]
    for bar, interval in zip(bars, (summary["win_rate"]["rate"], summary["length_controlled"]), strict=True):
        (segment,) = bar.lines[2][0].get_segments()
        assert float(bar.lines[0].get_xdata()[0]) == interval["value"]
        assert segment[:, 0].tolist() == pytest.approx([interval["low"], interval["high"]])


def test_without_a_valid_pair_there_is_a_table_and_no_picture(make_folder):
    folder = make_folder(judge=lambda *texts: None)
    written = write_win_rate_report([folder])
    assert [file.name for file in written] == ["report.md", "pairs.html"]
    report = written[0].read_text()
    assert "| none | none | none | 0 / 0 / 0 |" in report and "win_rate.png" not in report
    with pytest.raises(ValueError, match="no comparison has a valid pair"):
        plot_win_rates([read_summary(folder)], folder / "x.png")


def test_one_pair_has_a_rate_without_bounds(tmp_path):
    compare(System("a", ["p"], ["long"]), System("b", ["p"], ["x"]), FunctionJudge(judge)).write(tmp_path)
    assert "| 100.0 % | 100.0 % |" in win_rate_markdown([read_summary(tmp_path)])


def test_a_folder_without_a_comparison_and_a_damaged_one_are_named(tmp_path):
    with pytest.raises(ValueError, match="is no win-rate folder: it has no win_rate.json"):
        write_win_rate_report([tmp_path])
    (tmp_path / "win_rate.json").write_text("{")
    with pytest.raises(ValueError, match="win_rate.json is damaged"):
        read_summary(tmp_path)


def test_lengths_that_hardly_overlap_are_said_and_an_earlier_comparison_still_has_its_report(make_folder):
    """Was: KeyError for a comparison that was written before it was looked at."""
    folder = make_folder("apart", texts=["it is by far the longer one"] * 4)
    summary = read_summary(folder)
    assert summary["lengths_overlap"] is False
    assert "In new against old one side is nearly always the longer" in win_rate.win_rate_section([summary])
    for earlier in ({**summary, "lengths_overlap": True}, {k: v for k, v in summary.items() if k != "lengths_overlap"}):
        assert "nearly always the longer" not in win_rate.win_rate_section([earlier])
