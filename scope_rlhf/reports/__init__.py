"""Reports from run folders: pictures, tables, Markdown. Nothing here loads a model or starts a computation."""

from scope_rlhf.reports.card import write_model_card
from scope_rlhf.reports.curves import find_panels, plot_curves
from scope_rlhf.reports.frontier import FrontierPoint, plot_frontier, read_frontier
from scope_rlhf.reports.run_report import write_report
from scope_rlhf.reports.table import evaluation_table

__all__ = [
    "FrontierPoint",
    "evaluation_table",
    "find_panels",
    "plot_curves",
    "plot_frontier",
    "read_frontier",
    "write_model_card",
    "write_report",
]
