"""Optimizer and learning rate of a run on images."""

import math

import torch
from torch import nn

from scope_rlhf.vision.config import VisionConfig


def make_optimizer(model: nn.Module, config: VisionConfig) -> torch.optim.Optimizer:
    """adam, adamw or sgd over all weights, fused where the device has it."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    common = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "fused": True}
    if config.optim == "sgd":
        return torch.optim.SGD(weights, momentum=config.momentum, **common)
    return (torch.optim.AdamW if config.optim == "adamw" else torch.optim.Adam)(weights, **common)


def learning_rate_factor(update: int, total: int, warmup: int, kind: str) -> float:
    """Factor on the learning rate of update 0 ... total - 1: (u + 1) / warmup while it rises, then constant, linear
    1 - x or cosine (1 + cos(pi x)) / 2, x the share of the rest that is done: 0 at the end.
    """
    if update < warmup:
        return (update + 1) / warmup
    done = (update - warmup) / max(1, total - warmup)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[kind]
