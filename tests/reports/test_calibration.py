import numpy as np
import pytest

from scope_rlhf.reports import calibration
from scope_rlhf.reports.calibration import plot_calibration

pytest.importorskip("matplotlib")


def test_the_picture_shows_every_bin_with_its_interval_and_the_sigmoid(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(calibration, "save_figure", lambda figure, path: figures.append(figure) or path)
    margins = np.random.default_rng(0).normal(0.8, 1.5, 400)
    plot_calibration(margins, tmp_path / "c.png", "reward model")
    (axes,) = figures[0].axes
    curve, points = axes.lines[:2]
    np.testing.assert_allclose(curve.get_ydata(), 1 / (1 + np.exp(-curve.get_xdata())))
    bins = calibration.calibration_bins(margins)
    np.testing.assert_allclose(np.array(points.get_xdata(), float), [b.margin for b in bins])
    np.testing.assert_allclose(np.array(points.get_ydata(), float), [b.agreement.value for b in bins])
    title = axes.get_title(loc="left")
    assert title.startswith(f"reward model\naccuracy {100 * (margins > 0).mean():.1f} % [") and "n = 400" in title


@pytest.mark.parametrize("margins", [[0.0] * 4, [1.0], [-2.0, -3.0, -1.0]])
def test_the_picture_is_written_also_for_few_and_for_equal_margins(tmp_path, margins):
    path = plot_calibration(margins, tmp_path / "pictures" / "c.png", "odd")
    assert path.read_bytes().startswith(b"\x89PNG")
