"""Classifiers of images: a small CNN, ResNet-18, -50 and -101 from random weights, or a pretrained one by name."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import cached_file

from scope_rlhf.hub import explain_model_errors
from scope_rlhf.runtime.files import write_json

RECORD = "classifier.json"
_RESNETS: dict[str, dict[str, Any]] = {
    "resnet18": {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"},
    "resnet50": {"depths": [3, 4, 6, 3]},
    "resnet101": {"depths": [3, 4, 23, 3]},
}


class CosineHead(nn.Module):
    """scale * cos(w_k, x): the normalised linear layer of LDAM (arXiv 1906.07413). [B, F] -> [B, K], no bias."""

    def __init__(self, features: int, classes: int, scale: float):
        super().__init__()
        self.directions = nn.Parameter(torch.empty(classes, features))
        nn.init.normal_(self.directions)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(features.float(), dim=1), F.normalize(self.directions, dim=1))


class SmallCNN(nn.Module):
    """Two 3 x 3 convolutions (32, 64), a pooling to 4 x 4, 128 hidden units: 150,000 weights, for small images."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
            nn.AdaptiveMaxPool2d(4), nn.Flatten(), nn.Linear(1024, 128), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Linear(128, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.body(images))


class Classifier(nn.Module):
    """Bytes to logits: normalisation, then the network.

    images [B, H, W, C] uint8 -> logits [B, K] float32 (what autocast computed them in, widened). mean, std: of each
    channel, of pixels in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        # Permuting leaves channels last in memory, which is how the convolutions are fastest.
        pixels = (images.permute(0, 3, 1, 2).to(self.mean.dtype) / 255 - self.mean) / self.std
        found = self.network(pixels)
        return (found if isinstance(found, Tensor) else found.logits).float()


def make_classifier(
    network: str,
    classes: Sequence[str],
    channels: int,
    normalisation: tuple[Sequence[float], Sequence[float]],
    *,
    model_name_or_path: str | None = None,
    cosine_scale: float | None = None,
) -> Classifier:
    """A classifier with random weights, or a pretrained one with a new head where its classes are others.

    cosine_scale: a CosineHead in place of the linear one. Draws from torch's random numbers.

    Raises:
        ValueError: an unknown name, a pretrained model that is none of images, or grey images with one.
    """
    body = (
        _pretrained(model_name_or_path, classes, channels) if model_name_or_path else _fresh(network, classes, channels)
    )
    if cosine_scale is not None:
        _replace_head(body, len(classes), cosine_scale)
    return Classifier(body, *normalisation).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _fresh(network: str, classes: Sequence[str], channels: int) -> nn.Module:
    if network == "cnn":
        return SmallCNN(channels, len(classes))
    if network not in _RESNETS:
        raise ValueError(f"network {network!r} is unknown; valid: cnn, {', '.join(_RESNETS)}; set --network.")
    from transformers import ResNetConfig, ResNetForImageClassification

    labels = dict(enumerate(classes))
    config = ResNetConfig(
        num_channels=channels, id2label=labels, label2id={v: k for k, v in labels.items()}, **_RESNETS[network]
    )
    return ResNetForImageClassification(config)


def _pretrained(name: str, classes: Sequence[str], channels: int) -> nn.Module:
    if (Path(name) / RECORD).exists() and not (Path(name) / "config.json").exists():
        raise ValueError(
            f"model_name_or_path {name} is a small CNN of a run here, no pretrained model; set --network cnn."
        )
    if channels != 3:
        raise ValueError(f"model_name_or_path {name!r} takes colour images, these are grey; set --network cnn.")
    from transformers import AutoModelForImageClassification

    labels = dict(enumerate(classes))
    with explain_model_errors(name, "model_name_or_path"):
        return AutoModelForImageClassification.from_pretrained(
            name, id2label=labels, label2id={v: k for k, v in labels.items()}, ignore_mismatched_sizes=True
        )


def pretrained_normalisation(name: str) -> tuple[list[float], list[float]] | None:
    """image_mean and image_std of a pretrained model's preprocessor_config.json; None where it has none."""
    with explain_model_errors(name, "model_name_or_path"):
        file = cached_file(
            name,
            "preprocessor_config.json",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    if file is None:
        return None
    settings = json.loads(Path(file).read_text(encoding="utf-8"))
    found = settings.get("image_mean"), settings.get("image_std")
    return found if all(isinstance(part, list) and len(part) == 3 for part in found) else None


def _replace_head(body: nn.Module, classes: int, scale: float) -> None:
    head = body.get_submodule("classifier") if hasattr(body, "classifier") else None
    if isinstance(head, nn.Sequential) and len(head) and isinstance(head[-1], nn.Linear):
        head[-1] = CosineHead(head[-1].in_features, classes, scale)
    elif isinstance(head, nn.Linear):
        body.classifier = CosineHead(head.in_features, classes, scale)
    else:
        raise ValueError(f"ldam_drw needs a linear head, {type(body).__name__} has {type(head).__name__}.")


def save_classifier(model: Classifier, folder: Path, record: dict[str, Any]) -> None:
    """classifier.json and model.safetensors; with a network of transformers also its config.json, so that
    AutoModelForImageClassification.from_pretrained reads the folder.

    record: network, classes, channels, image_size, cosine_scale, normalisation: what load_classifier needs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(model.network, "save_pretrained"):
        model.network.save_pretrained(folder)  # pyright: ignore[reportCallIssue]
    else:
        save_file({k: v.contiguous() for k, v in model.network.state_dict().items()}, folder / "model.safetensors")
    write_json(folder / RECORD, record)


def load_classifier(folder: str | Path) -> tuple[Classifier, dict[str, Any]]:
    """What save_classifier wrote, for evaluation, and its record. ValueError where it is not whole."""
    folder = Path(folder)
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        weights = load_file(folder / "model.safetensors")
        if (folder / "config.json").exists():
            from transformers import AutoConfig, AutoModelForImageClassification

            body = AutoModelForImageClassification.from_config(AutoConfig.from_pretrained(folder))
        else:
            body = _fresh(record["network"], record["classes"], record["channels"])
        if record["cosine_scale"] is not None:
            _replace_head(body, len(record["classes"]), record["cosine_scale"])
        body.load_state_dict(weights)
        model = Classifier(body, *record["normalisation"])
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{folder} holds no classifier: {type(error).__name__}: {error}") from error
    return model.eval(), record
