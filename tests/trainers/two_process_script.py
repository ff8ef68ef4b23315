"""Run under torchrun by test_two_processes.py, or alone: the loss of a fixed batch, then a short training."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from tests.tiny import length_reward, prompt_dataset, tiny_gpt2, tiny_tokenizer


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
    (folder / f"rank{rank}.json").write_text(json.dumps(results))
    if dist.is_initialized():
        dist.destroy_process_group()


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
