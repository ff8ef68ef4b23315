"""Win rates out of pairwise verdicts: both orders, ties, invalid answers, length control, seeds.

A pair is judged twice, once with each system in front. Its score for system A is 1 where both answers name A, 0 where
both name B, and .5 for everything else that is valid: two ties, a tie and a name, or two names that contradict each
other, so that a judge that only looks at the position cancels out. A pair with an answer that could not be read is
invalid: counted, and no part of any rate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scope_rlhf.metrics.intervals import (
    Interval,
    Values,
    bca_bounds,
    check_settings,
    mean_interval,
    value_column,
    wilson_interval,
)

A, B, TIE, INVALID = "A", "B", "tie", "invalid"
VERDICTS = (A, B, TIE, INVALID)
# Steps of Newton's method; it ends long before on data that is not separable.
_STEPS = 30
# Weight of the squared length coefficient in the likelihood of a pair: finite where length alone decides.
_RIDGE = 1e-3


@dataclass(frozen=True)
class WinRate:
    """Of system A over B: rate over the valid pairs with its bootstrap interval over prompts.

    wins, ties, losses, invalid: numbers of pairs. decided: wins / (wins + losses) with its Wilson interval, None
    without a decision. order_consistency: share of the valid pairs whose two answers are the same; first_position:
    share of the answers that name a system which name the one in front, None without any.
    """

    rate: Interval
    decided: Interval | None
    wins: int
    ties: int
    losses: int
    invalid: int
    order_consistency: float
    first_position: float | None


def pair_scores(forward: Sequence[str], backward: Sequence[str]) -> np.ndarray:
    """Score of system A in each pair [n]: 1, .5 or 0, NaN where invalid.

    forward: the answers with A in front, backward: those with B in front; both name systems (VERDICTS), not positions.
    ValueError for unequal lengths and other words.
    """
    if len(forward) != len(backward):
        raise ValueError(f"both orders are of the same pairs, but hold {len(forward)} and {len(backward)} verdicts")
    wrong = next((v for v in (*forward, *backward) if v not in VERDICTS), None)
    if wrong is not None:
        raise ValueError(f"a verdict must be one of {', '.join(VERDICTS)}, got {wrong!r}")
    scores = []
    for first, second in zip(forward, backward, strict=True):
        if INVALID in (first, second):
            scores.append(math.nan)
        else:
            scores.append({A: 1.0, B: 0.0}.get(first, 0.5) if first == second else 0.5)
    return np.array(scores)


def win_rate(
    forward: Sequence[str], backward: Sequence[str], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> WinRate:
    """The win rate of system A from the verdicts of both orders (see `pair_scores`).

    ValueError where no pair is valid.
    """
    scores = pair_scores(forward, backward)
    valid = scores[~np.isnan(scores)]
    if not len(valid):
        raise ValueError(f"none of the {len(scores)} pairs has two verdicts that could be read")
    wins, losses = int((valid == 1).sum()), int((valid == 0).sum())
    pairs = [pair for pair in zip(forward, backward, strict=True) if INVALID not in pair]
    named = [(v, front) for pair in pairs for v, front in zip(pair, (A, B), strict=True) if v != TIE]
    return WinRate(
        rate=mean_interval(valid, confidence, resamples, seed),
        decided=wilson_interval(wins, wins + losses, confidence) if wins + losses else None,
        wins=wins,
        ties=len(valid) - wins - losses,
        losses=losses,
        invalid=len(scores) - len(valid),
        order_consistency=sum(first == second for first, second in pairs) / len(pairs),
        first_position=sum(v == front for v, front in named) / len(named) if named else None,
    )


def length_controlled_win_rate(
    scores: Values,
    length_difference: Values,
    confidence: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> Interval:
    """The win rate that is left when both systems write equally long texts: sigmoid(theta) of the logistic regression

        P(A wins) = sigmoid(theta + beta (length of A - length of B) / spread)

    with the length term set to 0 (the idea of length-controlled AlpacaEval, arXiv 2404.04475, without its instruction
    difficulty). scores [n]: `pair_scores` without invalid ones; a tie is half of a win and half of a loss.
    length_difference [n]: in any unit. The interval is BCa over prompts, the regression fitted anew in each resample.
    Where all lengths are equal it is the plain rate. Its bounds are infinite where n = 1.

    ValueError for scores outside [0, 1] and unequal lengths.
    """
    check_settings(confidence, resamples)
    columns = [value_column("scores", scores), value_column("length_difference", length_difference)]
    n = len(columns[0])
    if len(columns[1]) != n:
        raise ValueError(f"scores and length_difference pair up by prompt, but hold {n} and {len(columns[1])} values")
    if columns[0].min() < 0 or columns[0].max() > 1:
        raise ValueError(f"scores must lie in [0, 1], got {columns[0].min()} to {columns[0].max()}")
    spread = columns[1].std()
    lengths = columns[1] / spread if spread > 0 else np.zeros(n)
    value = float(_length_free(columns[0], lengths, np.ones((1, n)))[0])
    if n == 1:
        return Interval(value, -math.inf, math.inf, 1)
    # A resample is how often each prompt was drawn.
    without = _length_free(columns[0], lengths, 1 - np.eye(n))
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples)
    samples = _length_free(columns[0], lengths, counts)
    if np.ptp(without) <= 1e-12:
        return Interval(value, value, value, n)
    return Interval(value, *bca_bounds(value, samples, without, confidence), n)


def _length_free(scores: np.ndarray, lengths: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """sigmoid(theta) for each row of `counts` [R, n]: weighted maximum likelihood by Newton's method."""
    theta, beta = np.zeros(len(counts)), np.zeros(len(counts))
    total = counts.sum(1)
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-(theta[:, None] + beta[:, None] * lengths)))
        error, weight = counts * (scores - p), counts * p * (1 - p)
        gradient = np.stack([error.sum(1), error @ lengths - _RIDGE * total * beta])
        # The ridge on theta keeps the determinant positive where all scores are equal.
        a, b, d = weight.sum(1) + 1e-9 * total, weight @ lengths, weight @ lengths**2 + _RIDGE * total
        step = np.stack([d * gradient[0] - b * gradient[1], a * gradient[1] - b * gradient[0]]) / (a * d - b * b)
        # Where A wins or loses everywhere the likelihood has no maximum: the rate runs to 1 or 0, and is cut there.
        theta, beta = (np.clip(x + np.clip(s, -2, 2), -30, 30) for x, s in zip((theta, beta), step, strict=True))
        if np.abs(step).max() < 1e-10:
            break
    return 1 / (1 + np.exp(-theta))
