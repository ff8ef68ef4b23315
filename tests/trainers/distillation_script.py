"""Run under torchrun by test_distillation_two_processes.py, or alone: rollouts of given completions whose groups lie on
both of two processes, their loss and gradient; then a short training.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from scope_rlhf.runtime import leave_process_group
from tests.processes import gloo_threads
from tests.tiny import SENTENCES
from tests.trainers.makers import disturb, loss_of, make_distillation, script
from tests.trainers.resume_script import is_long
from tests.trainers.test_distillation_teachers import loaded_beside
from tests.trainers.two_process_script import COMPLETIONS

# Of the first process one of two is right and of the second both; lengths 6 and 1 against 2 and 6.
FOUR = {"completions": [COMPLETIONS[i] for i in (0, 5, 4, 2)], "verdicts": [0.0, 1.0, 1.0, 1.0]}
# Groups of 4, of which the second lies on both; one completion has no verdict, one group is all wrong.
TWELVE = {
    "completions": COMPLETIONS + COMPLETIONS[:4],
    "verdicts": [0.0, 1.0, None, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0],
}
CASES: dict[str, dict[str, Any]] = {
    "token_mean": FOUR, "sequence_mean": {**FOUR, "reduction": "sequence_mean"}, "eq6": {**TWELVE, "reduction": "eq6"},
    "opd": {**TWELVE, "mode": "opd"}, "wide": {**TWELVE, "num_generations": 12, "tau": 0.5},
}  # fmt: skip


def given(folder: Path, completions: list, verdicts: list, **settings: Any) -> dict:
    """Advantages, metrics, loss and gradient of one rollout, an update later than it was sampled."""
    world, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", 1), ("RANK", 0)))
    rows = len(completions)
    share = slice(rank * rows // world, (rank + 1) * rows // world)
    trainer = make_distillation(
        folder, verdicts[share], per_device_train_batch_size=rows // world, probe_rewards=False, passes=2, **settings
    )
    disturb(trainer.model, "lora_B")
    trainer.model.train()
    with pytest.MonkeyPatch.context() as patch:
        script(trainer, patch, completions[share])
        size = trainer.num_generations
        prompts = [{"prompt": SENTENCES[row // size]} for row in range(rows)]
        inputs = trainer._generate_and_score_completions(prompts[share])
    mask = inputs["completion_mask"].bool()
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    disturb(trainer.model, "lora_B", 0.15, seed=4)
    loss, gradient, _ = loss_of(trainer, inputs)
    return {
        "advantages": [row[m].tolist() for row, m in zip(inputs["advantages"], mask, strict=True)],
        "metrics": {k: v for k, v in metrics.items() if k.startswith("distillation/") and "seconds" not in k},
        # What DDP does with losses and gradients: the mean over ranks.
        "loss": trainer.accelerator.reduce(torch.tensor(loss), "mean").item(),
        "gradient": trainer.accelerator.reduce(gradient, "mean").tolist(),
    }


def trained(folder: Path, **settings: Any) -> dict:
    world = int(os.environ.get("WORLD_SIZE", 1))
    trainer = make_distillation(
        folder, is_long, per_device_train_batch_size=4 // world, max_steps=3, eval_strategy="steps", eval_steps=3,
        per_device_eval_batch_size=4, **settings,
    )  # fmt: skip
    trainer.train()
    names = ("distillation/correct", "distillation/log_ratio", "eval_distillation/correct", "eval_loss")
    return {
        "weights": [w.double().abs().sum().item() for w in trainer.model.parameters() if w.requires_grad],
        "log": [{k: v for k, v in row.items() if k in names} for row in trainer.state.log_history],
        "completions": list(trainer._logs["completion"]),
    }


def main(folder: Path) -> None:
    results = {name: given(folder / name, **case) for name, case in CASES.items()}
    results["trained"] = trained(folder / "trained")
    results["adapter"] = trained(folder / "adapter", **loaded_beside())
    (folder / f"rank{os.environ.get('RANK', 0)}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave_process_group()
    assert not gloo_threads(), "a living gloo group may abort the process at its end"
