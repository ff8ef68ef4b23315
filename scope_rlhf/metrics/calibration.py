"""How often a scorer agrees with preferences, and how its margin tells."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scope_rlhf.metrics.intervals import Interval, Values, value_column, wilson_interval


@dataclass(frozen=True)
class MarginBin:
    """Pairs with |margin| in [low, high): the mean |margin|, what sigmoid(|margin|) promises, and the agreement."""

    low: float
    high: float
    margin: float
    expected: float
    agreement: Interval


def preference_accuracy(margins: Values) -> Interval:
    """Share of the pairs whose chosen text scores higher, with its Wilson interval.

    margins [n]: score of chosen - score of rejected. A margin of 0 is not agreement.
    """
    column = value_column("margins", margins)
    return wilson_interval(int((column > 0).sum()), len(column))


def accuracy_by_kind(margins: Values, kinds: Sequence[str]) -> dict[str, Interval]:
    """preference_accuracy of the pairs of each kind, in order of first appearance."""
    column = value_column("margins", margins)
    if len(kinds) != len(column):
        raise ValueError(f"margins and kinds are of the same pairs, but hold {len(column)} and {len(kinds)} values")
    names = np.array(kinds)
    return {kind: preference_accuracy(column[names == kind]) for kind in dict.fromkeys(kinds)}


def calibration_bins(margins: Values, bins: int = 8) -> list[MarginBin]:
    """Agreement against margin in bins of equal count: a calibrated Bradley-Terry model agrees sigmoid(|margin|) of the
    time with pairs of that margin. Fewer bins where margins repeat.
    """
    column = value_column("margins", margins)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    size = np.abs(column)
    edges = np.unique(np.quantile(size, np.linspace(0, 1, bins + 1)))
    edges = edges if len(edges) > 1 else np.array([edges[0], edges[0] + 1.0])
    place = np.clip(np.searchsorted(edges, size, side="right") - 1, 0, len(edges) - 2)
    found = []
    for number in range(len(edges) - 1):
        inside = place == number
        if inside.any():
            found.append(
                MarginBin(
                    low=float(edges[number]),
                    high=float(edges[number + 1]),
                    margin=float(size[inside].mean()),
                    expected=float((1 / (1 + np.exp(-size[inside]))).mean()),
                    agreement=preference_accuracy(column[inside]),
                )
            )
    return found


def calibration_error(margins: Values, bins: int = 8) -> float:
    """Expected calibration error: |agreement - expected| over the bins, weighted by their pairs."""
    found = calibration_bins(margins, bins)
    total = sum(b.agreement.n for b in found)
    return sum(b.agreement.n * abs(b.agreement.value - b.expected) for b in found) / total
