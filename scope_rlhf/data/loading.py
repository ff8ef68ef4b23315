"""One split of a dataset: by Hub name, from a folder of data files or from one file; a clear error otherwise."""

import hashlib
import json
from pathlib import Path

from datasets import Dataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from scope_rlhf.hub import explain_hub_errors

# Suffix of a data file -> the reader of `datasets`.
DATA_FILES = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
# Where the Hub keeps what it converted of datasets that only have a loading script, which `datasets` no longer runs.
CONVERTED = "refs/convert/parquet"


def load_split(
    dataset_name: str,
    split: str,
    *,
    setting: str,
    split_setting: str,
    what: str,
    example: str,
    embedded: str | None = None,
    config_name: str | None = None,
) -> Dataset:
    """`split` of a Hub dataset, of a folder of data files (or a saved dataset) or of one data file.

    Slices such as `train[90%:]` work. A Hub dataset that is a loading script is read from the Hub's own conversion to
    Parquet. config_name: the subset of a Hub dataset. setting, split_setting: where the user set name and split; what:
    the kind of rows; example: a Hub name; embedded: the name that needs no Hub. All five are for the error, a
    ValueError for what does not exist, is empty or cannot be read.
    """
    path = Path(dataset_name).expanduser()
    given = f"{setting}={dataset_name!r}"
    path_like = dataset_name.startswith((".", "~", "/")) or dataset_name.count("/") > 1 or path.suffix in DATA_FILES
    if not dataset_name or (path_like and not path.exists()):
        raise ValueError(
            f"{given} does not exist: expected a folder or a file of {what} ({', '.join(DATA_FILES)}), a Hub name "
            f"such as {example}" + (f", or {embedded}." if embedded else ".")
        )
    if path.is_file() and path.suffix not in DATA_FILES:
        raise ValueError(f"{given} is no file of {what}: its name should end in one of {', '.join(DATA_FILES)}.")
    if path.is_file() and not path.stat().st_size:
        raise ValueError(f"{given} is an empty file.")
    try:
        with explain_hub_errors(dataset_name, setting, default=embedded):
            if path.is_file():
                return load_dataset(DATA_FILES[path.suffix], data_files=str(path), split=split)
            if path.is_dir() and any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
                saved = load_from_disk(str(path))
                if isinstance(saved, Dataset) or split in saved:
                    return saved if isinstance(saved, Dataset) else saved[split]
                raise ValueError(f"Unknown split {split!r}. Should be one of {list(saved)}.")
            if path.is_dir():
                return load_dataset(str(path), split=split)
            try:
                return load_dataset(dataset_name, config_name, split=split)
            except RuntimeError as error:
                if "scripts are no longer supported" not in str(error):
                    raise
                return load_dataset(dataset_name, config_name, split=split, revision=CONVERTED)
    except ValueError as error:
        # datasets has no exceptions of its own for a split without rows and for one that does not exist.
        if "no data" in str(error):
            raise ValueError(f"split {split!r} of {given} is empty.") from error
        if given in str(error):
            raise
        if "split" not in str(error).lower():
            raise ValueError(f"{given} cannot be read: {_reason(error)}") from error
        raise ValueError(
            f"{given} has no split {split!r}: {error} Set {split_setting}; a slice such as train[90%:] works too."
        ) from error
    except (DatasetsError, FileNotFoundError) as error:
        raise ValueError(f"{given} holds no readable data files: {_reason(error)}") from error


def dataset_fingerprint(dataset: Dataset) -> str:
    """Sixteen hexadecimal digits of the rows, all columns, in order: the same on every machine and for every cache."""
    digest = hashlib.sha256()
    for row in dataset.to_list():
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _reason(error: BaseException) -> str:
    """The first line of an error, and that of what it came from, which is where `datasets` says what was wrong."""
    lines = [str(e).strip().splitlines()[0] for e in (error, error.__cause__) if e is not None and str(e).strip()]
    return " ".join(lines) or type(error).__name__
