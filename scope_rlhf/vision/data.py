"""The data of a run: source, decoded images, split and counts, and the order in which training sees them."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from scope_rlhf.vision.augment import Augmenter, centre_crop
from scope_rlhf.vision.config import VisionConfig
from scope_rlhf.vision.images import DecodedEachTime, DecodeReport, Images, check_images, load_images
from scope_rlhf.vision.sources import ImageSource, load_source
from scope_rlhf.vision.splits import PARTS, Split, counts_of, make_split, read_split, write_split

# Of ImageNet, as every pretrained network here expects; grey images are brought to about [-1, 1].
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageData:
    """Images of a run. `counts` are training images of each class [K]; labels [N] are of the whole source.
    split_settings: those that the split was made with.
    """

    source: ImageSource
    images: Images
    split: Split
    report: DecodeReport
    split_settings: dict[str, Any]

    @property
    def classes(self) -> list[str]:
        return self.source.classes

    @property
    def labels(self) -> np.ndarray:
        return self.source.labels

    @property
    def counts(self) -> np.ndarray:
        return counts_of(self.source, self.split.train)

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, of pixels in [0, 1]."""
        return (IMAGENET_MEAN, IMAGENET_STD) if self.source.channels == 3 else ((0.5,), (0.5,))

    def describe(self) -> dict[str, Any]:
        """For config.json: counts of each class and part, and what was left out or converted."""
        return {
            "name": self.source.name,
            "fingerprint": self.source.fingerprint,
            "classes": self.classes,
            "counts": {name: counts_of(self.source, self.split.part(name)).tolist() for name in PARTS},
            "corrupt": self.report.corrupt,
            "converted": self.report.converted,
            "ignored": self.source.ignored,
        }


def load_data(config: VisionConfig, *, show: bool = True) -> ImageData:
    """Read, decode and split the images of a run; the split is read from split_file, or written there.

    Raises:
        ValueError: as load_source, make_split and read_split; images that cannot be read, with their names, where
            corrupt_images is `error`. OSError: no room for the cache.
    """
    source = load_source(config.dataset_name, config.dataset_config, config.image_column, config.label_column)
    if source.ignored and show:
        shown = ", ".join(source.ignored[:5]) + (" ..." if len(source.ignored) > 5 else "")
        warnings.warn(f"{len(source.ignored)} entries of {source.name} are no image files: {shown}.", stacklevel=2)
    size, workers = config.stored_size, config.dataloader_num_workers
    if config.cache_images or source.in_memory:
        images, report = load_images(source, size, config.cache_dir, workers=workers, show=show)
    else:
        images, report = DecodedEachTime(source, size), check_images(source, size, workers=workers, show=show)
    if report.corrupt and config.corrupt_images == "error":
        listed = "; ".join(f"{name} ({reason})" for name, reason in list(report.corrupt.items())[:5])
        more = f" and {len(report.corrupt) - 5} more" if len(report.corrupt) > 5 else ""
        raise ValueError(
            f"{len(report.corrupt)} of {len(source.names)} images of {source.name} cannot be read: {listed}{more}; "
            "mend or remove them, or set --corrupt_images skip."
        )
    usable = np.array([i for i, name in enumerate(source.names) if name not in report.corrupt], dtype=np.int64)
    settings = config.split_settings
    file = None if config.split_file is None else Path(config.split_file).expanduser()
    if file is not None and file.exists():
        split, settings = read_split(file, source, usable, settings)
        return ImageData(source, images, split, report, settings)
    split = make_split(source, usable, **settings)
    if file is not None:
        try:
            write_split(file, source, split, settings)
        except OSError as error:
            raise ValueError(f"split_file {file} cannot be written: {error}; set --split_file.") from error
    return ImageData(source, images, split, report, settings)


class TrainingImages(Dataset[Any]):
    """Views by (epoch, position): bytes [B, H, W, C] and labels [B]."""

    def __init__(self, images: Images, labels: np.ndarray, augmenter: Augmenter | None, size: int):
        self.images, self.labels, self.augmenter, self.size = images, labels, augmenter, size

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        positions = np.array([position for _, position in keys])
        pixels = self.images[positions]
        if self.augmenter is None:
            pixels = centre_crop(pixels, self.size)
        else:
            pixels = np.stack([self.augmenter(p, *key) for p, key in zip(pixels, keys, strict=True)])
        return torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(self.labels[positions])


class BatchOrder:
    """The batches of training: a permutation of the images in every epoch, or draws by weight; each a function of
    (seed, epoch), so that a resume goes on where it was.

    positions [n] of the training images; weights [n]: draw n with replacement in every epoch. batch_size is global,
    process `rank` of `processes` takes every processes-th image of a batch. A last batch with fewer than two images for
    each process is left out: batch normalisation needs two.
    """

    def __init__(
        self,
        positions: np.ndarray,
        batch_size: int,
        seed: int,
        *,
        weights: np.ndarray | None = None,
        rank: int = 0,
        processes: int = 1,
    ):
        self.positions, self.batch_size, self.seed = positions, batch_size, seed
        self.weights, self.rank, self.processes = weights, rank, processes
        if len(self) == 0:
            raise ValueError(f"{len(positions)} training images are fewer than two for each of {processes} processes.")

    def __len__(self) -> int:
        """Updates in an epoch."""
        whole, rest = divmod(len(self.positions), self.batch_size)
        return whole + (rest >= 2 * self.processes)

    def size_of(self, batch: int) -> int:
        """Images of the global batch of that number in an epoch."""
        return min(self.batch_size, len(self.positions) - batch * self.batch_size)

    def epoch(self, number: int) -> list[np.ndarray]:
        """The global batches of an epoch, as positions."""
        rng = np.random.default_rng([self.seed, 2, number])
        if self.weights is None:
            order = rng.permutation(self.positions)
        else:
            order = rng.choice(self.positions, len(self.positions), p=self.weights / self.weights.sum())
        return [order[i * self.batch_size : (i + 1) * self.batch_size] for i in range(len(self))]

    def from_update(self, update: int, last: int) -> Iterator[list[tuple[int, int]]]:
        """This process's share of the updates `update` to `last` (not included), as (epoch, position)."""
        while update < last:
            number, first = divmod(update, len(self))
            for batch in self.epoch(number)[first:]:
                if update == last:
                    return
                yield [(number, int(position)) for position in batch[self.rank :: self.processes]]
                update += 1


def make_loader(
    data: ImageData, config: VisionConfig, order: BatchOrder, update: int, last: int, pin_memory: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of this process for the updates `update` to `last`, over epochs without a pause; workers make views
    ahead.
    """
    loader: DataLoader[Any] = DataLoader(
        TrainingImages(data.images, data.labels, make_augmenter(config), config.image_size),
        batch_sampler=_Batches(order, update, last),  # type: ignore[arg-type]
        collate_fn=_as_is,
        num_workers=config.dataloader_num_workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if config.dataloader_num_workers else None,
    )
    return iter(loader)


def make_augmenter(config: VisionConfig) -> Augmenter | None:
    """None where training sees the images as evaluations do."""
    if config.augmentation == "none":
        return None
    stds = ("color_std", "contrast_std", "brightness_std", "sharpness_std")
    enhance = {name: getattr(config, name) for name in stds} if config.augmentation == "paper" else {}
    return Augmenter(config.image_size, config.seed, True, config.flip_probability, **enhance)


def evaluation_batches(
    data: ImageData, positions: np.ndarray, size: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Bytes [B, H, W, C] and labels [B] of the positions, in order."""
    for start in range(0, len(positions), batch_size):
        chosen = positions[start : start + batch_size]
        pixels = centre_crop(data.images[chosen], size)
        yield torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(data.labels[chosen])


class _Batches:
    """from_update as an iterable."""

    def __init__(self, order: BatchOrder, update: int, last: int):
        self.arguments = order, update, last

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, update, last = self.arguments
        return order.from_update(update, last)

    def __len__(self) -> int:
        return self.arguments[2] - self.arguments[1]


def _as_is(batch: Any) -> Any:
    return batch
