"""The metrics as local modules of the library `evaluate`: `evaluate.load(metric_path("win_rate")).compute(...)`."""

from scope_rlhf.evaluation.modules.paths import METRIC_MODULES, metric_path

__all__ = ["METRIC_MODULES", "metric_path"]
