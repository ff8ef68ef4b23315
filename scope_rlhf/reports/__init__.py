"""Reports from run folders: pictures, tables, Markdown. Nothing here loads a model or starts a computation."""

from scope_rlhf.reports.calibration import plot_calibration
from scope_rlhf.reports.card import write_model_card
from scope_rlhf.reports.curves import find_panels, plot_curves
from scope_rlhf.reports.frontier import FrontierPoint, plot_frontier, read_frontier
from scope_rlhf.reports.over_optimisation import plot_over_optimisation
from scope_rlhf.reports.rewards import write_rewards_report
from scope_rlhf.reports.run_report import write_report
from scope_rlhf.reports.table import evaluation_table
from scope_rlhf.reports.win_rate import write_win_rate_report

__all__ = [
    "FrontierPoint",
    "evaluation_table",
    "find_panels",
    "plot_calibration",
    "plot_curves",
    "plot_frontier",
    "plot_over_optimisation",
    "read_frontier",
    "write_model_card",
    "write_report",
    "write_rewards_report",
    "write_win_rate_report",
]
