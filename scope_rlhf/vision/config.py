"""Settings of a run on images. Names are those of transformers and TRL; every mistake that needs no data is told here,
by ValueError.
"""

import math
from dataclasses import dataclass
from typing import Any

from scope_rlhf.objectives import Objective, make_trainer_objective, require_trainable
from scope_rlhf.runtime.settings import CheckedSettings, did_you_mean, json_object, option
from scope_rlhf.vision.long_tail import METHODS, check_method

NETWORKS = ("cnn", "resnet18", "resnet50", "resnet101")
AUGMENTATIONS = ("none", "crop_flip", "paper")
METRICS = ("balanced_accuracy", "accuracy", "macro_f1", "macro_precision", "loss")
# Scope Loss (arXiv 2308.04024), section on classification: scope eq. 8 with alpha 1, PEL with 8e-6. Elsewhere the
# objective's own defaults hold, focal's being the published gamma 2.
SUPERVISED_PARAMETERS: dict[str, dict[str, Any]] = {"scope": {"alpha": 1.0}, "policy_entropy": {"alpha": 8e-6}}


@dataclass
class VisionConfig(CheckedSettings):
    """One run: data, network, objective, training. Batch sizes are for each process, as in transformers."""

    dataset_name: str = option("digits", "digits (embedded), a folder of class folders, or a Hub image dataset.")
    dataset_config: str | None = option(None, "Subset of a Hub dataset.")
    image_column: str = option("image", "Column of a Hub dataset.")
    label_column: str = option("label", "Column of a Hub dataset.")
    split_file: str | None = option(None, "The split: read where the file exists, else made and written there.")
    split_seed: int | None = option(None, "Seed of the split and of the tail's order; default: the seed.")
    validation_fraction: float = option(0.1, "Share of each class that chooses the best epoch.")
    test_fraction: float = option(0.2, "Share of each class that is measured at the end.")
    imbalance_ratio: float = option(1.0, "Largest over smallest class of the training part after subsampling; 1: none.")
    imbalance_type: str = option("exp", "exp (sizes fall geometrically) or step (half of the classes are small).")
    corrupt_images: str = option("error", "error (stop, with their names) or skip (leave out, and count).")
    cache_dir: str | None = option(None, "Decoded images; default ~/.cache/scope_rlhf/vision.")
    cache_images: bool = option(True, "Keep the decoded images on disk; else every epoch decodes them again.")

    network: str = option("resnet101", "cnn, resnet18, resnet50 or resnet101, from random weights.")
    model_name_or_path: str | None = option(None, "Pretrained image classifier: Hub name or folder, in place of it.")
    image_size: int = option(224, "Side of the network's input, pixels.")
    resize_size: int | None = option(None, "Side that images are kept in; default image_size x 8/7 with a crop.")
    augmentation: str = option("none", "none, crop_flip, or paper (also colour, contrast, brightness, sharpness).")
    color_std: float = option(0.3, "paper: colour factor N(1, std), clipped at 0.")
    contrast_std: float = option(0.1, "paper: contrast factor.")
    brightness_std: float = option(0.1, "paper: brightness factor.")
    sharpness_std: float = option(0.3, "paper: sharpness factor.")
    flip_probability: float = option(0.5, "crop_flip, paper: mirrored with this probability.")

    objective: str = option("ppo", "See `scope-rlhf objectives`; ppo is cross-entropy here; path/to/file.py:Class.")
    objective_kwargs: dict[str, Any] | str | None = option(None, "Its parameters as JSON, such as '{\"alpha\": 0.3}'.")
    long_tail: str = option("none", f"Remedy against imbalance: {', '.join(METHODS)}.")
    long_tail_kwargs: dict[str, Any] | str | None = option(None, "Its parameters as JSON, such as '{\"tau\": 1.5}'.")
    allow_objective_change: bool = option(False, "Resume with an objective that is not the checkpoint's.")

    num_train_epochs: int = option(100, "Passes over the training part.")
    per_device_train_batch_size: int = option(64, "Images of an update, in each process.")
    per_device_eval_batch_size: int = option(128, "Images at a time in evaluations, in each process.")
    optim: str = option("adam", "adam, adamw or sgd (momentum .9).")
    learning_rate: float = option(1e-3, "Learning rate.")
    lr_scheduler_type: str = option("constant", "constant, cosine or linear, to 0 at the end, over updates.")
    warmup_steps: int = option(0, "Updates over which the rate rises from 0.")
    weight_decay: float = option(0.0, "L2 penalty (adam, sgd) or decoupled decay (adamw).")
    momentum: float = option(0.9, "Of sgd.")
    max_grad_norm: float = option(0.0, "Clip of the gradient's norm; 0: no clip.")
    bf16: bool = option(False, "bfloat16 autocast in the network.")
    early_stopping_patience: int = option(0, "Epochs without a better metric_for_best_model that end the run; 0: off.")
    early_stopping_threshold: float = option(0.0, "By how much better has to be.")
    metric_for_best_model: str = option("balanced_accuracy", f"Of the validation part: {', '.join(METRICS)}.")

    seed: int = option(1, "Seed of weights, order of the images and augmentation.")
    output_dir: str | None = option(None, "Run folder; default runs/vision/<data>-<objective>/<time>.")
    logging_steps: int = option(0, "Updates between log lines; 0: one line an epoch.")
    save_steps: int = option(0, "Updates between checkpoints; 0: at the end of an epoch.")
    save_total_limit: int = option(2, "Checkpoints to keep.")
    resume: bool = option(False, "Go on from the newest checkpoint of output_dir.")
    resume_from_checkpoint: str | None = option(None, "Go on from this checkpoint folder.")
    report_to: list[str] = option([], "tensorboard, wandb, trackio, beside metrics.jsonl.")
    dataloader_num_workers: int = option(0, "Processes that decode and augment.")
    num_threads: int | None = option(None, "CPU threads of torch; default: all cores, or OMP_NUM_THREADS.")
    disable_tqdm: bool = option(False, "No progress bar.")

    def __post_init__(self) -> None:
        for name in ("objective_kwargs", "long_tail_kwargs"):
            setattr(self, name, json_object(name, getattr(self, name)))
        for name in ("num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size", "image_size"):
            self.at_least(name, 1)
        for name in ("warmup_steps", "early_stopping_patience", "logging_steps", "save_steps", "seed"):
            self.at_least(name, 0)
        self.at_least("dataloader_num_workers", 0)
        self.at_least("save_total_limit", 1)
        for name in ("validation_fraction", "test_fraction"):
            self.between(name, 0, 1, open_low=True)
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"validation_fraction={self.validation_fraction} and test_fraction={self.test_fraction} leave nothing "
                "to train on; set them to less than 1 together."
            )
        self.between("imbalance_ratio", 1, math.inf)
        self.between("flip_probability", 0, 1)
        self.between("learning_rate", 0, math.inf, open_low=True)
        self.between("momentum", 0, 1)
        for name in ("color_std", "contrast_std", "brightness_std", "sharpness_std", "weight_decay", "max_grad_norm"):
            self.between(name, 0, math.inf)
        self.between("early_stopping_threshold", 0, math.inf)
        for name, valid in _CHOICES.items():
            if getattr(self, name) not in valid:
                given = getattr(self, name)
                meant = did_you_mean(given, valid)
                raise ValueError(f"{name} {given!r} is unknown{meant}; valid: {', '.join(valid)}; set --{name}.")
        for name in ("split_seed", "num_threads"):
            if getattr(self, name) is not None:
                self.at_least(name, 0 if name == "split_seed" else 1)
        if self.resize_size is not None:
            self.at_least("resize_size", self.image_size)
        if not self.dataset_name.strip():
            raise ValueError("dataset_name is empty; set --dataset_name to digits, a folder or a Hub name.")
        self.not_empty("split_file", "cache_dir", "model_name_or_path")
        self.check_resume()
        self.check_report_to()
        check_method(self.long_tail, self.long_tail_kwargs)
        require_trainable(self.make_objective(), ratio=False, source=self.objective)

    def make_objective(self) -> Objective:
        """The objective, with the parameters of the paper's classification where none are given."""
        defaults = SUPERVISED_PARAMETERS.get(self.objective, {})
        return make_trainer_objective(self.objective, {**defaults, **(self.objective_kwargs or {})})  # type: ignore

    @property
    def split_settings(self) -> dict[str, Any]:
        """What a split is made from, as make_split takes it."""
        names = ("validation_fraction", "test_fraction", "imbalance_ratio", "imbalance_type")
        seed = self.seed if self.split_seed is None else self.split_seed
        return {"seed": seed, **{name: getattr(self, name) for name in names}}

    @property
    def crops(self) -> bool:
        """Whether training sees random crops."""
        return self.augmentation != "none"

    @property
    def stored_size(self) -> int:
        """Side of the images as they are kept, from which the network's input is cropped."""
        if self.resize_size is not None:
            return self.resize_size
        return round(self.image_size * 8 / 7) if self.crops else self.image_size


_CHOICES: dict[str, tuple[str, ...]] = {
    "network": NETWORKS,
    "augmentation": AUGMENTATIONS,
    "imbalance_type": ("exp", "step"),
    "corrupt_images": ("error", "skip"),
    "optim": ("adam", "adamw", "sgd"),
    "lr_scheduler_type": ("constant", "cosine", "linear"),
    "metric_for_best_model": METRICS,
    "long_tail": tuple(METHODS),
}
