"""Statistics of episodic returns: learning curves, aggregates over runs and games, and intervals for a few seeds.

The unit is the run (one seed). Of few runs Student's intervals know that their variance is a guess; a bootstrap over
seeds does not, and is too narrow: see aggregate_runs.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from scope_rlhf.metrics.intervals import Interval, Values, check_settings, value_column

# Numbers drawn at once: bounds the memory of a bootstrap at about 20 MB.
_DRAWS = 500_000
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(100)


@dataclass(frozen=True)
class MeanDifference:
    """mean of a - mean of b of two independent samples; low and high bound the difference, infinite where n = 1."""

    mean_a: float
    mean_b: float
    difference: float
    low: float
    high: float
    n_a: int
    n_b: int


def interquartile_mean(values: Values) -> float:
    """The mean of the middle half: of n sorted values, of any shape, int(n / 4) are left out at either end.

    The 25 % trimmed mean (Agarwal et al. 2021): less moved by single runs than the mean, and it uses more of them than
    the median. ValueError for no values, or values that are not finite.
    """
    return float(_interquartile_mean(value_column("values", np.ravel(np.asarray(values, dtype=np.float64)), "run")))


def aggregate_runs(
    scores: Values,
    target: float = 1.0,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Aggregates over runs and games with percentile intervals of the stratified bootstrap (Agarwal et al. 2021).

    scores [R, G]: R runs of each of G games, on a scale that the games share (human-normalised).
    interquartile_mean: of all R G scores; mean; median: over games, of the means over runs;
    optimality_gap: target - mean of min(score, target), where smaller is better.
    A resample draws R runs anew inside each game; the games are fixed, so that the interval speaks of other seeds of
    these games, not of other games. n is R; with one run the bounds are infinite.

    Few seeds: a resample of R runs spreads sqrt((R - 1) / R) as much as R new runs would. Of 100 intervals of
    95 %, for the mean of many games with normal scores, about 92 then hold at R = 5 and 83 at R = 2. One game has fewer
    still, since its variance is a guess as well: student_interval is for that.

    ValueError where scores is no such table or not finite, or settings out of range.
    """
    check_settings(confidence, resamples)
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"scores must be [runs, games], at least one of each; got shape {table.shape}")
    value_column("scores", table.ravel(), "run and game")
    if not math.isfinite(target):
        raise ValueError(f"target must be a finite score, got {target}")
    runs, games = table.shape
    aggregates: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "interquartile_mean": lambda x: _interquartile_mean(x.reshape(*x.shape[:-2], -1)),
        "median": lambda x: np.median(x.mean(axis=-2), axis=-1),
        "mean": lambda x: x.mean(axis=(-2, -1)),
        "optimality_gap": lambda x: target - np.minimum(x, target).mean(axis=(-2, -1)),
    }
    values = {name: float(aggregate(table)) for name, aggregate in aggregates.items()}
    if runs == 1:
        return {name: Interval(value, -math.inf, math.inf, 1) for name, value in values.items()}
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in aggregates}
    step = max(1, _DRAWS // table.size)
    for start in range(0, resamples, step):
        picks = generator.integers(runs, size=(min(step, resamples - start), runs, games))
        sample = np.take_along_axis(table[None], picks, axis=1)
        for name, aggregate in aggregates.items():
            drawn[name].append(aggregate(sample))
    levels = [(1 - confidence) / 2, (1 + confidence) / 2]
    found = {}
    for name, value in values.items():
        low, high = np.quantile(np.concatenate(drawn[name]), levels)
        found[name] = Interval(value, float(low), float(high), runs)
    return found


def learning_curve_area(steps: Values, returns: Values, total_steps: float | None = None) -> float:
    """The time-average of a learning curve, in units of return: a faster learner of the same final return has more.

    area = (1 / (T - t_0)) integral from t_0 = the first step to T of the curve through (steps, returns), by trapezoids;
    steps need not be even. T is the last step, or total_steps, where the curve is cut (interpolated) so that runs of
    other lengths can be compared. A curve is never continued beyond its own last step.

    ValueError: other lengths, fewer than two points, steps that do not rise, numbers that are not finite, a total_steps
    outside the curve.
    """
    x, y = _curve("steps", steps, "returns", returns)
    if len(x) < 2:
        raise ValueError(f"an area needs at least two points of the curve, got one, at step {x[0]:g}")
    if total_steps is not None:
        if not x[0] < total_steps <= x[-1]:
            raise ValueError(
                f"total_steps must lie in the curve, after step {x[0]:g} and not after {x[-1]:g}, got {total_steps}; "
                "curves of several runs have in common what ends at the smallest of their last steps"
            )
        end = np.interp(total_steps, x, y)
        inside = x < total_steps
        x, y = np.append(x[inside], total_steps), np.append(y[inside], end)
    widths = np.diff(x)
    return float((widths * (y[1:] + y[:-1]) / 2).sum() / widths.sum())


def align_curves(curves: Sequence[tuple[Values, Values]], grid: Values) -> np.ndarray:
    """[S, G]: each of S curves (steps, returns), linear between its points, at the G steps of the grid.

    NaN where the grid lies outside a curve's own first and last step: np.nanmean over the first axis is the mean of the
    runs that reached a step. ValueError for no curves, or as in learning_curve_area.
    """
    if not len(curves):
        raise ValueError("at least one curve is needed, a pair (steps, returns) for each run")
    places = value_column("grid", grid, "step")
    rows = []
    for number, (steps, returns) in enumerate(curves):
        x, y = _curve(f"steps of curve {number}", steps, f"returns of curve {number}", returns)
        rows.append(np.interp(places, x, y, left=math.nan, right=math.nan))
    return np.stack(rows)


def average_repeated_steps(steps: Values, returns: Values) -> tuple[np.ndarray, np.ndarray]:
    """Episodes as a curve: steps sorted, each once, with the mean return of the episodes that ended at it.

    Parallel environments end several episodes at one step. ValueError for other lengths or numbers not finite.
    """
    x, y = _pair("steps", steps, "returns", returns)
    once, place, count = np.unique(x, return_inverse=True, return_counts=True)
    return once, np.bincount(place, weights=y) / count


def student_quantile(probability: float, degrees: float) -> float:
    """The quantile of Student's t: T with P(t <= T) = probability; degrees of freedom need not be whole.

    With t = sqrt(degrees) sinh(u) the density of u is Gamma((d + 1) / 2) / (sqrt(pi) Gamma(d / 2)) cosh(u)^-d: smooth
    and light-tailed, so that Gauss-Legendre nodes integrate it and bisection inverts it, to a relative 1e-6 or better.
    ValueError for a probability outside [1e-6, 1 - 1e-6] or degrees outside [1, 1e5].
    """
    if not 1e-6 <= probability <= 1 - 1e-6:
        raise ValueError(f"probability must lie in [1e-6, 1 - 1e-6], got {probability}")
    if not 1 <= degrees <= 1e5:
        raise ValueError(f"degrees must lie in [1, 1e5], got {degrees}; two values a side are the fewest")
    constant = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)

    def mass(u: float) -> float:
        return constant * u / 2 * float(_WEIGHTS @ np.cosh(u / 2 * (1 + _NODES)) ** -degrees)

    wanted = abs(probability - 0.5)
    # From below: the nodes resolve the bell, of width 1 / sqrt(degrees), at every bracket that is tried.
    low, high = 0.0, 1 / math.sqrt(degrees)
    while mass(high) < wanted:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mass(middle) < wanted else (low, middle)
    return math.copysign(math.sqrt(degrees) * math.sinh((low + high) / 2), probability - 0.5)


def student_interval(values: Values, confidence: float = 0.95) -> Interval:
    """The mean of a few runs with Student's interval: mean +- t sqrt(variance / n), t of n - 1 degrees of freedom.

    For one number per seed. n = 1: the bounds are infinite. ValueError for no values or values not finite.
    """
    check_settings(confidence, 1)
    column = value_column("values", values, "run")
    n, mean = len(column), float(column.mean())
    if n == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    half = student_quantile((1 + confidence) / 2, n - 1) * math.sqrt(column.var(ddof=1) / n)
    return Interval(mean, mean - half, mean + half, n)


def difference_of_means(a: Values, b: Values, confidence: float = 0.95) -> MeanDifference:
    """mean of a - mean of b with Welch's interval: independent runs, of unequal variances and numbers.

    e_a = variance of a / n_a, e_b likewise; half width = t sqrt(e_a + e_b), t of Student with
    (e_a + e_b)^2 / (e_a^2 / (n_a - 1) + e_b^2 / (n_b - 1)) degrees of freedom.
    A side of one run: the bounds are infinite. No spread on either side: the interval is the difference itself.
    Runs that share a seed are not thereby paired: nothing but the first frames is common to them.
    ValueError as in student_interval.
    """
    check_settings(confidence, 1)
    columns = [value_column("a", a, "run"), value_column("b", b, "run")]
    (n_a, n_b), (mean_a, mean_b) = map(len, columns), (float(column.mean()) for column in columns)
    difference = mean_a - mean_b
    half = math.inf
    if min(n_a, n_b) > 1:
        e_a, e_b = (float(column.var(ddof=1)) / len(column) for column in columns)
        half = 0.0
        if e_a + e_b > 0:
            share = e_a / (e_a + e_b)
            degrees = 1 / (share**2 / (n_a - 1) + (1 - share) ** 2 / (n_b - 1))
            half = student_quantile((1 + confidence) / 2, max(degrees, 1.0)) * math.sqrt(e_a + e_b)
    return MeanDifference(mean_a, mean_b, difference, difference - half, difference + half, n_a, n_b)


def not_worse(difference: MeanDifference, margin: float) -> bool:
    """True where a is shown to be at most `margin` below b: the interval's low bound lies above -margin.

    A 95 % interval makes it a one-sided test at 2.5 %. False says not shown, not that a is worse.
    """
    if not margin >= 0:
        raise ValueError(f"margin must be at least 0, in units of return, got {margin}")
    return difference.low > -margin


def _interquartile_mean(values: np.ndarray) -> np.ndarray:
    """[..., n] -> [...]"""
    n = values.shape[-1]
    cut = int(0.25 * n)
    return np.sort(values, axis=-1)[..., cut : n - cut].mean(axis=-1)


def _pair(steps_name: str, steps: Values, returns_name: str, returns: Values) -> tuple[np.ndarray, np.ndarray]:
    x, y = value_column(steps_name, steps, "point"), value_column(returns_name, returns, "point")
    if len(x) != len(y):
        raise ValueError(f"{steps_name} and {returns_name} belong together, but hold {len(x)} and {len(y)} numbers")
    return x, y


def _curve(steps_name: str, steps: Values, returns_name: str, returns: Values) -> tuple[np.ndarray, np.ndarray]:
    x, y = _pair(steps_name, steps, returns_name, returns)
    back = np.flatnonzero(np.diff(x) <= 0)
    if len(back):
        at = back[0]
        raise ValueError(
            f"{steps_name} must rise from point to point; point {at + 1} is {x[at + 1]:g} after {x[at]:g}. "
            "average_repeated_steps sorts episodes and averages those of one step"
        )
    return x, y
