"""Pure metric functions: numbers in, numbers with intervals out."""

from scope_rlhf.metrics.calibration import (
    MarginBin,
    accuracy_by_kind,
    calibration_bins,
    calibration_error,
    preference_accuracy,
)
from scope_rlhf.metrics.classification import (
    PerClass,
    classification_metrics,
    confusion_matrix,
    expected_calibration_error,
    per_class_scores,
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
from scope_rlhf.metrics.pass_at_k import avg_at_k, pass_at_k, pass_at_k_curve, pass_at_k_estimates
from scope_rlhf.metrics.returns import (
    MeanDifference,
    aggregate_runs,
    align_curves,
    average_repeated_steps,
    difference_of_means,
    interquartile_mean,
    learning_curve_area,
    not_worse,
    student_interval,
    student_quantile,
)
from scope_rlhf.metrics.rouge import rouge_scores
from scope_rlhf.metrics.seeds import SeedResult, compare, significance
from scope_rlhf.metrics.win_rate import WinRate, length_controlled_win_rate, pair_scores, win_rate

__all__ = [
    "Interval",
    "MarginBin",
    "MeanDifference",
    "PairedDifference",
    "PerClass",
    "SeedResult",
    "WinRate",
    "accuracy_by_kind",
    "aggregate_runs",
    "align_curves",
    "average_repeated_steps",
    "avg_at_k",
    "calibration_bins",
    "calibration_error",
    "classification_metrics",
    "compare",
    "confusion_matrix",
    "difference_of_means",
    "distinct_n",
    "expected_calibration_error",
    "interquartile_mean",
    "interval_over_runs",
    "learning_curve_area",
    "length_controlled_win_rate",
    "mean_interval",
    "not_worse",
    "pair_scores",
    "paired_distinct_n",
    "paired_interval",
    "pass_at_k",
    "pass_at_k_curve",
    "pass_at_k_estimates",
    "per_class_scores",
    "preference_accuracy",
    "rouge_scores",
    "significance",
    "student_interval",
    "student_quantile",
    "wilson_interval",
    "win_rate",
]
