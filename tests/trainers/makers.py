"""Every trainer from one call, rollouts of given completions, and the dense oracle of their log-probs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from scope_rlhf.models.positions import derive_positions
from scope_rlhf.trainers import (
    DualPathDistillationConfig,
    DualPathDistillationTrainer,
    ScopeGRPOConfig,
    ScopeGRPOTrainer,
    ScopePPOConfig,
    ScopePPOTrainer,
)
from tests.tiny import SENTENCES, length_reward, prompt_dataset, tiny_gpt2, tiny_tokenizer

ALGORITHMS = ("grpo", "ppo")
TRAINERS: dict[str, Any] = {
    "grpo": (ScopeGRPOTrainer, ScopeGRPOConfig),
    "ppo": (ScopePPOTrainer, ScopePPOConfig),
    "distillation": (DualPathDistillationTrainer, DualPathDistillationConfig),
}
# Arguments of a trainer, and no settings.
INSTANCES = ("ref_model", "teacher_model", "teacher_processing_class")
LORA = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, r=4)
LORA_GPTJ = LoraConfig(target_modules=["q_proj", "v_proj"], r=4)


def make_trainer(
    algorithm: str,
    folder: Path,
    rewards: Any = length_reward,
    *,
    model: Any = None,
    tokenizer: Any = None,
    lora: Any = LORA,
    kl: float = 0.05,
    passes: int = 2,
    minibatches: int = 2,
    **settings: Any,
) -> Any:
    """A trainer on the CPU, four completions on each micro-batch; `kl` is kl_coef of PPO and beta of the others.

    lora None trains all weights: the model is then loaded from a folder, where the trainer finds its reference too.
    """
    tokenizer = tokenizer or tiny_tokenizer()
    given = {name: settings.pop(name) for name in INSTANCES if name in settings}
    chosen = {
        "objective": "ppo", "per_device_train_batch_size": 4, "max_completion_length": 6, "max_steps": 4,
        "report_to": "none", "learning_rate": 1e-2, "gradient_checkpointing": False, "use_cpu": True,
        "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "seed": 7,
        "per_device_eval_batch_size": 2, **settings,
    }  # fmt: skip
    trainer, config = TRAINERS[algorithm]
    if algorithm == "ppo":
        args = config(str(folder), num_mini_batches=minibatches, num_ppo_epochs=passes, kl_coef=kl, **chosen)
    else:
        chosen = {"num_generations": 2, **chosen}
        steps = minibatches * chosen.get("gradient_accumulation_steps", 1)
        args = config(str(folder), steps_per_generation=steps, num_iterations=passes, beta=kl, **chosen)
    model = tiny_gpt2(tokenizer) if model is None else model
    if lora is None and not hasattr(model, "peft_config"):
        model.save_pretrained(folder / "start")
        model = type(model).from_pretrained(folder / "start")
    rewards = rewards if isinstance(rewards, list) or rewards is None else [rewards]
    return trainer(
        model, rewards, args, train_dataset=prompt_dataset(), eval_dataset=prompt_dataset(1),
        processing_class=tokenizer, peft_config=lora, **given,
    )  # fmt: skip


def make_distillation(folder: Path, verdicts: Any = None, **settings: Any) -> Any:
    """A dual-path trainer whose rollout is two prompts of unequal length with four completions each, one update long.

    verdicts: those of the completions in their order, or a verifier, or several; None gives none. The teacher is
    another tiny GPT-2 unless the settings name one.
    """
    numbers = isinstance(verdicts, list) and not any(map(callable, verdicts))
    verifier = given_verdicts(verdicts) if numbers else verdicts
    settings = {
        "num_generations": 4, "per_device_train_batch_size": 8, "kl": 0.0, "passes": 1, "minibatches": 1,
        "per_device_eval_batch_size": 8, **settings,
    }  # fmt: skip
    if not any(name.startswith("teacher_model") or name == "teacher_adapter_name" for name in settings):
        settings["teacher_model"] = tiny_gpt2(tiny_tokenizer(), seed=1)
    return make_trainer("distillation", folder, verifier, **settings)


def given_verdicts(verdicts: Sequence[float | None]) -> Any:
    """A verifier that gives these, whatever the completions are."""

    def verifier(prompts, completions, **kwargs):
        return list(verdicts[: len(prompts)])

    return verifier


def logged(trainer: Any, key: str) -> list[float]:
    return [row[key] for row in trainer.state.log_history if key in row]


def weights(trainer: Any) -> dict[str, Tensor]:
    """What is trained, the critic included."""
    return {n: w.detach().clone() for n, w in trainer.model.named_parameters() if w.requires_grad}


def disturb(model: Any, part: str, std: float = 0.1, seed: int = 3) -> None:
    """Normal noise in place of the weights whose name holds `part`, such as the zeros of a new adapter or head."""
    generator = torch.Generator().manual_seed(seed)
    found = [w for n, w in sorted(model.named_parameters()) if part in n]
    assert found, part
    for weight in found:
        weight.data.copy_(std * torch.randn(weight.shape, generator=generator))


def favour(trainer: Any, token: int, strength: float = 4.0) -> None:
    """Make the policy (and its reference, under LoRA) sample `token` often, through the bias before the tied head."""
    base = trainer.model.get_base_model()
    base.transformer.ln_f.bias.data += strength * base.get_output_embeddings().weight.data[token]


def sft_model(tokenizer: Any) -> Any:
    """A policy that comes with a trained adapter."""
    model = get_peft_model(tiny_gpt2(tokenizer), LORA)
    disturb(model, "lora_B", 0.2)
    return model


def script(trainer: Any, monkeypatch: Any, completions: Sequence[Sequence[int]]) -> None:
    """`generate` of the policy returns these completions, to the right of the prompts; all of one length, as sampled:
    with whatever stands behind the end.
    """

    def generate(self, input_ids, **kwargs):
        return torch.cat([input_ids, torch.tensor(completions)], dim=1)

    base = trainer.model.get_base_model() if hasattr(trainer.model, "peft_config") else trainer.model
    monkeypatch.setattr(type(base), "generate", generate)


def rollout(trainer: Any, rows: int | None = None) -> dict[str, Tensor]:
    """The first rollout, of prompts of unequal length; num_generations of each, adjacent."""
    args = trainer.args
    rows = rows or args.per_device_train_batch_size * args.steps_per_generation
    trainer.model.train()
    size = trainer.num_generations
    given = [{"prompt": SENTENCES[row // size % len(SENTENCES)]} for row in range(rows)]
    return trainer._generate_and_score_completions(given)


def loss_of(trainer: Any, inputs: dict[str, Tensor]) -> tuple[float, Tensor, dict[str, float]]:
    """Loss, gradient of all trained weights (zeros where none came) and the stats, of one micro-batch."""
    trainer.model.train()
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = 1
    trainer._sums["train"].clear()
    loss = trainer._compute_loss(trainer.model, dict(inputs))
    loss.backward()
    trained = [w for _, w in sorted(trainer.model.named_parameters()) if w.requires_grad]
    gradient = torch.cat([(torch.zeros_like(w) if w.grad is None else w.grad).flatten() for w in trained])
    sums = {name: float(x) for name, x in trainer._sums["train"].items()}
    return loss.item(), gradient, {name: sums[name] / sums[count] for name, count in trainer._counts.items()}


def spy_ratios(trainer: Any) -> list[Tensor]:
    """Fills with the ratio of every counted token of every micro-batch; a mean alone would hide +x and -x."""
    ratios: list[Tensor] = []
    accumulate = trainer._accumulate

    def spy(stats, mask, count="count"):
        if "objective/ratio" in stats:
            ratios.append(stats["objective/ratio"][mask].detach().clone())
        accumulate(stats, mask, count)

    trainer._accumulate = spy
    return ratios


def dense_log_probs(model: Any, inputs: dict[str, Tensor], temperature: float = 1.0) -> Tensor:
    """The oracle: each row alone and without padding, log softmax(logits / temperature) in float64; 0 where masked."""
    model = model.eval()
    result = torch.zeros(inputs["completion_ids"].shape, dtype=torch.float64)
    for row in range(len(result)):
        prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
        completion = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()]
        ids = torch.cat([prompt, completion])
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0, len(prompt) - 1 : -1].double() / temperature
        found = logits.log_softmax(-1).gather(-1, completion[:, None]).squeeze(-1)
        result[row, : len(completion)] = found
    return result


def plain_gpt2(seed: int = 0) -> Any:
    """The base model of a trainer, as it comes."""
    model = tiny_gpt2(tiny_tokenizer(), seed=seed).eval()
    derive_positions(model)
    return model


def save_reward_model(folder: Path, seed: int = 5) -> Path:
    """A GPT-2 classifier with one logit and dropout .1, in a folder: what a critic starts from."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2, num_labels=1, initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
