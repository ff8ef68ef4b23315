"""What an objective costs: forward and backward of one micro-batch with each that needs no gradient of the entropy.

ScopeGRPOTrainer with a GPT-2 of the first --shape and the rollout of suite train; the same trainer and weights for all,
so that only the objective differs. A share of a hundredth is less than the noise of one repetition, so there are four
times as many as --repetitions says. The bound is 1.01 times ppo; the column says whether it holds, and nothing fails.
Loss and gradient are compared as in suite train.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.measure import Call, Options, Section, compare
from benchmarks.speed.sides import gradient_of, make_policy, make_rollout, make_trainer, plain_loss
from benchmarks.speed.train import loss_errors, train_step
from scope_rlhf.objectives import OBJECTIVES, make_objective

BOUND = 1.01


def catalogue() -> dict[str, Any]:
    """The objectives by name, ppo first, that need no gradient of the entropy."""
    made = {name: make_objective(name) for name in ("ppo", *OBJECTIVES)}
    return {name: each for name, each in made.items() if not getattr(each, "needs_entropy", False)}


def set_up(options: Options) -> tuple[Any, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        policy = make_policy(options.shapes[0], options)
        return make_trainer("scope", policy, options, Path(folder)), make_rollout(options)


def call_of(trainer: Any, rollout: dict[str, Any], objective: Any) -> Call:
    def call() -> Any:
        trainer.objective = objective
        return train_step(trainer, rollout)

    return call


def prepare(case: str, variant: str, options: Options) -> Call:
    trainer, rollout = set_up(options)
    return call_of(trainer, rollout, make_objective(variant))


def run(options: Options) -> list[Section]:
    trainer, rollout = set_up(options)
    objectives, expected = catalogue(), {}
    for name, objective in objectives.items():
        trainer.model.zero_grad()
        with torch.autocast(options.device, options.torch_dtype, enabled=options.dtype != "float32"):
            expected[name] = gradient_of(trainer.model, plain_loss(trainer.model, rollout, objective))
    many = Options(**{**vars(options), "repetitions": 4 * options.repetitions})
    rows = compare(
        "objectives",
        options.shapes[0],
        {name: call_of(trainer, rollout, objective) for name, objective in objectives.items()},
        lambda name, found: loss_errors(found, expected[name], options.dtype),
        many,
    )
    section = Section(f"forward and backward of a micro-batch by objective, {options.shapes[0]}", rows, baseline="ppo")
    for row in rows:
        if (ratio := section.ratio(row, "ppo")) is not None:
            row.more = {"exact x ppo": f"{ratio:.4f}", f"<= {BOUND}": "yes" if ratio <= BOUND else "no"}
    return [section]
