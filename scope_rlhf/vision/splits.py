"""Which image trains, which chooses the epoch, which is measured: stratified, seeded, and kept in a file.

    {"source": "256_ObjectCategories", "classes": [...], "settings": {...}, "counts": {"train": [...], ...},
     "train": ["001.ak47/001_0001.jpg", ...], "validation": [...], "test": [...]}

Names, not positions: a split holds on another machine, and where other images are added. The long tail is cut from the
training part alone; validation and test keep what the source has.
"""

import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scope_rlhf.runtime.files import write_json
from scope_rlhf.vision.sources import ImageSource

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Positions in the source of each part, ascending."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def part(self, name: str) -> np.ndarray:
        return getattr(self, name)


def make_split(
    source: ImageSource,
    usable: np.ndarray,
    *,
    seed: int,
    validation_fraction: float,
    test_fraction: float,
    imbalance_ratio: float = 1.0,
    imbalance_type: str = "exp",
) -> Split:
    """Split `usable` positions class by class, then subsample the training part to the long tail.

    A part that the source gives stays whole (its test images are the test part); what it does not give is drawn from
    its training images. Every class has at least one image in each part.

    Raises:
        ValueError: a class with too few images for that.
    """
    given = source.parts
    chosen: dict[str, list[np.ndarray]] = {name: [] for name in PARTS}
    wanted = {"validation": validation_fraction, "test": test_fraction}
    for label, title in enumerate(source.classes):
        mine = usable[source.labels[usable] == label]
        rng = np.random.default_rng([seed, label])
        if given is not None:
            for name in PARTS:
                chosen[name].append(np.array([i for i in mine if given[i] == name], dtype=np.int64))
        missing = [name for name in wanted if given is None or name not in given]
        pool = rng.permutation(mine if given is None else chosen["train"].pop())
        total, taken = len(pool), 0
        if total < 1 + len(missing):
            raise ValueError(
                f"class {title!r} has {total} {'image' if total == 1 else 'images'}, too few for a stratified split "
                f"into {', '.join(['train', *missing])}; add images, remove the class, or give the parts as folders "
                "train, validation and test."
            )
        for position, name in enumerate(missing):
            left = total - taken - (len(missing) - position)  # one for each part that is still to come
            size = min(max(1, round(wanted[name] * total)), left)
            chosen[name].append(pool[taken : taken + size])
            taken += size
        chosen["train"].append(pool[taken:])
    if imbalance_ratio > 1:
        chosen["train"] = _long_tail(chosen["train"], imbalance_ratio, imbalance_type, seed)
    return Split(**{name: np.sort(np.concatenate(chosen[name])).astype(np.int64) for name in PARTS})


def tail_sizes(classes: int, largest: int, ratio: float, kind: str) -> list[int]:
    """Images of each class from the head to the tail (Cao et al., arXiv 1906.07413, section 4).

    exp: largest * ratio^(-k / (classes - 1)); step: the first half has `largest`, the second largest / ratio. Rounded,
    at least 1.
    """
    if kind == "step":
        sizes = [largest if k < classes / 2 else largest / ratio for k in range(classes)]
    else:
        sizes = [largest * ratio ** (-k / (classes - 1)) for k in range(classes)]
    return [max(1, round(size)) for size in sizes]


def _long_tail(train: Sequence[np.ndarray], ratio: float, kind: str, seed: int) -> list[np.ndarray]:
    """Subsample the classes, in an order drawn with the seed, to tail_sizes of the smallest class: all have enough."""
    order = np.random.default_rng([seed, 1_000_003]).permutation(len(train))
    sizes = tail_sizes(len(train), min(map(len, train)), ratio, kind)
    kept = list(train)
    for size, label in zip(sizes, order, strict=True):
        kept[label] = train[label][:size]  # in the shuffled order of the split
    return kept


def counts_of(source: ImageSource, positions: np.ndarray) -> np.ndarray:
    """Images of each class among the positions: [K] int64."""
    return np.bincount(source.labels[positions], minlength=len(source.classes))


def write_split(file: Path, source: ImageSource, split: Split, settings: Mapping[str, Any]) -> None:
    """Keep the split by names. OSError where the file cannot be written."""
    record: dict[str, Any] = {"source": source.name, "classes": source.classes, "settings": dict(settings)}
    record["counts"] = {name: counts_of(source, split.part(name)) for name in PARTS}
    record |= {name: [source.names[i] for i in split.part(name)] for name in PARTS}
    write_json(file, record)


def read_split(
    file: Path, source: ImageSource, usable: np.ndarray, settings: Mapping[str, Any] | None = None
) -> tuple[Split, dict[str, Any]]:
    """The split that write_split kept, and the settings it was made with. settings: those of this run; where the file's
    are others, a warning says so and the file holds.

    Raises:
        ValueError: no such split, other classes, images that the source does not have (or that were skipped), an image
            that is there twice, in one part or in two.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        names = {name: _texts(record[name]) for name in PARTS}
        classes, saved = _texts(record["classes"]), dict(record.get("settings") or {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"split_file {file} is no split: {type(error).__name__}: {error}; set --split_file."
        ) from error
    changed = [f"{k} {saved[k]!r}, not {v!r}" for k, v in (settings or {}).items() if k in saved and saved[k] != v]
    if changed:
        warnings.warn(f"split_file {file} holds as it was made: {', '.join(changed)}.", stacklevel=2)
    if classes != source.classes:
        raise ValueError(
            f"split_file {file} is of {len(classes)} classes ({', '.join(classes[:3])} ...), {source.name} has "
            f"{len(source.classes)} ({', '.join(source.classes[:3])} ...); set another --split_file."
        )
    position = {source.names[i]: int(i) for i in usable}
    unknown = [image for name in PARTS for image in names[name] if image not in position]
    if unknown:
        raise ValueError(
            f"split_file {file}: {len(unknown)} of its images are not in {source.name} or cannot be read, the first "
            f"{unknown[0]}; set another --split_file."
        )
    counted = Counter(image for name in PARTS for image in names[name])
    if twice := [image for image, count in counted.items() if count > 1]:
        raise ValueError(
            f"split_file {file}: {len(twice)} images are there more than once, the first {twice[0]}: what is trained "
            "on may not be measured; set another --split_file."
        )
    parts = {name: np.sort(np.array([position[image] for image in names[name]], dtype=np.int64)) for name in PARTS}
    empty = [name for name, found in parts.items() if not len(found)]
    lacking = counts_of(source, parts["train"]) == 0
    if empty or lacking.any():
        what = f"part {empty[0]}" if empty else f"training image of class {source.classes[int(lacking.argmax())]!r}"
        raise ValueError(f"split_file {file} has no {what}; set another --split_file.")
    return Split(**parts), saved


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError("expected lists of names")
    return value
