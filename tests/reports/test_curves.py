import json
import subprocess
import sys

import numpy as np
import pytest

from scope_rlhf.reports.curves import find_panels, moving_average, plot_curves, read_series
from scope_rlhf.runtime import RunFolder

pytest.importorskip("matplotlib")


def panels_of(folder):
    return {panel.title: panel for panel in find_panels(RunFolder(folder).read_metrics())}


def test_every_logged_quantity_has_its_panel_once(make_run):
    panels = panels_of(make_run())
    assert list(panels) == [
        "Reward",
        "KL to the reference",
        "Entropy",
        "Clip fraction",
        "Completion length",
        "Gradient norm",
        "Loss",
        # constant, and clip_fraction and entropy again, are left out
        "objective/approx_kl",
        "objective/ratio",
        "objective/scope_magnitude",
        "objective/surrogate",
    ]
    assert panels["Reward"].series == {
        "rewards/sentiment_reward/mean": "sentiment reward (optimised)",
        "rewards/sentiment_judge/mean": "sentiment judge (held out)",
    }


def test_win_rates_that_were_logged_now_and_then_have_a_panel():
    rows = [
        {"step": 1, "kl": 0.1},
        {"step": 2, "win_rate": 0.6, "win_rate/length_controlled": 0.5, "win_rate/low": 0.4},
    ]
    (panel,) = [panel for panel in find_panels(rows) if panel.title == "Win rate"]
    assert panel.series == {"win_rate": "over the baseline", "win_rate/length_controlled": "at equal length"}


def test_a_run_without_kl_has_no_kl_panel(make_run):
    assert "KL to the reference" not in panels_of(make_run(beta=0.0))


def test_a_run_without_named_rewards_shows_the_total():
    panels = find_panels([{"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.6}])
    assert [panel.series for panel in panels] == [{"reward": "reward"}]


def test_series_skip_lines_without_the_key_and_without_a_number():
    rows = [{"step": 1, "kl": 0.5}, {"step": 2}, {"step": 3, "kl": None}, {"step": 4, "kl": 1}]
    steps, values = read_series(rows, "kl")
    assert steps.tolist() == [1, 4]
    assert values.tolist() == [0.5, 1.0]


@pytest.mark.parametrize("width", [1, 5, 7])
def test_moving_average_is_the_mean_of_what_lies_within_its_width(width):
    values = np.random.default_rng(0).normal(size=20)
    half = width // 2
    expected = [values[max(0, i - half) : i + half + 1].mean() for i in range(20)]
    assert moving_average(values, width) == pytest.approx(np.array(expected))


@pytest.mark.parametrize(("steps", "beta"), [(120, 0.05), (3, 0.0), (1, 0.05)])
def test_the_picture_is_written_beside_the_metrics(make_run, steps, beta):
    import matplotlib.image

    folder = make_run(steps=steps, beta=beta)
    path = plot_curves(folder)
    assert path == folder / "curves.png"
    picture = matplotlib.image.imread(path)
    assert picture.shape[1] == 12 * 150
    # Something is drawn on it: more than white paper, and no draft is left behind.
    assert 0.01 < (picture[..., :3].min(axis=-1) < 0.9).mean() < 0.5
    assert not list(folder.glob(".*tmp"))


def test_a_run_that_logged_nothing_is_refused(make_run):
    folder = make_run(steps=0)
    with pytest.raises(ValueError, match="no logged numbers"):
        plot_curves(folder)


def test_lines_with_missing_values_are_drawn(make_run):
    folder = make_run(steps=5)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 6, "loss": None, "kl": 0.4}) + "\n")
        file.write(json.dumps({"step": 7, "eval_reward": 0.4}) + "\n")
    assert plot_curves(folder).exists()


def test_without_matplotlib_the_error_says_what_to_install(make_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ImportError, match=r'pip install "scope-rlhf\[demo\]"'):
        plot_curves(make_run())


def test_pictures_leave_the_callers_matplotlib_alone_and_need_no_torch(make_run):
    code = (
        "import sys; from scope_rlhf.reports.curves import plot_curves; plot_curves(sys.argv[1]);"
        "print(*({'torch', 'matplotlib.pyplot'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(make_run())], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
