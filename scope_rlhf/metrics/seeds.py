"""Rows of a comparison over seeds: intervals, and differences to a control that are paired by seed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scope_rlhf.metrics.intervals import Interval
from scope_rlhf.metrics.returns import student_interval


@dataclass(frozen=True)
class SeedResult:
    """Metrics of one run: a row of the table, as it is typed, and its seed."""

    row: str
    seed: int
    metrics: Mapping[str, float]


def compare(
    results: Sequence[SeedResult], metric: str, confidence: float = 0.95, control: str | None = None
) -> dict[str, tuple[Interval, Interval | None]]:
    """{row: (its interval over seeds, the interval of its paired difference to the control)}, in order.

    Student's intervals; the difference is of runs of one seed, which share what a seed decides. control: a row, by
    default the first one; None for itself, and where fewer than two seeds are common. A seed whose metric is not a
    finite number is left out of it.
    """
    by_row: dict[str, dict[int, float]] = {}
    for result in results:
        value = result.metrics.get(metric)
        if isinstance(value, int | float) and math.isfinite(value):
            by_row.setdefault(result.row, {})[result.seed] = float(result.metrics[metric])
    found: dict[str, tuple[Interval, Interval | None]] = {}
    first = by_row.get(control or results[0].row, {}) if results else {}
    for row, values in by_row.items():
        gap = None
        common = [values[seed] - first[seed] for seed in values if seed in first]
        if values is not first and len(common) > 1:
            gap = student_interval(common, confidence)
        found[row] = student_interval(list(values.values())), gap
    return found


def significance(
    results: Sequence[SeedResult], metric: str, label: str | None = None, control: str | None = None
) -> str:
    """In words, which rows differ from the control (see compare): at 95 % over all comparisons together (Bonferroni).
    label: what the metric is called.
    """
    label = label or metric
    rows = list(dict.fromkeys(result.row for result in results))
    number = len(rows) - 1
    if number < 1:
        return ""
    gaps = {
        row: gap for row, (_, gap) in compare(results, metric, 1 - 0.05 / number, control).items() if gap is not None
    }
    if not gaps:
        return f"{label}: one seed tells no difference."
    better = [row for row, gap in gaps.items() if gap.low > 0]
    worse = [row for row, gap in gaps.items() if gap.high < 0]
    told = [f"{', '.join(names)} {word}" for names, word in ((better, "higher"), (worse, "lower")) if names]
    rest = f"the other {number - len(better) - len(worse)} cannot be told from it" if len(told) else "none differs"
    return (
        f"{label}, against {control or rows[0]}, 95 % over {number} comparisons (Bonferroni): "
        f"{'; '.join([*told, rest] if number > len(better) + len(worse) else told)}."
    )
