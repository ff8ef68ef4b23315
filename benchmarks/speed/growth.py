"""How time and peak memory of the head grow with tokens, vocabulary and batch, forward and backward as in suite head.

One size changes, the others stay: batch 8, 128 tokens, hidden size 256, the vocabulary of --vocabulary. Exponent: the
slope of the logarithm over that of the size, by least squares; 1 is proportional, 0 does not grow. For what is fast and
large enough it is 1 in time; below, what a call costs anyway flattens it. One line more has the hidden size of --width.
At most 2 repetitions, and 256 rows of each size are compared: the largest sizes take half a minute a call.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import head
from benchmarks.speed.measure import Call, Options, Row, Section, slope
from scope_rlhf.reports.figures import COLOURS, figure_style, new_figure, save_figure

VARIANTS = ("trl", "dense", "jacobian")
BATCH, TOKENS, WIDTH = 8, 128, 256
REPETITIONS, CHECKED = 2, 256


def sizes_of(options: Options) -> dict[str, dict[int, tuple[int, int, int]]]:
    """Series -> size -> (rows, vocabulary, hidden size)."""
    vocabulary = options.vocabulary
    return {
        "tokens": {size: (BATCH * size, vocabulary, WIDTH) for size in options.lengths},
        "vocabulary": {size: (BATCH * TOKENS, size, WIDTH) for size in options.vocabularies},
        "batch": {size: (size * TOKENS, vocabulary, WIDTH) for size in options.batches},
        "hidden size": {size: (BATCH * TOKENS, vocabulary, size) for size in sorted({WIDTH, options.width})},
    }


def case_of(rows: int, vocabulary: int, width: int) -> str:
    return f"N {rows}, V {vocabulary}, D {width}"


def prepare(case: str, variant: str, options: Options) -> Call:
    rows, vocabulary, width = (int(part.split()[1]) for part in case.split(","))
    head.call_of(variant, head.make_batch(8, 64, 32, options))()
    return head.call_of(variant, head.make_batch(rows, vocabulary, width, options))


def run(options: Options) -> list[Section]:
    series = sizes_of(options)
    options = replace(options, repetitions=min(options.repetitions, REPETITIONS))
    measured: dict[str, list[Row]] = {}
    for sizes in series.values():
        for shape in sizes.values():
            if case_of(*shape) not in measured:  # the series meet where all sizes are the usual ones
                case, batch = case_of(*shape), head.make_batch(*shape, options)
                chosen = torch.linspace(0, shape[0] - 1, min(CHECKED, shape[0])).long()
                measured[case] = head.compare_heads("growth", case, batch, VARIANTS, options, chosen)
                del batch
    points = Section("time and peak of the head", [row for rows in measured.values() for row in rows])
    exponents = Section("exponents of growth", [], baseline=None)
    for name, sizes in series.items():
        if len(sizes) > 1:
            exponents.rows += [exponent_row(name, sizes, variant, measured) for variant in VARIANTS]
    file = "speed_growth" + ("_cuda" if options.device == "cuda" else "") + ".png"
    if exponents.rows:
        draw(series, measured, Path(options.output_dir) / file)
        exponents.files.append(file)
    return [points, exponents] if exponents.rows else [points]


def curve(sizes: dict[int, Any], variant: str, measured: dict[str, list[Row]]) -> dict[int, tuple[float, float]]:
    """Size -> (median seconds, peak MiB) where both are known; a peak that was not taken is NaN."""
    found = {}
    for size, shape in sizes.items():
        row = next(row for row in measured[case_of(*shape)] if row.variant == variant)
        if row.seconds:
            found[size] = (row.median, math.nan if row.peak_mib is None else row.peak_mib)
    return found


def exponent_row(series: str, sizes: dict[int, Any], variant: str, measured: dict[str, list[Row]]) -> Row:
    points = curve(sizes, variant, measured)
    times, peaks = (slope(list(points), [pair[i] for pair in points.values()]) for i in (0, 1))
    between = " ".join(map(str, points))
    more = {"sizes": between, "exponent of time": f"{times:.2f}"}
    more |= {} if math.isnan(peaks) else {"exponent of peak": f"{peaks:.2f}"}
    return Row(series, variant, more=more)


def draw(series: dict[str, dict[int, Any]], measured: dict[str, list[Row]], path: Path) -> None:
    """Time above, peak below where it was taken; a column for each series of two sizes or more, logarithmic axes."""
    shown = {name: sizes for name, sizes in series.items() if len(sizes) > 1}
    labels = ["ms", "peak MiB"]
    if any(row.peak_mib is None for rows in measured.values() for row in rows if row.seconds):
        del labels[1]
    with figure_style():
        figure = new_figure(2.9 * len(shown), 2.6 * len(labels))
        axes = figure.subplots(len(labels), len(shown), squeeze=False)
        for column, (name, sizes) in enumerate(shown.items()):
            for line, label in enumerate(labels):
                for colour, variant in zip(COLOURS, VARIANTS, strict=False):
                    points = curve(sizes, variant, measured)
                    values = [pair[line] * (1 if line else 1e3) for pair in points.values()]
                    axes[line][column].plot(list(points), values, marker="o", color=colour, label=variant)
                axes[line][column].set(xscale="log", yscale="log", xlabel=name, ylabel=label)
        axes[0][0].legend()
        save_figure(figure, path)
