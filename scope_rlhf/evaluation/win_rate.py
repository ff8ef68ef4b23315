"""Win rate of one system over another: every pair in both orders, with intervals, lengths and what the judge said."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scope_rlhf.evaluation.completions import System, align
from scope_rlhf.evaluation.judges import FIRST, INVALID, SECOND, Comparison, Judge, Judgement
from scope_rlhf.metrics.intervals import Interval
from scope_rlhf.metrics.win_rate import WinRate, length_controlled_win_rate, pair_scores, win_rate
from scope_rlhf.runtime.files import write_json, write_json_lines

SUMMARY_FILE, PAIRS_FILE = "win_rate.json", "pairs.jsonl"


@dataclass(frozen=True)
class WinRateResult:
    """`summary` for a table, `pairs` one row for each prompt; `scores` [n] of system A, NaN where invalid."""

    summary: dict[str, Any]
    pairs: list[dict[str, Any]]
    scores: list[float]

    def write(self, folder: str | Path) -> None:
        """win_rate.json and pairs.jsonl into the folder."""
        write_json(Path(folder) / SUMMARY_FILE, self.summary)
        write_json_lines(Path(folder) / PAIRS_FILE, self.pairs)


def compare(
    a: System, b: System, judge: Judge, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> WinRateResult:
    """The win rate of system `a` over system `b`.

    Every pair is judged with a in front and with b in front; see metrics.win_rate for what becomes of the verdicts.
    The length-controlled rate takes the difference in words, and a fifth of the resamples; where one side
    is the longer in more than 95 % of the pairs `lengths_overlap` is False: the rate at equal lengths is then an
    extrapolation. Empty completions are judged
    like others and counted.
    ValueError for systems with other prompts. Where no pair is valid the rates are None.
    """
    b = align(a, b)
    shown = [Comparison(p, x, y) for p, x, y in zip(a.prompts, a.completions, b.completions, strict=True)]
    turned = [Comparison(c.prompt, c.second, c.first) for c in shown]
    judgements = judge([*shown, *turned])
    forward, backward = judgements[: len(shown)], judgements[len(shown) :]
    verdicts = [_systems(forward, "A", "B"), _systems(backward, "B", "A")]
    scores = pair_scores(*verdicts)
    valid = ~np.isnan(scores)
    difference = np.array(a.lengths) - np.array(b.lengths)
    rates: WinRate | None = None
    controlled: Interval | None = None
    if valid.any():
        rates = win_rate(*verdicts, confidence=confidence, resamples=resamples, seed=seed)
        controlled = length_controlled_win_rate(
            scores[valid], difference[valid], confidence, max(resamples // 5, 1), seed
        )
    invalid = int((~valid).sum())
    summary = {
        "system_a": _describe(a), "system_b": _describe(b), "judge": judge.name, "pairs": len(shown),
        "confidence": confidence, "win_rate": rates and asdict(rates),
        "length_controlled": controlled and asdict(controlled),
        "lengths_overlap": bool(min((difference >= 0).mean(), (difference <= 0).mean()) >= 0.05),
        "invalid": invalid, "invalid_share": invalid / len(shown),
        "invalid_answers": sum(v == INVALID for side in verdicts for v in side),
    }  # fmt: skip
    pairs = [
        {
            "prompt": c.prompt, "a": c.first, "b": c.second, "score": None if np.isnan(score) else float(score),
            "verdict_a_first": verdicts[0][i], "verdict_b_first": verdicts[1][i],
            "words_a_first": forward[i].words, "words_b_first": backward[i].words,
            "length_a": a.lengths[i], "length_b": b.lengths[i],
        }
        for i, (c, score) in enumerate(zip(shown, scores, strict=True))
    ]  # fmt: skip
    return WinRateResult(summary, pairs, scores.tolist())


def check_invalid(summary: dict[str, Any], limit: float, example: str = "") -> None:
    """ValueError where more than `limit` of the pairs are invalid. To be called when all results are written."""
    if summary["invalid_share"] > limit:
        raise ValueError(
            f"{summary['invalid']} of {summary['pairs']} pairs have an answer that names no verdict, more than the "
            f"share of {limit:g} that --max_invalid allows. The judge {summary['judge']} said, for one: "
            f"{example[:300]!r}"
        )


def invalid_example(pairs: Sequence[dict[str, Any]]) -> str:
    """What the judge said where it could not be read, of the first such answer."""
    for pair in pairs:
        for order in ("a_first", "b_first"):
            if pair[f"verdict_{order}"] == INVALID:
                return pair[f"words_{order}"]
    return ""


def _systems(judgements: Sequence[Judgement], first: str, second: str) -> list[str]:
    """Positions -> systems."""
    return [{FIRST: first, SECOND: second}.get(j.verdict, j.verdict) for j in judgements]


def _describe(system: System) -> dict[str, Any]:
    return {
        "name": system.name,
        "decoding": system.decoding,
        "mean_length_words": statistics.fmean(system.lengths),
        "share_without_eos": None if system.ended is None else 1 - statistics.fmean(system.ended),
        "empty": sum(not text.strip() for text in system.completions),
    }
