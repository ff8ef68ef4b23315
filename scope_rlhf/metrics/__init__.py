"""Pure metric functions: numbers in, numbers with intervals out."""

from scope_rlhf.metrics.calibration import (
    MarginBin,
    accuracy_by_kind,
    calibration_bins,
    calibration_error,
    preference_accuracy,
)
from scope_rlhf.metrics.diversity import distinct_n, paired_distinct_n
from scope_rlhf.metrics.intervals import (
    Interval,
    PairedDifference,
    interval_over_runs,
    mean_interval,
    paired_interval,
    wilson_interval,
)
from scope_rlhf.metrics.rouge import rouge_scores
from scope_rlhf.metrics.win_rate import WinRate, length_controlled_win_rate, pair_scores, win_rate

__all__ = [
    "Interval",
    "MarginBin",
    "PairedDifference",
    "WinRate",
    "accuracy_by_kind",
    "calibration_bins",
    "calibration_error",
    "distinct_n",
    "interval_over_runs",
    "length_controlled_win_rate",
    "mean_interval",
    "pair_scores",
    "paired_distinct_n",
    "paired_interval",
    "preference_accuracy",
    "rouge_scores",
    "wilson_interval",
    "win_rate",
]
