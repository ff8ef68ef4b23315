"""Where images come from: scikit-learn's digits, a folder of class folders, or a Hub dataset. Nothing is decoded here
but one image at a time, by `read`.
"""

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"))
# Folders of these names hold the class folders of a given split.
PARTS = {"train": "train", "val": "validation", "validation": "validation", "valid": "validation", "test": "test"}
_EXPECTED = "expected <folder>/<class>/<image>, as in Caltech-256; set --dataset_name."


@dataclass(frozen=True)
class ImageSource:
    """Labelled images, not decoded: names and labels [N] of `classes`.

    read: the PIL image of a position; raises what PIL raises. parts: the part (train, validation, test) of each image
    where the data comes split, else None. ignored: entries of the folder that are no images. fingerprint: of names,
    labels, sizes and times, so that what was decoded once can be found again. in_memory: small, not worth a cache.
    """

    name: str
    classes: list[str]
    names: list[str]
    labels: np.ndarray
    read: Callable[[int], Any]
    fingerprint: str
    channels: int = 3
    parts: list[str] | None = None
    ignored: list[str] = field(default_factory=list)
    in_memory: bool = False


def require_extra(package: str, what: str) -> None:
    """ImportError, with what to install, where a package of the extra is missing."""
    if importlib.util.find_spec(package) is None:
        raise ImportError(f'{what} needs {package}; install the extra: pip install "scope-rlhf[vision]".')


def load_source(
    dataset_name: str, dataset_config: str | None = None, image_column: str = "image", label_column: str = "label"
) -> ImageSource:
    """`digits`, a folder, or a Hub name.

    Raises:
        ValueError: no such folder or Hub dataset, a folder without class folders, a class without images, columns that
            are not there. ImportError: the extra `vision` is missing.
    """
    require_extra("PIL", "vision")
    if dataset_name == "digits":
        return load_digits()
    path = Path(dataset_name).expanduser()
    if path.is_dir() and not (path / "dataset_dict.json").exists() and not (path / "state.json").exists():
        return load_folder(path)
    if path.is_file():
        raise ValueError(f"dataset_name {dataset_name!r} is a file; {_EXPECTED}")
    if not path.exists() and (dataset_name.startswith((".", "/", "~")) or dataset_name.count("/") > 1):
        raise ValueError(f"dataset_name {dataset_name!r}: no such folder; {_EXPECTED}")
    return load_hub(dataset_name, dataset_config, image_column, label_column)


def load_digits() -> ImageSource:
    """1,797 handwritten digits of 8 x 8 pixels, 174 to 183 of each (UCI, shipped with scikit-learn)."""
    require_extra("sklearn", "the dataset digits")
    from PIL import Image
    from sklearn.datasets import load_digits as load

    found: Any = load()
    pixels = np.round(found.images * (255 / 16)).astype(np.uint8)
    names = [f"digit-{number:04d}" for number in range(len(pixels))]
    return ImageSource(
        "digits",
        [str(digit) for digit in range(10)],
        names,
        found.target.astype(np.int64),
        lambda position: Image.fromarray(pixels[position]),
        hashlib.sha256(pixels.tobytes()).hexdigest()[:16],
        channels=1,
        in_memory=True,
    )


def load_folder(path: Path) -> ImageSource:
    """Class folders in sorted order, with their images; or folders train, val (validation) and test of such."""
    given = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    split = bool(given) and all(entry.name.lower() in PARTS for entry in given)
    if split and "train" not in {PARTS[entry.name.lower()] for entry in given}:
        raise ValueError(f"dataset_name {path} has the folders {_list([e.name for e in given])}, but no train.")
    tops = {entry: PARTS[entry.name.lower()] for entry in given} if split else {path: None}
    found: list[tuple[str, str, Path, str | None]] = []
    ignored, empty, classes = [], [], set()
    for top, part in tops.items():
        for folder in sorted(entry for entry in top.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
            files = sorted(folder.iterdir())
            images = [file for file in files if file.suffix.lower() in SUFFIXES and not file.is_dir()]
            ignored += [str(file.relative_to(path)) for file in files if file not in set(images)]
            found += [(str(file.relative_to(path)), folder.name, file, part) for file in images]
            if part in (None, "train"):
                classes.add(folder.name)
                if not images:
                    empty.append(str(folder.relative_to(path)))
    if not classes:
        raise ValueError(f"dataset_name {path} has no class folders; {_EXPECTED}")
    if not found:
        inner = next((e for e in given if any(c.is_dir() and _has_images(c) for c in e.iterdir() if c.is_dir())), None)
        hint = f" Its folder {inner} has class folders: set --dataset_name {inner}." if inner else ""
        raise ValueError(f"dataset_name {path}: no images in its {len(classes)} folders; {_EXPECTED}{hint}")
    if empty:
        raise ValueError(f"dataset_name {path}: no images in {_list(empty)}; remove the folder, or fill it.")
    if len(classes) < 2:
        raise ValueError(f"dataset_name {path} has one class, {next(iter(classes))}; at least two are needed.")
    if strange := sorted({label for _, label, _, _ in found} - classes):
        raise ValueError(f"dataset_name {path}: {_list(strange)} is in no folder of its train part.")
    order = sorted(classes)
    digest = hashlib.sha256()
    for name, label, file, _ in found:
        status = file.stat() if file.exists() else file.lstat()  # a broken link is an image that cannot be read
        digest.update(f"{name}|{label}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    files = [str(file) for _, _, file, _ in found]
    return ImageSource(
        path.resolve().name,
        order,
        [name for name, _, _, _ in found],
        np.array([order.index(label) for _, label, _, _ in found], dtype=np.int64),
        _FileReader(files),
        digest.hexdigest()[:16],
        parts=[str(part) for _, _, _, part in found] if split else None,
        ignored=ignored,
    )


class _FileReader:
    """Opens a file of a list. A class, so that worker processes can be given it."""

    def __init__(self, files: list[str]):
        self.files = files

    def __call__(self, position: int) -> Any:
        from PIL import Image

        return Image.open(self.files[position])


class _RowReader:
    """Decodes a row of a dataset, whose image column holds undecoded bytes or paths."""

    def __init__(self, parts: list[Any], column: str):
        self.parts, self.column = parts, column
        self.starts = np.cumsum([0, *(len(part) for part in parts)])

    def __call__(self, position: int) -> Any:
        import io

        from PIL import Image

        part = int(np.searchsorted(self.starts, position, side="right")) - 1
        stored = self.parts[part][int(position - self.starts[part])][self.column]
        return Image.open(io.BytesIO(stored["bytes"]) if stored.get("bytes") else stored["path"])


def load_hub(name: str, config: str | None, image_column: str, label_column: str) -> ImageSource:
    """All splits of a Hub dataset (or one saved by save_to_disk); a test split stays the test part."""
    from datasets import ClassLabel, DatasetDict, Image, load_dataset, load_from_disk
    from datasets.exceptions import DatasetsError

    from scope_rlhf.hub import explain_hub_errors

    try:
        with explain_hub_errors(name, "dataset_name", default="digits"):
            loaded: Any = load_from_disk(name) if Path(name).is_dir() else load_dataset(name, config)
    except (DatasetsError, FileNotFoundError) as error:
        raise ValueError(f"dataset_name={name!r} cannot be read: {error}; set --dataset_name.") from error
    splits = {str(k): v for k, v in loaded.items()} if isinstance(loaded, DatasetDict) else {"train": loaded}
    known = {split: PARTS[split.lower()] for split in splits if split.lower() in PARTS}
    if "train" not in known.values():
        raise ValueError(f"dataset_name={name!r} has the splits {_list(list(splits))}, but no train.")
    parts, labels, where = [], [], []
    for split, part in known.items():
        rows = splits[split]
        for column, flag in ((image_column, "image_column"), (label_column, "label_column")):
            if column not in rows.column_names:
                raise ValueError(
                    f"dataset_name={name!r} has no column {column!r}, but {_list(rows.column_names)}; set --{flag}."
                )
        labels += rows[label_column]
        where += [part] * len(rows)
        parts.append(rows.select_columns([image_column]).cast_column(image_column, Image(decode=False)))
    if None in labels:
        raise ValueError(f"dataset_name={name!r} has rows without a label (None) in {label_column!r}.")
    if any(isinstance(label, float) for label in labels):
        raise ValueError(f"dataset_name={name!r}: {label_column!r} holds numbers with a fraction; set --label_column.")
    feature = splits[next(iter(known))].features[label_column]
    classes = list(feature.names) if isinstance(feature, ClassLabel) else sorted({str(label) for label in labels})
    indices = (
        [int(label) for label in labels]
        if isinstance(feature, ClassLabel)
        else [classes.index(str(label)) for label in labels]
    )
    if indices and min(indices) < 0:
        raise ValueError(f"dataset_name={name!r} has rows without a label (-1) in {label_column!r}.")
    digest = hashlib.sha256("".join(part._fingerprint for part in parts).encode()).hexdigest()[:16]
    return ImageSource(
        name,
        classes,
        [f"{part}-{number:07d}" for number, part in enumerate(where)],
        np.array(indices, dtype=np.int64),
        _RowReader(parts, image_column),
        digest,
        parts=where if set(where) != {"train"} else None,
    )


def _has_images(folder: Path) -> bool:
    return any(file.suffix.lower() in SUFFIXES for file in folder.iterdir())


def _list(names: list[str], most: int = 5) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
