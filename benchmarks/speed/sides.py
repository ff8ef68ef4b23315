"""What the suites of training share: a random GPT-2 under LoRA in TRL's GRPOTrainer and in ours, and a rollout.

Equal for all: weights (GPT-2 or GPT-J of --shape, LoRA r 8 whose B is not zero), rollout, AdamW at a constant rate, no
gradient clipping, no dropout, temperature 1, no checkpointing. Ending is impossible: end and padding are tokens that
the model has no logits of.
"""

import math
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    PreTrainedTokenizerFast,
    PrinterCallback,
)
from trl import GRPOConfig, GRPOTrainer

from benchmarks.speed.measure import Options
from scope_rlhf.losses import reduce_loss
from scope_rlhf.objectives import PolicyInputs
from scope_rlhf.trainers import ScopeGRPOConfig, ScopeGRPOTrainer


def make_policy(shape: str, options: Options, positions: int = 0) -> PeftModel:
    """A GPT-2 of `shape`, or a GPT-J where it begins with gptj, whose adapter is on q_proj and v_proj, in --dtype.

    On the CPU, a GPT-J on --device from the start; the trainer moves it. positions: more than prompt and completion
    need.
    """
    gptj = shape.startswith("gptj")
    layers, width = map(int, shape.removeprefix("gptj").split("x"))
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "vocab_size": options.vocabulary, "n_layer": layers, "n_embd": width, "bos_token_id": None,
        "n_positions": max(options.prompt + options.completion, positions), "eos_token_id": None, "pad_token_id": None,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    }  # fmt: skip
    targets = ["q_proj", "v_proj"] if gptj else ["c_attn"]
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=targets, fan_in_fan_out=not gptj, task_type=TaskType.CAUSAL_LM)
    if gptj:  # 6 billion parameters would take minutes and 24 GB on a CPU
        heads = max(width // 256, 1)
        config = GPTJConfig(n_head=heads, rotary_dim=min(64, width // heads), tie_word_embeddings=False, **common)
        with torch.device(options.device):
            model: Any = AutoModelForCausalLM.from_config(config, dtype=options.torch_dtype)
    else:
        model = GPT2LMHeadModel(GPT2Config(n_head=max(width // 64, 1), **common))
    policy: Any = get_peft_model(model, lora)
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    return policy


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One word for each of the model's tokens, and two more."""
    words = {f"w{i}": i for i in range(vocabulary)} | {"<pad>": vocabulary, "<eos>": vocabulary + 1}
    whole = Tokenizer(models.WordLevel(words, unk_token="w0"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="<eos>", pad_token="<pad>", padding_side="left")


def make_prompts(rows: int, options: Options) -> Dataset:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(options.vocabulary, (rows, options.prompt), generator=generator).tolist()
    return Dataset.from_dict({"prompt": [" ".join(f"w{i}" for i in row) for row in ids]})


def reward_length(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
    """Something that differs within a group and costs nothing."""
    return [float(sum(map(ord, str(text))) % 7) for text in completions]


def make_trainer(side: str, policy: Any, options: Options, folder: Path, callbacks: Any = None, **settings: Any) -> Any:
    """side: "trl" or "scope". settings: beside those that both share."""
    group = next((size for size in (4, 2, 3) if options.batch % size == 0), options.batch)
    common: dict[str, Any] = {
        "output_dir": str(folder / "out"), "per_device_train_batch_size": options.batch, "num_generations": group,
        "max_completion_length": options.completion, "learning_rate": 1e-5, "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0, "use_cpu": options.device == "cpu", "bf16": options.dtype == "bfloat16",
        "gradient_checkpointing": False, "report_to": "none", "save_strategy": "no", "seed": 1, "disable_tqdm": True,
        "disable_dropout": True, "temperature": 1.0, "logging_steps": 1, "max_steps": 1,
    }  # fmt: skip
    kind, config = (GRPOTrainer, GRPOConfig) if side == "trl" else (ScopeGRPOTrainer, ScopeGRPOConfig)
    trainer: Any = kind(
        policy, [reward_length], config(**common | settings), train_dataset=make_prompts(100 * options.batch, options),
        processing_class=make_tokenizer(options.vocabulary), callbacks=callbacks,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    trainer.model.train()
    return trainer


def make_rollout(options: Options) -> dict[str, Tensor]:
    """A micro-batch without padding. Old log-probs lie around those of a random policy, so that the clip binds here and
    there.
    """
    generator = torch.Generator().manual_seed(2)
    rows, prompt, completion = options.batch, options.prompt, options.completion
    ids = torch.randint(options.vocabulary, (rows, prompt + completion), generator=generator)
    noise = 0.2 * torch.randn(rows, completion, generator=generator)
    rollout = {
        "prompt_ids": ids[:, :prompt],
        "prompt_mask": torch.ones(rows, prompt, dtype=torch.long),
        "completion_ids": ids[:, prompt:],
        "completion_mask": torch.ones(rows, completion, dtype=torch.long),
        "advantages": torch.randn(rows, generator=generator) + 0.5,
        "old_per_token_logps": noise - math.log(options.vocabulary),
        "num_items_in_batch": torch.tensor(float(rows * completion)),
    }
    return {name: value.to(options.device) for name, value in rollout.items()}


def plain_log_softmax(model: Any, rollout: dict[str, Tensor]) -> Tensor:
    """[B, T, V] in float64 from all the logits of the model's own forward; of rollouts without padding."""
    ids = torch.cat([rollout["prompt_ids"], rollout["completion_ids"]], dim=1)
    width = rollout["completion_ids"].size(1)
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -width - 1 : -1].double().log_softmax(-1)


def plain_log_probs(model: Any, rollout: dict[str, Tensor]) -> Tensor:
    """[B, T] of the completions, from plain_log_softmax."""
    return plain_log_softmax(model, rollout).gather(-1, rollout["completion_ids"][..., None]).squeeze(-1)


def plain_loss(model: Any, rollout: dict[str, Tensor], objective: Any) -> Tensor:
    """The objective's loss over all tokens of the rollout, from plain_log_probs."""
    log_probs = plain_log_probs(model, rollout)
    advantages = rollout["advantages"].double()[:, None].expand_as(log_probs)
    loss = objective(PolicyInputs(log_probs, advantages, rollout["old_per_token_logps"].double()))
    return reduce_loss(loss.per_decision, None, "dapo", normalizer=rollout["num_items_in_batch"].double())


def gradient_of(model: Any, loss: Tensor) -> tuple[float, Tensor]:
    """(loss, gradient of all trained weights) of a loss that was made after zero_grad."""
    loss.backward()
    return float(loss.detach()), torch.cat([w.grad.flatten() for w in model.parameters() if w.requires_grad])
