"""The life of one run around its loop: processes, folder, log, checkpoints, the best model. What is learned is in
train.py.
"""

import hashlib
import math
import random
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.distributed.nn.functional  # before a process group is there: see runtime.launch.leave_process_group
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor
from tqdm import tqdm

from scope_rlhf.objectives import describe_objective
from scope_rlhf.runtime.checkpoints import (
    changed_settings,
    check_finite,
    check_meta,
    find_checkpoint,
    load_checkpoint,
    random_state,
    read_meta,
    save_checkpoint,
    set_random_state,
)
from scope_rlhf.runtime.environment import package_versions
from scope_rlhf.runtime.files import replace_folder, write_json
from scope_rlhf.runtime.interrupt import Interrupt
from scope_rlhf.runtime.requirements import check_bf16, check_reporters
from scope_rlhf.runtime.run_folder import RunFolder
from scope_rlhf.runtime.threads import keep_freed_memory
from scope_rlhf.vision.config import VisionConfig
from scope_rlhf.vision.data import BatchOrder, load_data
from scope_rlhf.vision.long_tail import make_method
from scope_rlhf.vision.networks import Classifier, make_classifier, pretrained_normalisation, save_classifier
from scope_rlhf.vision.optimizer import make_optimizer
from scope_rlhf.vision.sources import require_extra
from scope_rlhf.vision.splits import write_split

# Settings that may change on the way without a word: they say where, how long and how often.
FREE_SETTINGS = frozenset(
    ("output_dir", "resume", "resume_from_checkpoint", "report_to", "num_threads", "disable_tqdm", "logging_steps")
) | {"save_steps", "save_total_limit", "dataloader_num_workers", "cache_dir", "cache_images", "split_file"}
FREE_SETTINGS |= {"allow_objective_change", "per_device_eval_batch_size", "corrupt_images"}
_FLAGS = {
    "network": "--network, --model_name_or_path",
    "objective": "the objective, or --allow_objective_change true,",
    "long_tail": "--long_tail, --long_tail_kwargs",
    "training_images": "--dataset_name, --split_file, or the seed",
    "classes": "--dataset_name",
    "batch_size": "--per_device_train_batch_size",
}


class Session(AbstractContextManager["Session"]):
    """One run: data, network and optimizer are made here, and saved and closed here.

    Inside the `with` block the run folder is locked. ValueError, ImportError and OSError as `load_data`,
    `make_classifier` and `find_checkpoint`.
    """

    def __init__(self, config: VisionConfig):
        self.config = config
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        keep_freed_memory()
        require_extra("sklearn", "precision and recall")
        check_reporters(config.report_to)
        if config.bf16:
            check_bf16()
        self.objective = config.make_objective()
        self.method = make_method(config.long_tail, config.long_tail_kwargs)  # type: ignore[arg-type]
        config.output_dir = config.output_dir or agreed_run_folder(config)
        self.folder = RunFolder(config.output_dir)
        self.folder.check_free()
        self.checkpoint = find_checkpoint(self.folder.path, config.resume, config.resume_from_checkpoint)
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),
            mixed_precision="bf16" if config.bf16 else "no",
            log_with=list(config.report_to) or None,  # pyright: ignore[reportArgumentType]
            project_dir=config.output_dir,
        )
        self.rank, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        with self.accelerator.main_process_first():  # it fills the cache, and writes split_file
            self.data = load_data(config, show=self.rank == 0 and not config.disable_tqdm)
        counts = torch.from_numpy(self.data.counts)
        weights = self.method.sampling_weights(counts)
        train = self.data.split.train
        self.order = BatchOrder(
            train,
            config.per_device_train_batch_size * self.processes,
            config.seed,
            weights=None if weights is None else weights.numpy()[self.data.labels[train]],
            rank=self.rank,
            processes=self.processes,
        )
        self.counts = counts.to(self.accelerator.device)
        self.total_updates = len(self.order) * config.num_train_epochs
        self.meta = self._meta()
        if self.checkpoint is not None:
            expected = dict(self.meta)
            if config.allow_objective_change:
                expected.pop("objective")
            saved = read_meta(self.checkpoint)
            check_meta(saved, expected, self.checkpoint, _FLAGS)
            if saved["step"] > self.total_updates:
                raise ValueError(
                    f"{self.checkpoint} is at update {saved['step']}, beyond the {self.total_updates} of "
                    f"num_train_epochs={config.num_train_epochs}; set --num_train_epochs to that of the whole run."
                )
        self.update = 0
        self.best: dict[str, Any] = {"value": None, "epoch": -1, "since": 0}
        self.totals: dict[str, Tensor] = {}
        self._saved_at = -1
        self.interrupt = Interrupt(enabled=self.processes == 1)

    @property
    def epoch(self) -> int:
        """Epochs that are done."""
        return self.update // len(self.order)

    def start(self) -> None:
        """Make network and optimizer, load what is resumed, open the log."""
        config = self.config
        name = config.model_name_or_path
        self.normalisation = (pretrained_normalisation(name) if name else None) or self.data.normalisation
        torch.manual_seed(config.seed)  # the same weights in every process
        self.classifier: Classifier = make_classifier(
            config.network,
            self.data.classes,
            self.data.source.channels,
            self.normalisation,
            model_name_or_path=config.model_name_or_path,
            cosine_scale=getattr(self.method, "scale", None) if self.method.cosine_head else None,
        )
        torch.manual_seed(config.seed + 1_000_003 * (self.rank + 1))
        np.random.seed((config.seed + self.rank) % 2**32)
        random.seed(config.seed + self.rank)
        self.classifier.to(self.accelerator.device)
        self.optimizer = make_optimizer(self.classifier, config)
        if self.checkpoint is not None:
            self._load(self.checkpoint)
        if self.rank == 0:
            self._open_log()
        if config.report_to:
            scalars = {k: v for k, v in asdict(config).items() if isinstance(v, int | float | str | bool)}
            self.accelerator.init_trackers("scope-rlhf-vision", config=scalars)
        self.bar = tqdm(
            total=self.total_updates,
            initial=self.update,
            unit="batch",
            desc=f"{self.data.source.name} {config.objective}",
            mininterval=0.5,
            disable=self.rank != 0 or config.disable_tqdm,
        )
        self.interrupt.start()

    def _open_log(self) -> None:
        config, folder = asdict(self.config), self.folder
        resumed = self.checkpoint is not None
        if self.checkpoint and (changed := changed_settings(self.checkpoint, config, FREE_SETTINGS)):
            warnings.warn(f"{self.checkpoint} goes on with other settings: {changed}.", stacklevel=2)
        dropped = folder.truncate_metrics(self.update) if resumed else 0
        folder.write_config(
            config,
            describe_objective(self.objective),
            self.config.seed,
            resumed=resumed,
            algorithm="classification",
            data=self.data.describe(),
            long_tail={"name": self.config.long_tail, "parameters": asdict(self.method)},
            vision_versions={k: v for k, v in package_versions(("pillow", "scikit-learn")).items() if v},
            **({"dropped_lines": dropped} if dropped else {}),
        )
        write_split(folder.path / "split.json", self.data.source, self.data.split, self.data.split_settings)

    def _meta(self) -> dict[str, Any]:
        """What a checkpoint belongs to."""
        config, counts = self.config, self.data.counts
        names = "\n".join(self.data.source.names[i] for i in self.data.split.train)
        digest = hashlib.sha256(names.encode()).hexdigest()[:8]
        return {
            "task": "classification",
            "classes": len(counts),
            "training_images": f"{counts.sum()} images, {counts.min()} to {counts.max()} a class ({digest})",
            "network": config.model_name_or_path or config.network,
            "image_size": config.image_size,
            "objective": describe_objective(self.objective),
            "long_tail": {"name": config.long_tail, "parameters": asdict(self.method)},
            "optim": config.optim,
            "batch_size": config.per_device_train_batch_size,
            "processes": self.processes,
        }

    # Logging

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Add sums over images to those of the epoch; nothing waits for the device."""
        for name, value in sums.items():
            value = value.detach().double() if value.device.type != "mps" else value.detach()
            self.totals[name] = self.totals[name] + value if name in self.totals else value

    def share_statistics(self) -> None:
        """The first process's running statistics of batch normalisation in all of them, as the saved model has them."""
        if self.processes > 1:
            for buffer in self.classifier.buffers():
                broadcast(buffer)

    def take_means(self) -> dict[str, float]:
        """The sums of all processes by their count of images, and start anew. Waits for the device."""
        names = sorted(self.totals)
        sums = self.accelerator.reduce(torch.stack([self.totals[name] for name in names]), reduction="sum")
        values = dict(zip(names, sums.tolist(), strict=True))  # type: ignore[union-attr]
        self.totals = {}
        images = values.pop("images")
        return {name: value / images for name, value in values.items()}

    def log(self, line: Mapping[str, float]) -> None:
        self.folder.append_metrics(self.update, dict(line))
        if self.config.report_to:
            self.accelerator.log(dict(line), step=self.update)

    # Checkpoints

    def keep_best(self, value: float) -> bool:
        """Compare the validation metric, keep the model where it is the best so far; whether the run should end."""
        config, best = self.config, self.best
        sign = -1 if config.metric_for_best_model == "loss" else 1
        if not math.isfinite(value):  # NaN compares with nothing; any number is better
            value = -sign * math.inf
        better = best["value"] is None or sign * (value - best["value"]) > 0
        clearly = best["value"] is None or sign * (value - best["value"]) > config.early_stopping_threshold
        best["since"] = 0 if clearly else best["since"] + 1
        if better:
            best |= {"value": value, "epoch": self.epoch}
            if self.rank == 0:
                self._save_model()
        return self.out_of_patience

    @property
    def out_of_patience(self) -> bool:
        """Whether early_stopping_patience epochs have passed without a better one."""
        patience = self.config.early_stopping_patience
        return bool(patience) and self.best["since"] >= patience

    def _save_model(self) -> None:
        """The classifier, whole or the former one."""
        record = {
            "network": self.config.model_name_or_path or self.config.network,
            "classes": self.data.classes,
            "channels": self.data.source.channels,
            "image_size": self.config.image_size,
            "resize_size": self.config.stored_size,
            "normalisation": self.normalisation,
            "cosine_scale": getattr(self.method, "scale", None) if self.method.cosine_head else None,
            "epoch": self.best["epoch"],
        }
        replace_folder(self.folder.path / "model", lambda draft: save_classifier(self.classifier, draft, record))

    def remember(self) -> None:
        """Nothing is noted between updates: a checkpoint is of the moment."""

    def save(self) -> Path:
        """Write checkpoint-<update>, once for an update."""
        folder = self.folder.path / f"checkpoint-{self.update}"
        if self._saved_at == self.update:
            return folder
        self._saved_at = self.update
        weights = {f"the weight {name}": weight for name, weight in self.classifier.named_parameters()}
        check_finite(self.update, weights)
        learner = {
            "model": self.classifier.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counters": {"update": self.update, "best": dict(self.best)},
        }
        process = {"random": random_state(), "totals": dict(self.totals)}
        wait, keep = self.accelerator.wait_for_everyone, self.config.save_total_limit
        return save_checkpoint(
            self.folder.path, self.update, self.meta, learner, process, rank=self.rank, wait=wait, keep=keep
        )

    def _load(self, folder: Path) -> None:
        learner, process = load_checkpoint(folder, self.rank, ("model", "optimizer", "counters"), ("random", "totals"))
        self.classifier.load_state_dict(learner["model"])
        self.optimizer.load_state_dict(learner["optimizer"])
        self.update, self.best = learner["counters"]["update"], dict(learner["counters"]["best"])
        self.totals = {name: value.to(self.accelerator.device) for name, value in process["totals"].items()}
        set_random_state(process["random"])

    # Beginning and end

    def __enter__(self) -> Self:
        self.folder.__enter__()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.interrupt.stop()
        if hasattr(self, "bar"):
            self.bar.close()
        self.folder.__exit__(kind, error, trace)
        if self.config.report_to and error is None:
            self.accelerator.end_training()

    def finish(self) -> Path:
        self.save()
        if self.rank == 0:
            write_json(self.folder.path / "finished.json", {"step": self.update, "epoch": self.epoch, **self.best})
        self.accelerator.wait_for_everyone()
        return self.folder.path


def agreed_run_folder(config: VisionConfig) -> str:
    """new_run_folder of the first process, in all of them: their clocks differ."""
    PartialState(cpu=not torch.accelerator.is_available())
    return broadcast_object_list([new_run_folder(config)])[0]


def new_run_folder(config: VisionConfig) -> str:
    """runs/vision/<data>-<objective>/<time>, which is new."""
    data = Path(config.dataset_name).name or "images"
    objective = config.objective.rpartition(":")[2]
    return str(Path("runs/vision") / f"{data}-{objective}" / datetime.now().strftime("%Y%m%d-%H%M%S-%f")[:-3])
