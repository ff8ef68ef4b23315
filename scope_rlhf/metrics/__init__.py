"""Pure metric functions: numbers in, numbers with intervals out."""

from scope_rlhf.metrics.diversity import distinct_n, paired_distinct_n
from scope_rlhf.metrics.intervals import Interval, PairedDifference, mean_interval, paired_interval, wilson_interval

__all__ = [
    "Interval",
    "PairedDifference",
    "distinct_n",
    "mean_interval",
    "paired_distinct_n",
    "paired_interval",
    "wilson_interval",
]
