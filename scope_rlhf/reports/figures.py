"""matplotlib, imported when a picture is made, and how all pictures look."""

from pathlib import Path
from typing import Any

# Okabe and Ito: told apart by readers with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def new_figure(width: float, height: float) -> Any:
    """A figure that needs no display. ImportError with the install command where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError as error:
        raise ImportError(
            'The pictures of a report need matplotlib. Install it with `pip install "scope-rlhf[demo]"`.'
        ) from error
    # A figure without pyplot leaves the caller's backend and open figures alone.
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))
    FigureCanvasAgg(figure)
    return figure


def figure_style() -> Any:
    """A context in which axes are made with the style of the reports."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def save_figure(figure: Any, path: Path) -> Path:
    """Write the picture beside its name, then rename, as every file of a run folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.tmp")
    figure.savefig(draft, dpi=150, format=path.suffix.lstrip(".") or "png")
    draft.replace(path)
    return path
