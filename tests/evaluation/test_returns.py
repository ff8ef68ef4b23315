"""Atari scores against what the papers print, and the aggregates and tables made with them."""

import math

import pytest

from scope_rlhf.evaluation.atari_scores import ATARI_SCORES
from scope_rlhf.evaluation.returns import aggregate_scores, human_normalized_score, reference_score, score_table
from scope_rlhf.metrics import aggregate_runs, student_interval

# (random, human), no-op starts: the tables of Mnih et al. 2015 (random) and Wang et al. 2016 (human).
PRINTED = {
    "Alien": (227.8, 7127.7),
    "Asterix": (210.0, 8503.3),
    "Breakout": (1.7, 30.5),
    "Centipede": (2090.9, 12017.0),
    "CrazyClimber": (10780.5, 35829.4),
    "Gravitar": (173.0, 3351.4),
    "MontezumaRevenge": (0.0, 4753.3),
    "NameThisGame": (2292.3, 8049.0),
    "Pong": (-20.7, 14.6),
    "Qbert": (163.9, 13455.0),
    "Seaquest": (68.4, 42054.7),
    "UpNDown": (533.4, 11693.2),
    "Venture": (0.0, 1187.5),
}


def test_the_57_games_have_the_scores_that_the_papers_print():
    assert {game: tuple(ATARI_SCORES[game]) for game in PRINTED} == PRINTED
    assert len(ATARI_SCORES) == 57
    # Sums over another transcription of the same tables (seungjaeryanlee/rldb): a slip in any number shows.
    assert sum(score.random for score in ATARI_SCORES.values()) == pytest.approx(50_864.9)
    assert sum(score.human for score in ATARI_SCORES.values()) == pytest.approx(606_494.2)
    assert all(score.human > score.random for score in ATARI_SCORES.values())


def test_every_game_is_a_gymnasium_id():
    gymnasium, ale_py = pytest.importorskip("gymnasium"), pytest.importorskip("ale_py")
    gymnasium.register_envs(ale_py)
    assert [game for game in ATARI_SCORES if f"ALE/{game}-v5" not in gymnasium.registry] == []


@pytest.mark.parametrize("game", ATARI_SCORES)
def test_random_play_is_zero_human_play_is_one_and_the_scale_is_linear(game):
    random, human = ATARI_SCORES[game]
    assert human_normalized_score(game, random) == 0.0
    assert human_normalized_score(game, human) == 1.0
    assert human_normalized_score(game, 2 * human - random) == pytest.approx(2.0)


def test_a_perfect_game_of_pong_is_1_18_humans():
    assert human_normalized_score("Pong", 21.0) == pytest.approx((21 + 20.7) / (14.6 + 20.7))


@pytest.mark.parametrize(
    ("game", "nearest"),
    [
        ("Montezuma", "MontezumaRevenge"),
        ("montezuma_revenge", "MontezumaRevenge"),
        ("ALE/Breakout-v5", "Breakout"),
        ("PongNoFrameskip-v4", "Pong"),
        ("up_n_down", "UpNDown"),
        ("QBert", "Qbert"),
        ("MsPacMan", "MsPacman"),
    ],
)
def test_an_unknown_game_is_refused_with_the_name_that_was_meant(game, nearest):
    with pytest.raises(ValueError, match=rf"the game '{game}'; nearest: {nearest}[,.]"):
        human_normalized_score(game, 1.0)


def test_a_game_unlike_any_other_is_refused_without_a_guess():
    with pytest.raises(ValueError, match="the game 'CoinRun-xyz'. The 57 names"):
        reference_score("CoinRun-xyz")


def test_aggregates_of_returns_are_the_aggregates_of_their_normalised_scores():
    results = {"Pong": [-20.7, 14.6, 21.0], "Breakout": [30.5, 100.0, 400.0]}
    table = [[human_normalized_score(game, results[game][run]) for game in results] for run in range(3)]
    assert aggregate_scores(results, resamples=500, seed=3) == aggregate_runs(table, resamples=500, seed=3)
    assert aggregate_scores({"Pong": [14.6], "Breakout": [1.7]})["mean"].value == pytest.approx(0.5)


def test_scores_that_are_normalised_already_may_have_any_names():
    found = aggregate_scores({"coinrun": [0.2, 0.4], "maze": [0.6, 0.8]}, normalized=True, target=0.5, resamples=50)
    assert found["mean"].value == pytest.approx(0.5)
    assert found["optimality_gap"].value == pytest.approx((0.3 + 0.1) / 4)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({}, "at least one game, got none"),
        ({"Pong": [1.0, 2.0], "Breakout": [1.0]}, "same number of seeds, got Pong 2, Breakout 1"),
        ({"Pong": [math.nan]}, "results of Pong must be finite; value 0 of 1 is nan"),
        ({"Pong": 3.0}, "results of Pong must be one number per seed, at least one"),
        ({"Pnog": [1.0]}, "nearest: Pong"),
    ],
)
def test_results_that_cannot_be_aggregated_are_refused(results, message):
    with pytest.raises(ValueError, match=message):
        aggregate_scores(results)


def test_the_table_has_a_row_for_each_game_and_a_dash_for_the_interval_of_one_seed():
    header, rows = score_table({"Breakout": [30.0, 31.0, 33.0], "Venture": [0.0]}, confidence=0.9)
    interval = student_interval([30.0, 31.0, 33.0], 0.9)
    assert header == ("game", "seeds", "mean", "90 % interval", "random", "human", "human-normalised")
    # (31.333 - 1.7) / (30.5 - 1.7) = 1.0289
    bounds = f"{interval.low:.1f} to {interval.high:.1f}"
    assert rows[0] == ("Breakout", "3", "31.3", bounds, "1.7", "30.5", "1.029")
    assert rows[1] == ("Venture", "1", "0.0", "-", "0.0", "1187.5", "0.000")


def test_the_table_goes_into_markdown_as_it_is():
    from scope_rlhf.reports.markdown import markdown_table

    text = markdown_table(*score_table({"Pong": [-20.7]}), align="lrrrrrr")
    assert text.splitlines()[2] == "| Pong | 1 | -20.7 | - | -20.7 | 14.6 | 0.000 |"


def test_a_table_of_an_unknown_game_is_refused():
    with pytest.raises(ValueError, match="nearest: Seaquest"):
        score_table({"Sequest": [1.0]})
