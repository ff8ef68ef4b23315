"""Images as bytes of one size: decoded once, kept on disk as a memory map, read there by every epoch and worker."""

import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tqdm import tqdm

from scope_rlhf.runtime.files import write_json
from scope_rlhf.vision.sources import ImageSource

DEFAULT_CACHE = "~/.cache/scope_rlhf/vision"
_CHUNK = 64
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")


@dataclass
class DecodeReport:
    """What decoding found. corrupt: {name: reason}; converted: counts by what was brought to 8-bit RGB."""

    corrupt: dict[str, str] = field(default_factory=dict)
    converted: dict[str, int] = field(default_factory=dict)


def decode(image: Any, size: int, channels: int) -> tuple[np.ndarray, str | None]:
    """An opened PIL image as bytes [size, size, channels], and what had to be converted (CMYK, 16 bits, transparency,
    animation), None for nothing.

    The shorter side is resized to `size` and the middle is kept, so that shapes stay. 16 bits keep their high byte,
    transparency lies on white, of an animation the first frame is taken. Raises what PIL raises, and ValueError for
    32-bit float pixels.
    """
    from PIL import Image, ImageOps

    note = None
    if getattr(image, "n_frames", 1) > 1:
        note = "animation"
        image.seek(0)
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode in _SIXTEEN_BIT:
        pixels = np.asarray(image).astype(np.int64)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(f"32-bit pixels from {pixels.min()} to {pixels.max()}, expected 8 or 16 bits")
        note, image = "16 bits", Image.fromarray((pixels >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("32-bit float pixels, expected 8 or 16 bits")
    elif image.mode == "CMYK":
        note = "CMYK"
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        note = note or "transparency"
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB" if channels == 3 else "L")
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size, size, channels), note


_shared: list[Any] = []  # in a worker process: the source and the size, sent once


def _share(source: ImageSource, size: int) -> None:
    _shared[:] = source, size


def _decode_shared(positions: range) -> tuple[int, np.ndarray, dict[str, str], Counter[str]]:
    source, size = _shared
    return _decode_chunk(source, size, positions)


def _decode_chunk(
    source: ImageSource, size: int, positions: range
) -> tuple[int, np.ndarray, dict[str, str], Counter[str]]:
    pixels = np.zeros((len(positions), size, size, source.channels), dtype=np.uint8)
    corrupt: dict[str, str] = {}
    converted: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, on damaged metadata
        for row, position in enumerate(positions):
            try:
                with source.read(position) as image:
                    pixels[row], note = decode(image, size, source.channels)
                converted.update([note] if note else [])
            except (MemoryError, PermissionError):  # not of the file's content
                raise
            except Exception as error:  # PIL raises OSError, SyntaxError, ValueError and more for a bad file
                corrupt[source.names[position]] = f"{type(error).__name__}: {error}"
    return positions.start, pixels, corrupt, converted


def _decode_all(source: ImageSource, size: int, workers: int, show: bool) -> Iterator[Any]:
    total = len(source.names)
    jobs = [range(start, min(start + _CHUNK, total)) for start in range(0, total, _CHUNK)]
    bar = tqdm(total=total, desc=f"reading {source.name}", unit="image", disable=not show)
    with bar:
        if workers > 1 and len(jobs) > 1:
            with ProcessPoolExecutor(workers, initializer=_share, initargs=(source, size)) as pool:
                for result in pool.map(_decode_shared, jobs):
                    bar.update(len(result[1]))
                    yield result
        else:
            for job in jobs:
                result = _decode_chunk(source, size, job)
                bar.update(len(result[1]))
                yield result


class StoredImages:
    """Rows of a .npy file [N, S, S, C], memory-mapped on first use in each process."""

    def __init__(self, file: Path):
        self.file = file
        self._pixels: np.ndarray | None = None

    def __getitem__(self, positions: Any) -> np.ndarray:
        pixels = self._pixels
        if pixels is None:
            pixels = self._pixels = np.load(self.file, mmap_mode="r")
        return pixels[positions]  # type: ignore[index]

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "_pixels": None}


class DecodedEachTime:
    """Rows decoded whenever they are asked for, for data that is larger than the disk."""

    def __init__(self, source: ImageSource, size: int):
        self.source, self.size = source, size

    def __getitem__(self, positions: Any) -> np.ndarray:
        rows = []
        for position in np.atleast_1d(positions):
            with self.source.read(int(position)) as image:
                rows.append(decode(image, self.size, self.source.channels)[0])
        return np.stack(rows)


Images = np.ndarray | StoredImages | DecodedEachTime


def load_images(
    source: ImageSource, size: int, cache_dir: str | os.PathLike[str] | None, *, workers: int = 0, show: bool = True
) -> tuple[Images, DecodeReport]:
    """All images of the source at `size`, from the cache or decoded into it; digits stay in memory.

    Raises OSError where the disk has too little room, before anything is written.
    """
    if source.in_memory:
        needed, free = len(source.names) * size * size, psutil.virtual_memory().available
        if needed > free / 2:
            raise ValueError(
                f"{len(source.names)} images of {size} x {size} need {needed / 1e9:.1f} GB of memory, "
                f"{free / 1e9:.1f} GB are left; set a smaller --image_size."
            )
        (_, *found) = zip(*_decode_all(source, size, 0, False), strict=True)
        pixels, corrupt, converted = found
        return np.concatenate(pixels), _report(corrupt, converted)
    root = Path(cache_dir or DEFAULT_CACHE).expanduser()
    folder = root / f"{source.fingerprint}-{size}"
    if not (folder / "report.json").exists():
        with _only_one(root, folder.name):
            if not (folder / "report.json").exists():  # another run has made it in the meantime
                _fill(folder, source, size, workers, show)
    try:
        report = DecodeReport(**json.loads((folder / "report.json").read_text(encoding="utf-8")))
        found = np.load(folder / "images.npy", mmap_mode="r").shape
    except (OSError, ValueError, EOFError, TypeError) as error:
        found, report = f"{type(error).__name__}: {error}", DecodeReport()
    if found != (len(source.names), size, size, source.channels):
        raise ValueError(
            f"the decoded images in {folder} are damaged ({found}); remove this folder, and they are made again, or "
            "set another --cache_dir."
        )
    return StoredImages(folder / "images.npy"), report


def check_images(source: ImageSource, size: int, *, workers: int = 0, show: bool = True) -> DecodeReport:
    """Decode everything once and keep nothing: what is corrupt is known before training."""
    found = [(corrupt, converted) for _, _, corrupt, converted in _decode_all(source, size, workers, show)]
    return _report(*zip(*found, strict=True))


def _fill(folder: Path, source: ImageSource, size: int, workers: int, show: bool) -> None:
    """Write images.npy, then report.json; the folder appears under its name when it is whole."""
    shape = (len(source.names), size, size, source.channels)
    needed, free = int(np.prod(shape)), shutil.disk_usage(folder.parent).free
    if needed > 0.95 * free:
        raise OSError(
            f"{len(source.names)} images of {size} x {size} need {needed / 1e9:.1f} GB in {folder.parent}, which has "
            f"{free / 1e9:.1f} GB left; set --cache_dir, a smaller --image_size, or --cache_images false."
        )
    draft = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        pixels = np.lib.format.open_memmap(draft / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
        corrupt, converted = [], []
        for start, rows, bad, notes in _decode_all(source, size, workers, show):
            pixels[start : start + len(rows)] = rows
            corrupt.append(bad)
            converted.append(notes)
        pixels.flush()
        del pixels
        write_json(draft / "report.json", asdict(_report(corrupt, converted)))
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _only_one(root: Path, name: str) -> Iterator[None]:
    """Wait for another process that fills the same cache. No lock where the system has none (Windows)."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / f".{name}.lock").open("w")
    except OSError as error:
        raise ValueError(f"cache_dir {root} cannot be written: {error}; set --cache_dir.") from error
    with lock:
        try:
            import fcntl
        except ImportError:
            yield
            return
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _report(corrupt: Sequence[dict[str, str]], converted: Sequence[Counter[str]]) -> DecodeReport:
    bad = {name: reason for part in corrupt for name, reason in part.items()}
    return DecodeReport(bad, dict(sum(converted, Counter())))
