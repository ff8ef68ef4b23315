"""Images per second of the vision trainer beside a plain PyTorch loop, in alternated runs, and what waits for images.

    python benchmarks/vision_throughput.py                          # ResNet-50 and ResNet-101 at 224, float32 and bf16
    python benchmarks/vision_throughput.py --batch_size 64 --workers 8 --steps 50      # on a GPU

The data is a folder of random JPEGs of 300 x 400 pixels in 257 classes. The plain loop is what one would write: a
Dataset that opens and augments the file (PIL; the paper's augmentation), a DataLoader, and the same network, loss and
optimizer. Ours reads the decoded cache and does the same augmentation; `data only` is the loader without a network.
Medians over the rounds; results are written to benchmarks/results/vision_throughput.md.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from scope_rlhf.reports.markdown import markdown_table  # noqa: E402
from scope_rlhf.runtime import source_commit, write_text  # noqa: E402
from scope_rlhf.runtime.environment import device_name  # noqa: E402
from scope_rlhf.vision.config import VisionConfig  # noqa: E402
from scope_rlhf.vision.data import BatchOrder, ImageData, load_data, make_augmenter, make_loader  # noqa: E402
from scope_rlhf.vision.images import decode  # noqa: E402
from scope_rlhf.vision.long_tail import make_method  # noqa: E402
from scope_rlhf.vision.networks import make_classifier  # noqa: E402
from scope_rlhf.vision.optimizer import make_optimizer  # noqa: E402
from scope_rlhf.vision.train import classification_loss  # noqa: E402

CLASSES = 257


def write_images(folder: Path, per_class: int) -> None:
    rng = np.random.default_rng(0)
    for label in range(CLASSES):
        place = folder / f"{label + 1:03d}.class"
        place.mkdir(parents=True)
        for number in range(per_class):
            small = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)  # smooth, so that files have a photograph's size
            Image.fromarray(small).resize((400, 300), Image.Resampling.BICUBIC).save(
                place / f"{label + 1:03d}_{number:04d}.jpg", quality=90
            )


class PlainDataset(Dataset[Any]):
    """Open, resize, augment, to a normalised float tensor: nothing is kept."""

    def __init__(self, data: ImageData, config: VisionConfig):
        self.data, self.augment, self.size = data, make_augmenter(config), config.stored_size
        self.positions = data.split.train

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        position = int(self.positions[index])
        with self.data.source.read(position) as image:
            pixels = decode(image, self.size, 3)[0]
        assert self.augment is not None
        view = torch.from_numpy(np.ascontiguousarray(self.augment(pixels, 0, position))).permute(2, 0, 1).float() / 255
        mean, std = (torch.tensor(part).view(3, 1, 1) for part in self.data.normalisation)
        return (view - mean) / std, int(self.data.labels[position])


def endless(loader: DataLoader[Any]) -> Iterator[Any]:
    while True:
        yield from loader


def measure(side: str, data: ImageData, config: VisionConfig, steps: int, network: bool = True) -> tuple[float, float]:
    """(images per second, share of the time that waits for images) after two updates to warm up."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert device is not None
    torch.manual_seed(0)
    model = make_classifier(config.network, data.classes, 3, data.normalisation).to(device)
    body = model.network if side == "plain" else model
    if side == "plain":
        body.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    optimizer = make_optimizer(model, config)
    counts = torch.from_numpy(data.counts).to(device)
    objective, method = config.make_objective(), make_method("none")
    size = config.per_device_train_batch_size
    if side == "plain":
        loader = DataLoader(
            PlainDataset(data, config), size, shuffle=True, num_workers=config.dataloader_num_workers, drop_last=True
        )
        batches = endless(loader)
    else:
        order = BatchOrder(data.split.train, size, 1)
        batches = make_loader(data, config, order, 0, steps + 2, pin_memory=device.type == "cuda")
    started = waiting = 0.0
    for step in range(steps + 2):
        if step == 2:
            _synchronize(device)
            started, waiting = time.perf_counter(), 0.0
        before = time.perf_counter()
        images, labels = next(batches)
        waiting += time.perf_counter() - before
        if not network:
            continue
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
            logits: Any = body(images)
        logits = logits if isinstance(logits, torch.Tensor) else logits.logits
        if side == "plain":
            loss = F.cross_entropy(logits.float(), labels)
        else:
            loss = classification_loss(objective, method, logits, labels, counts).per_decision.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    _synchronize(device)
    elapsed = time.perf_counter() - started
    return steps * size / elapsed, waiting / elapsed


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet50", "resnet101"])
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_images(folder / "images", 6)
        rows = []
        for network in args.networks:
            configs = {
                bf16: VisionConfig(
                    dataset_name=str(folder / "images"), cache_dir=str(folder / "cache"), network=network,
                    augmentation="paper", optim="sgd", learning_rate=1e-2, bf16=bf16, objective="scope",
                    per_device_train_batch_size=args.batch_size, dataloader_num_workers=args.workers,
                )
                for bf16 in (False, True)
            }  # fmt: skip
            data = load_data(configs[False], show=False)
            sides = [("plain", False), ("ours", False), ("plain", True), ("ours", True)]
            found: dict[Any, list[tuple[float, float]]] = {key: [] for key in sides}
            for _ in range(args.rounds):
                for side, bf16 in sides:
                    found[side, bf16].append(measure(side, data, configs[bf16], args.steps))
            for bf16 in (False, True):
                speeds = {side: statistics.median(s for s, _ in found[side, bf16]) for side in ("plain", "ours")}
                waits = {side: statistics.median(w for _, w in found[side, bf16]) for side in ("plain", "ours")}
                rows.append([
                    network, "bfloat16" if bf16 else "float32", f"{speeds['plain']:.1f}", f"{waits['plain']:.0%}",
                    f"{speeds['ours']:.1f}", f"{waits['ours']:.0%}", f"{speeds['ours'] / speeds['plain']:.2f}",
                ])  # fmt: skip
                print(rows[-1], flush=True)
        loaders = {side: statistics.median(measure(side, data, configs[False], 10, network=False)[0]
                                           for _ in range(args.rounds)) for side in ("plain", "ours")}  # fmt: skip
    header = ["network", "precision", "plain loop, images/s", "waiting", "ours, images/s", "waiting", "ours over it"]
    commit = str((source_commit(ROOT) or {}).get("commit", "?"))[:7]
    text = f"""# Images per second, training at 224 x 224, 257 classes, the paper's augmentation

`{" ".join(["python benchmarks/vision_throughput.py", *sys.argv[1:]])}`, commit {commit}, torch {torch.__version__},
{device_name()}, {torch.get_num_threads()} threads, {args.workers} workers, batches of {args.batch_size}; medians of
{args.rounds} alternated runs of {args.steps} updates.

{markdown_table(header, rows, "llrrrrr")}

Data only, without a network: {loaders["ours"]:.0f} images/s from the cache, {loaders["plain"]:.0f} from the files.
"""
    written = ROOT / "benchmarks/results/vision_throughput.md"
    write_text(written, text)
    print(written.read_text())


if __name__ == "__main__":
    main()
