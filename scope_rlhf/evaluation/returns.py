"""Returns of game-playing agents against a random policy and a human: normalised scores, aggregates, a table."""

import difflib
from collections.abc import Mapping

import numpy as np

from scope_rlhf.evaluation.atari_scores import ATARI_SCORES, ReferenceScore
from scope_rlhf.metrics.intervals import Interval, Values, value_column
from scope_rlhf.metrics.returns import aggregate_runs, student_interval
from scope_rlhf.metrics.returns import learning_curve_area as learning_curve_area


def reference_score(game: str) -> ReferenceScore:
    """The random and the human score of a game by its gymnasium name, as in ATARI_SCORES.

    ValueError for another name, with the nearest ones.
    """
    if game in ATARI_SCORES:
        return ATARI_SCORES[game]
    plain = {_plain(name): name for name in ATARI_SCORES}
    near = [plain[name] for name in difflib.get_close_matches(_plain(game), list(plain), n=3)]
    meant = f"; nearest: {', '.join(near)}" if near else ""
    raise ValueError(
        f"no human score is known for the game {game!r}{meant}. The {len(ATARI_SCORES)} names of "
        "evaluation.atari_scores are those of gymnasium's ids without ALE/ and -v5: Breakout, MsPacman, ..."
    )


def human_normalized_score(game: str, score: float) -> float:
    """(score - random) / (human - random): 0 is the random policy, 1 the human tester. ValueError: reference_score."""
    reference = reference_score(game)
    return (score - reference.random) / (reference.human - reference.random)


def aggregate_scores(
    results: Mapping[str, Values],
    *,
    normalized: bool = False,
    target: float = 1.0,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Interval]:
    """interquartile_mean, median, mean and optimality_gap over games and seeds, with stratified bootstrap intervals.

    results: for each game one return per seed, in points; normalized says that they are on a common scale already,
    under any names. metrics.returns.aggregate_runs says what the aggregates are.
    Few seeds: with fewer than about ten the intervals are too narrow (of 95 %, about 92 hold at five seeds of many
    games, and 83 at two); with one they are infinite.

    ValueError: no games, an unknown game, games with other numbers of seeds (pooled, the games with more would weigh
    more), returns that are not finite.
    """
    if not results:
        raise ValueError("results must hold the returns of at least one game, got none")
    columns = {game: value_column(f"results of {game}", values, "seed") for game, values in results.items()}
    counts = {game: len(column) for game, column in columns.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{game} {count}" for game, count in counts.items())
        raise ValueError(f"every game needs the same number of seeds, got {listed}: leave seeds out or run what lacks")
    if not normalized:
        columns = {game: _normalized(game, column) for game, column in columns.items()}
    return aggregate_runs(np.stack(list(columns.values()), axis=1), target, confidence, resamples, seed)


def score_table(
    results: Mapping[str, Values], confidence: float = 0.95
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of plain cells, a row for each game in the order given, for any table writer.

    The interval is Student's, over seeds, of the mean return in points; a dash where there is one seed. Numbers of
    seeds may differ. The last column is the human-normalised mean. ValueError: an unknown game, returns not finite.
    """
    header = ("game", "seeds", "mean", f"{confidence * 100:g} % interval", "random", "human", "human-normalised")
    rows = []
    for game, values in results.items():
        column = value_column(f"results of {game}", values, "seed")
        reference = reference_score(game)
        mean = student_interval(column, confidence)
        rows.append(
            (
                game,
                str(mean.n),
                f"{mean.value:.1f}",
                f"{mean.low:.1f} to {mean.high:.1f}" if mean.n > 1 else "-",
                f"{reference.random:.1f}",
                f"{reference.human:.1f}",
                f"{human_normalized_score(game, mean.value):.3f}",
            )
        )
    return header, rows


def _normalized(game: str, column: np.ndarray) -> np.ndarray:
    reference = reference_score(game)
    return (column - reference.random) / (reference.human - reference.random)


def _plain(name: str) -> str:
    """Breakout, breakout and ALE/Breakout-v5 alike; NoFrameskip and -v4 are no part of a game's name."""
    bare = str(name).rpartition("/")[2].partition("-v")[0].replace("NoFrameskip", "")
    return bare.replace("_", "").replace(" ", "").lower()
