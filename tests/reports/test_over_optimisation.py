"""The over-optimisation curve, from run folders that are made for it."""

import json

import numpy as np
import pytest

from scope_rlhf.reports import over_optimisation
from scope_rlhf.reports.over_optimisation import plot_over_optimisation, read_over_optimisation, smooth

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.usefixtures("known_defaults")


@pytest.fixture
def overdone(make_run):
    """A run whose training reward rises with KL for ever and whose judge turns at 10 nats."""

    def make(name="run", key="rollout/kl", spread=True, judge=True):
        folder = make_run(name, steps=40)
        rows = []
        for step in range(1, 41):
            kl = 0.5 * (step - 1)
            row = {"step": step, key: kl, "rewards/rm/mean": 1 + 0.2 * kl}
            if judge:
                row["rewards/gold_judge/mean"] = 3 + kl - kl**2 / 20
            if spread:
                row |= {"rewards/rm/std": 2.0, "rewards/gold_judge/std": 4.0}
            rows += [row, {"step": step, "loss": 0.1}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    return make


def test_gains_are_over_the_first_log_in_its_standard_deviations(overdone):
    curve = read_over_optimisation(overdone(), "rollout/kl")
    kl = 0.5 * np.arange(40)
    np.testing.assert_allclose(curve.kl, kl)
    np.testing.assert_allclose(curve.reward, 0.2 * kl / 2)
    np.testing.assert_allclose(curve.judge, (kl - kl**2 / 20) / 4)
    assert curve.standardised and curve.label.endswith("seed 0")
    assert curve.kl[curve.judge.argmax()] == 10.0  # where the two part
    plain = read_over_optimisation(overdone("plain", spread=False), "rollout/kl")
    np.testing.assert_allclose(plain.reward, 0.2 * kl)
    assert not plain.standardised


def test_the_picture_has_two_smoothed_lines_of_one_colour_for_each_run(overdone, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(over_optimisation, "save_figure", lambda figure, path: figures.append(figure) or path)
    runs = [overdone("one"), overdone("two"), overdone("three")]
    plot_over_optimisation(runs, tmp_path / "o.png")
    (axes,) = figures[0].axes
    lines = axes.lines[1:]  # behind the line at 0
    assert [line.get_linestyle() for line in lines] == ["-", "--"] * 3
    assert len({line.get_color() for line in lines}) == 3
    np.testing.assert_allclose(lines[0].get_ydata(), smooth(0.05 * np.arange(40)))
    assert "nats per sequence" in axes.get_xlabel() and "standard deviations" in axes.get_ylabel()


def test_the_kl_of_tokens_serves_where_a_run_has_no_other(overdone, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(over_optimisation, "save_figure", lambda figure, path: figures.append(figure) or path)
    plot_over_optimisation([overdone("grpo", key="kl", spread=False)], tmp_path / "o.png")
    assert "nats per token" in figures[0].axes[0].get_xlabel() and "own units" in figures[0].axes[0].get_ylabel()


def test_the_picture_of_a_whole_run_is_written(make_run, tmp_path):
    path = plot_over_optimisation([make_run()], tmp_path / "pictures" / "o.png")
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("n", [1, 2, 3, 8, 30])
def test_smoothing_keeps_constants_and_the_number_of_points(n):
    np.testing.assert_allclose(smooth(np.full(n, 2.0)), np.full(n, 2.0))


def test_runs_that_have_no_such_curve_are_named(overdone, make_run, tmp_path):
    with pytest.raises(ValueError, match="holds no held-out judge beside the training reward.*it has rewards/rm/mean"):
        plot_over_optimisation([overdone("alone", judge=False)], tmp_path / "o.png")
    with pytest.raises(ValueError, match="without logged no KL"):
        plot_over_optimisation([overdone("with"), make_run("without", beta=0.0)], tmp_path / "o.png")
    with pytest.raises(ValueError, match="at least one run folder"):
        plot_over_optimisation([], tmp_path / "o.png")
