"""Padding: one optimizer step over rollouts of skewed lengths, 8 micro-batches of --batch rows.

A completion has round(lognormal(mean 4.0, sigma 0.8)) tokens, at least 1 and at most 512, a prompt 8 to 64, uniformly;
the seed is fixed. `--completion` below 64 makes lengths smaller in proportion, for a quick look. Only the first --shape
is run.

- trl: GRPOTrainer pads the rollout to its longest prompt and completion. Its model gets positions from the mask, which
  TRL leaves out, so that all compute the same.
- scope, unsorted: ScopeGRPOTrainer with --sort_by_length False. scope: as it comes.

The lengths go in as a finished rollout in place of `_generate_and_score_completions`; shuffling, splitting, sorting and
trimming are the trainers' own. Processed tokens: rows x columns that reach the model's embedding. The gradient of the
step is compared with that of plain logits row by row without any padding, in float32 with log-softmax in float64, to
1e-4 of its norm, and sorted with unsorted, to 1e-5.
"""

import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from benchmarks.speed.measure import Call, Options, Section, compare, relative
from benchmarks.speed.sides import make_policy, make_trainer, plain_log_probs
from scope_rlhf.losses import reduce_loss
from scope_rlhf.models.positions import derive_positions
from scope_rlhf.objectives import PolicyInputs, make_objective

MICRO_BATCHES, LONGEST, PROMPTS = 8, 512, (8, 64)
UNSORTED = "scope, unsorted"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "trl": ("trl", {}),
    UNSORTED: ("scope", {"sort_by_length": False}),
    "scope": ("scope", {}),
}


def draw_lengths(options: Options) -> tuple[Tensor, Tensor]:
    """(tokens of the prompts, of the completions) of a rollout, [rows]."""
    generator = torch.Generator().manual_seed(0)
    rows = MICRO_BATCHES * options.batch
    drawn = torch.exp(4.0 + 0.8 * torch.randn(rows, generator=generator)).round().clamp(1, LONGEST)
    prompts = torch.randint(PROMPTS[0], PROMPTS[1] + 1, (rows,), generator=generator)
    scale = min(options.completion / 64, 1.0)
    return (prompts * scale).long().clamp(min=1), (drawn * scale).long().clamp(min=1)


def make_rollout(options: Options) -> dict[str, Tensor]:
    """Prompts padded on the left and completions on the right to the longest of the rollout, as TRL makes it."""
    prompts, completions = draw_lengths(options)
    generator = torch.Generator().manual_seed(2)
    rows, left, right = len(prompts), int(prompts.max()), int(completions.max())
    ids = torch.randint(options.vocabulary, (rows, left + right), generator=generator)
    noise = 0.2 * torch.randn(rows, right, generator=generator)
    rollout = {
        "prompt_ids": ids[:, :left],
        "prompt_mask": (torch.arange(left) >= left - prompts[:, None]).long(),
        "completion_ids": ids[:, left:],
        "completion_mask": (torch.arange(right) < completions[:, None]).long(),
        "advantages": torch.randn(rows, generator=generator) + 0.5,
        "old_per_token_logps": noise - math.log(options.vocabulary),
        "num_items_in_batch": completions.sum().float(),
    }
    return {name: value.to(options.device) for name, value in rollout.items()}


def set_up(variant: str, options: Options) -> Any:
    side, settings = VARIANTS[variant]
    policy = make_policy(options.shapes[0], options, positions=LONGEST + PROMPTS[1])
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            side, policy, options, Path(folder), gradient_accumulation_steps=MICRO_BATCHES, **settings
        )
    if side == "trl":
        derive_positions(trainer.model)
    trainer.processed = 0
    embedding = trainer.model.get_base_model().transformer.wte

    def count(module: Any, given: tuple[Tensor, ...]) -> None:
        trainer.processed += given[0].numel()

    embedding.register_forward_pre_hook(count)
    return trainer


def call_of(trainer: Any, rollout: dict[str, Tensor]) -> Call:
    """(processed tokens, gradient) of the step."""

    def call() -> tuple[int, Tensor]:
        generate = GRPOTrainer._generate_and_score_completions
        trainer.processed, trainer._step, trainer._buffered_inputs = 0, 0, None
        trainer.model.zero_grad()
        torch.manual_seed(0)  # of the shuffling
        GRPOTrainer._generate_and_score_completions = lambda self, inputs: dict(rollout)  # type: ignore[method-assign]
        try:
            for _ in range(MICRO_BATCHES):
                trainer.training_step(trainer.model, [], None)
        finally:
            GRPOTrainer._generate_and_score_completions = generate  # type: ignore[method-assign]
        weights = trainer.model.parameters()
        return trainer.processed, torch.cat([w.grad.flatten() for w in weights if w.requires_grad])

    return call


def prepare(case: str, variant: str, options: Options) -> Call:
    return call_of(set_up(variant, options), make_rollout(options))


def gradient_without_padding(model: Any, rollout: dict[str, Tensor]) -> Tensor:
    """Of the step's loss, a row at a time, from plain logits."""
    model.zero_grad()
    objective = make_objective("ppo")
    for row in range(len(rollout["advantages"])):
        tokens = int(rollout["completion_mask"][row].sum())
        prompt = rollout["prompt_ids"][row][rollout["prompt_mask"][row].bool()]
        part = {"prompt_ids": prompt[None], "completion_ids": rollout["completion_ids"][row : row + 1, :tokens]}
        log_probs = plain_log_probs(model, part)
        old = rollout["old_per_token_logps"][row : row + 1, :tokens].double()
        advantages = rollout["advantages"][row].double().expand_as(log_probs)
        loss = objective(PolicyInputs(log_probs, advantages, old)).per_decision
        reduce_loss(loss, None, "dapo", normalizer=rollout["num_items_in_batch"].double()).backward()
    return torch.cat([w.grad.flatten() for w in model.parameters() if w.requires_grad])


def run(options: Options) -> list[Section]:
    rollout = make_rollout(options)
    trainers = {variant: set_up(variant, options) for variant in VARIANTS}
    bound = {"float32": 1e-4, "bfloat16": 0.05}[options.dtype]
    with torch.autocast(options.device, options.torch_dtype, enabled=options.dtype != "float32"):
        expected = gradient_without_padding(trainers["trl"].model, rollout)
    found: dict[str, tuple[int, Tensor]] = {}

    def check(variant: str, result: tuple[int, Tensor]) -> dict[str, tuple[float, float]]:
        found[variant] = result
        errors = {"gradient": (relative(result[1], expected), bound)}
        if variant == "scope":
            errors["sorted or not"] = (relative(result[1], found[UNSORTED][1]), bound / 10)
        return errors

    calls = {variant: call_of(trainer, rollout) for variant, trainer in trainers.items()}
    rows = compare("padding", options.shapes[0], calls, check, options)
    real = int(rollout["prompt_mask"].sum() + rollout["completion_mask"].sum())
    for row in rows:
        tokens = found[row.variant][0]
        row.more = {"processed tokens": f"{tokens:,}", "tokens x trl": f"{tokens / found['trl'][0]:.3f}"}
        row.more["of them real"] = f"{real / tokens:.2f}"
    title = f"one step of {MICRO_BATCHES} x {options.batch} rows of lognormal lengths, {options.shapes[0]}"
    return [Section(f"{title}, V {options.vocabulary}, {options.dtype}", rows)]
