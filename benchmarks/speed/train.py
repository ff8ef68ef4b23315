"""Forward and backward of one micro-batch in GRPO, and a pass for the reference's log-probs: TRL's trainer and ours.

- trl: GRPOTrainer of TRL. jacobian: ScopeGRPOTrainer as it comes (a frozen head under LoRA).
- jacobian, oneDNN off: the same with torch's own float32 products, where ours are oneDNN's (models/products.py).
- scope, trl head and scope, dense: as jacobian, with --head_impl trl and dense (plain logits).

Sizes: --batch rows of --prompt and --completion tokens without padding, a GPT-2 of each --shape with --vocabulary
tokens; what is equal is said in sides.py. Old log-probs are given and the clip binds here and there. Loss, gradient and
log-probs are compared with those from plain logits by hand (objective ppo, log-softmax in float64): 1e-5 of the loss,
1e-4 of the gradient's norm, 5e-6 of a reference log-prob in float32; in bfloat16 .02, .05 and .1. The entropy, which
all of them log, is timed here and compared in suite head.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.measure import ONEDNN_OFF, Call, Options, Row, Section, compare, offered, products_of, relative
from benchmarks.speed.sides import gradient_of, make_policy, make_rollout, make_trainer, plain_log_probs, plain_loss
from scope_rlhf.objectives import make_objective

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "trl": ("trl", {}),
    "jacobian": ("scope", {"head_impl": "jacobian"}),
    "jacobian" + ONEDNN_OFF: ("scope", {"head_impl": "jacobian"}),
    "scope, trl head": ("scope", {"head_impl": "trl"}),
    "scope, dense": ("scope", {"head_impl": "dense"}),
}
BOUNDS = {
    "float32": {"loss": 1e-5, "gradient": 1e-4, "log p": 5e-6},
    "bfloat16": {"loss": 0.02, "gradient": 0.05, "log p": 0.1},
}


def train_step(trainer: Any, rollout: dict[str, Tensor]) -> tuple[float, Tensor]:
    """(loss, gradient)."""
    trainer.model.zero_grad()
    return gradient_of(trainer.model, trainer._compute_loss(trainer.model, dict(rollout)))


def reference_pass(trainer: Any, rollout: dict[str, Tensor]) -> Tensor:
    """Log-probs [B, T] of the base model, as both trainers take them for the KL."""
    ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
    mask = torch.cat([rollout["prompt_mask"], rollout["completion_mask"]], dim=1)
    width = rollout["completion_ids"].size(1)
    with torch.no_grad(), trainer.model.disable_adapter():
        return trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, width, len(ids))[0]


PASSES: dict[str, Any] = {"train": train_step, "reference": reference_pass}


def run_pass(variant: str, what: str, trainer: Any, rollout: dict[str, Tensor]) -> Any:
    with products_of(variant):
        return PASSES[what](trainer, rollout)


def loss_errors(found: tuple[float, Tensor], expected: tuple[float, Tensor], dtype: str) -> dict[str, Any]:
    loss = abs(found[0] - expected[0]) / abs(expected[0])
    gradient, bounds = relative(found[1], expected[1]), BOUNDS[dtype]
    return {"loss": (loss, bounds["loss"]), "gradient": (gradient, bounds["gradient"])}


def prepare(case: str, variant: str, options: Options) -> Call:
    shape, what = case.split(" ")
    side, settings = VARIANTS[variant]
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(side, make_policy(shape, options), options, Path(folder), **settings)
    rollout = make_rollout(options)
    return lambda: run_pass(variant, what, trainer, rollout)


def run(options: Options) -> list[Section]:
    rows: dict[str, list[Row]] = {what: [] for what in PASSES}
    rollout = make_rollout(options)
    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as folder:
            trainers = {
                name: make_trainer(side, make_policy(shape, options), options, Path(folder), **settings)
                for name in offered(VARIANTS, options)
                for side, settings in [VARIANTS[name]]
            }
        model = trainers["trl"].model
        with torch.autocast(options.device, options.torch_dtype, enabled=options.dtype != "float32"):
            expected = gradient_of(model, plain_loss(model, rollout, make_objective("ppo")))
            with torch.no_grad(), model.disable_adapter():
                log_probs = plain_log_probs(model, rollout)

        def check(name: str, found: Any, expected: Any = expected, log_probs: Tensor = log_probs) -> dict[str, Any]:
            if isinstance(found, tuple):
                return loss_errors(found, expected, options.dtype)
            return {"log p": (float((found.double() - log_probs).abs().max()), BOUNDS[options.dtype]["log p"])}

        for what in PASSES:
            calls = {
                name: (lambda name=name, what=what, trainer=trainer: run_pass(name, what, trainer, rollout))
                for name, trainer in trainers.items()
            }
            tokens = options.batch * (options.prompt + options.completion)
            rows[what] += compare("train", f"{shape} {what}", calls, check, options, tokens)
        del trainers, model
    size = f"{options.batch} x ({options.prompt} + {options.completion}), V {options.vocabulary}, {options.dtype}"
    titles = {"train": "forward and backward of a micro-batch", "reference": "pass for the reference's log-probs"}
    return [Section(f"{titles[what]}, {size}", rows[what]) for what in PASSES]
