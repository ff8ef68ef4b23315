"""Run under torchrun by test_two_processes.py, or alone: the loss of a fixed batch, then a short training.

For GRPO, and then for PPO with a critic and with leave-one-out baselines.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from scope_rlhf.runtime import leave_process_group
from tests.processes import gloo_threads
from tests.tiny import SENTENCES, length_reward, prompt_dataset, tiny_gpt2, tiny_tokenizer
from tests.trainers.makers import disturb, favour, loss_of, make_trainer, script

END = 0
# The second half ends early, so that two processes have rows of another number of tokens and of another width.
COMPLETIONS = [
    [5, 6, 7, 8, 9, 10], [11, 12, 13, END, 9, 9], [7, 7, 7, 7, 7, END], [20, 21, 22, 23, 24, 25],
    [5, END, 9, 9, 9, 9], [END, 7, 7, 7, 7, 7], [30, 31, END, 3, 3, 3], [40, END, 8, 8, 8, 8],
]  # fmt: skip


def main(folder: Path) -> None:
    from peft import LoraConfig

    from scope_rlhf.trainers import ScopeGRPOConfig, ScopeGRPOTrainer

    results = {}
    for loss_type in ("dapo", "grpo", "dr_grpo"):
        tokenizer = tiny_tokenizer()
        args = ScopeGRPOConfig(
            str(folder / loss_type), objective="scope", objective_kwargs={"alpha": 0.5}, loss_type=loss_type,
            per_device_train_batch_size=4, num_generations=2, max_completion_length=6, max_steps=2, beta=0.1,
            gradient_checkpointing=False, use_cpu=True, save_strategy="no", report_to="none", logging_steps=1,
            disable_tqdm=True, num_iterations=2,
        )  # fmt: skip
        trainer = ScopeGRPOTrainer(
            tiny_gpt2(tokenizer), [length_reward], args, train_dataset=prompt_dataset(), processing_class=tokenizer,
            peft_config=LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, r=4),
        )  # fmt: skip
        generator = torch.Generator().manual_seed(3)
        for name, weight in sorted(trainer.model.named_parameters()):
            if "lora_" in name:
                weight.data.copy_(0.05 * torch.randn(weight.shape, generator=generator))
        inputs = fixed_batch(generator)
        world, rank = trainer.accelerator.num_processes, trainer.accelerator.process_index
        share = slice(rank * 4 // world, (rank + 1) * 4 // world)
        local = {k: v if k == "num_items_in_batch" else v[share] for k, v in inputs.items()}
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        loss = trainer._compute_loss(trainer.model, local)
        loss.backward()
        gradient = torch.cat([w.grad.flatten() for _, w in sorted(trainer.model.named_parameters()) if w.requires_grad])
        trainer.model.zero_grad()
        # What DDP does with losses and gradients: the mean over ranks.
        results[loss_type] = {
            "loss": trainer.accelerator.reduce(loss.detach(), "mean").item(),
            "gradient": trainer.accelerator.reduce(gradient, "mean").tolist(),
        }
        logs: dict[str, float] = {}
        trainer.log(logs)
        results[loss_type]["stats"] = {k: v for k, v in logs.items() if k.startswith("objective/") or k == "kl"}
        trainer.state.log_history.clear()
    trainer.train()
    results["trained"] = [row for row in trainer.state.log_history if "loss" in row]
    results["completions"] = list(trainer._logs["completion"])
    results["weights"] = sum(w.double().abs().sum().item() for w in trainer.model.parameters() if w.requires_grad)
    results["ppo"] = ppo(folder)
    for name, group in (("spanning", 4), ("wide", 12)):
        results[name] = leave_one_out(folder / name, group)
    (folder / f"rank{rank}.json").write_text(json.dumps(results))


def ppo(folder: Path) -> dict:
    """One rollout of eight given completions, its loss and gradient, the critic's included; then a training."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    trainer = make_trainer(
        "ppo", folder / "ppo", per_device_train_batch_size=8 // world, minibatches=1, max_steps=4, lam=0.9,
        use_score_scaling=True, kl_target=1.0, kl_horizon=40, logging_steps=4,
    )  # fmt: skip
    disturb(trainer.model, "lora_B")
    disturb(trainer.model, "value_head.weight", 0.5)
    rank = trainer.accelerator.process_index
    share = slice(rank * 8 // world, (rank + 1) * 8 // world)
    trainer.model.train()
    with pytest.MonkeyPatch.context() as patch:
        script(trainer, patch, COMPLETIONS[share])
        prompts = [{"prompt": SENTENCES[row % len(SENTENCES)]} for row in range(8)]
        inputs = trainer._generate_and_score_completions(prompts[share])
    mask = inputs["completion_mask"].bool()
    rows = {
        name: [row[m].tolist() for row, m in zip(inputs[name], mask, strict=True)]
        for name in ("advantages", "returns", "old_values", "kl")
    }
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    disturb(trainer.model, "lora_B", seed=4)  # an update later: a ratio other than 1
    loss, gradient, _ = loss_of(trainer, inputs)
    logs: dict[str, float] = {}
    trainer.log(logs)
    trainer.model.zero_grad()
    trainer.state.log_history.clear()
    result = {
        "rows": rows,
        "metrics": {k: v for k, v in metrics.items() if k.startswith(("rollout/", "value/", "policy/"))},
        "loss": trainer.accelerator.reduce(torch.tensor(loss), "mean").item(),
        "gradient": trainer.accelerator.reduce(gradient, "mean").tolist(),
        "stats": {k: v for k, v in logs.items() if k.startswith(("objective/", "value/", "policy/")) or k == "kl"},
        "state": [trainer.kl_controller.kl_coef, *trainer.moments.state_dict().values()],
    }
    favour(trainer, END)
    trainer.train()
    logged = trainer.state.log_history[0]
    result["trained"] = {k: v for k, v in logged.items() if "time" not in k and "per_second" not in k}
    result["weights"] = [w.double().abs().sum().item() for w in trainer.model.parameters() if w.requires_grad]
    return result


def leave_one_out(folder: Path, group: int) -> dict:
    """Twelve completions over all processes, by TRL's sampler; groups of 4 or 12 lie on both of two processes."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    trainer = make_trainer(
        "ppo", folder, per_device_train_batch_size=12 // world, num_generations=group, advantage_estimator="rloo",
        minibatches=1, passes=1, max_steps=2, kl=0.0, whiten_advantages=False,
    )  # fmt: skip
    found = []
    score = trainer._generate_and_score_completions

    def spy(inputs):
        rollout = score(inputs)
        found.append(
            {
                "prompts": [row["prompt"] for row in inputs],
                "completions": [x[m.bool()].tolist() for x, m in zip(rollout["completion_ids"],
                                                                      rollout["completion_mask"], strict=True)],
                "scores": trainer._raw_rewards.sum(1).tolist(),
                "advantages": rollout["advantages"][:, 0].tolist(),
            }
        )  # fmt: skip
        return rollout

    trainer._generate_and_score_completions = spy
    trainer.train()
    return {"rollouts": found}


def fixed_batch(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Rows of unequal length, so that the two halves hold different numbers of tokens."""
    rows, width, length = 4, 5, 6
    mask = (torch.arange(length) < torch.tensor([6, 5, 1, 2])[:, None]).long()
    prompt_mask = (torch.arange(width) >= torch.tensor([0, 2, 4, 1])[:, None]).long()
    ids = torch.randint(1, 280, (rows, width + length), generator=generator)
    log_probs = -5.5 + torch.randn(rows, length, generator=generator)
    return {
        "prompt_ids": ids[:, :width],
        "prompt_mask": prompt_mask,
        "completion_ids": ids[:, width:] * mask,
        "completion_mask": mask,
        "advantages": torch.tensor([1.2, -0.7, 0.4, -0.9]),
        "old_per_token_logps": log_probs,
        "ref_per_token_logps": log_probs + 0.2,
        "num_items_in_batch": mask.sum().float(),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave_process_group()
    assert not gloo_threads(), "a living gloo group may abort the process at its end"
