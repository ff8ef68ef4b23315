"""The TRL seam: with the objective `ppo`, our loss and gradient are the parent's on the same forward pass."""

import inspect

import pytest
import torch
from peft import LoraConfig
from trl import GRPOTrainer

from scope_rlhf.trainers import ScopeGRPOConfig, ScopeGRPOTrainer
from scope_rlhf.trainers.grpo_config import LOSS_TYPES
from tests.tiny import length_reward, prompt_dataset, tiny_gpt2, tiny_tokenizer


def make_trainer(tmp_path, objective="ppo", **settings):
    tokenizer = tiny_tokenizer()
    args = ScopeGRPOConfig(
        str(tmp_path / "out"), objective=objective, per_device_train_batch_size=4, num_generations=2,
        max_completion_length=6, steps_per_generation=2, gradient_accumulation_steps=2, max_steps=1, report_to="none",
        gradient_checkpointing=False, use_cpu=True, save_strategy="no", **settings,
    )  # fmt: skip
    return ScopeGRPOTrainer(
        tiny_gpt2(tokenizer), [length_reward], args, train_dataset=prompt_dataset(), processing_class=tokenizer,
        peft_config=LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, r=4),
    )  # fmt: skip


def batch(trainer, vllm_ratio=False, tool_mask=False):
    """Unequal prompts and completions, old log-probs far enough away that the clip binds, advantages of both signs."""
    generator = torch.Generator().manual_seed(1)
    rows, width, length = 4, 5, 6
    lengths = torch.tensor([6, 3, 1, 5])
    completion_mask = (torch.arange(length) < lengths[:, None]).long()
    prompt_mask = (torch.arange(width) >= torch.tensor([0, 2, 4, 1])[:, None]).long()
    ids = torch.randint(1, 280, (rows, width + length), generator=generator)
    inputs = {
        "prompt_ids": ids[:, :width],
        "prompt_mask": prompt_mask,
        "completion_ids": ids[:, width:] * completion_mask,
        "completion_mask": completion_mask,
        "advantages": torch.tensor([1.2, -0.7, 0.4, -0.9]),
        "num_items_in_batch": torch.tensor(28.0),
    }
    with torch.no_grad():
        mask = torch.cat([prompt_mask, completion_mask], dim=1)
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        now, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, length)
    inputs["old_per_token_logps"] = now + 0.4 * torch.randn(now.shape, generator=generator) * completion_mask
    inputs["ref_per_token_logps"] = now + 0.3 * torch.randn(now.shape, generator=generator) * completion_mask
    if tool_mask:
        inputs["tool_mask"] = torch.ones_like(completion_mask)
        inputs["tool_mask"][0, 2:4] = 0
    if vllm_ratio:
        inputs["importance_sampling_ratio"] = 0.5 + torch.rand(now.shape, generator=generator)
    return inputs


def loss_and_gradient(trainer, function, inputs):
    trainer.model.zero_grad()
    loss = function(trainer, trainer.model, dict(inputs))
    loss.backward()
    gradient = torch.cat([w.grad.flatten() for w in trainer.model.parameters() if w.requires_grad])
    return loss.detach(), gradient


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_ppo_objective_equals_the_parent_on_the_same_forward(tmp_path, loss_type, level, beta):
    trainer = make_trainer(
        tmp_path, loss_type=loss_type, importance_sampling_level=level, beta=beta, epsilon=0.1, epsilon_high=0.3
    )
    trainer.current_gradient_accumulation_steps = 2
    # A fresh LoRA has B = 0 and half its gradient with it.
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    trainer.model.train()
    for extra in ({}, {"tool_mask": True}):
        inputs = batch(trainer, **extra)
        ours, our_gradient = loss_and_gradient(trainer, ScopeGRPOTrainer._compute_loss, inputs)
        theirs, their_gradient = loss_and_gradient(trainer, GRPOTrainer._compute_loss, inputs)
        assert abs(ours - theirs) < 1e-7
        assert their_gradient.norm() > 1e-3
        assert (our_gradient - their_gradient).norm() < 1e-6 * their_gradient.norm()


def test_without_old_log_probs_and_with_the_vllm_ratio_it_equals_the_parent(tmp_path):
    trainer = make_trainer(tmp_path, beta=0.1)
    trainer.current_gradient_accumulation_steps = 1
    trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
    inputs = batch(trainer, vllm_ratio=True)
    del inputs["old_per_token_logps"]
    trainer.model.train()
    ours, our_gradient = loss_and_gradient(trainer, ScopeGRPOTrainer._compute_loss, inputs)
    theirs, their_gradient = loss_and_gradient(trainer, GRPOTrainer._compute_loss, inputs)
    assert abs(ours - theirs) < 1e-7
    assert (our_gradient - their_gradient).norm() < 1e-6 * their_gradient.norm()


@pytest.mark.parametrize("objective", ["scope", "focal", "symmetric", "policy_entropy"])
def test_every_objective_gives_a_loss_of_its_own(tmp_path, objective):
    kwargs = {"scope": {"alpha": 0.5}, "focal": {}, "symmetric": {"alpha": 1.0}, "policy_entropy": {"alpha": 0.5}}
    trainer = make_trainer(tmp_path, objective, objective_kwargs=kwargs[objective])
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    inputs = batch(trainer)
    ours, our_gradient = loss_and_gradient(trainer, ScopeGRPOTrainer._compute_loss, inputs)
    _, their_gradient = loss_and_gradient(trainer, GRPOTrainer._compute_loss, inputs)
    assert torch.isfinite(ours)
    assert (our_gradient - their_gradient).norm() > 1e-3 * their_gradient.norm()


def test_the_private_names_we_touch_are_still_there():
    signature = inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies)
    assert list(signature.parameters)[1:5] == ["model", "input_ids", "attention_mask", "logits_to_keep"]
    assert "compute_entropy" in signature.parameters
    for name in ("_compute_loss", "_calculate_rewards", "_save_checkpoint", "log"):
        assert callable(getattr(GRPOTrainer, name))
    source = inspect.getsource(GRPOTrainer)
    for text in (
        "self._step ",
        "self._metrics",
        "self.loss_type",
        "self.use_vllm",
        "current_gradient_accumulation_steps",
    ):
        assert text in source


def test_the_overridden_loss_is_under_forty_lines():
    assert len(inspect.getsource(ScopeGRPOTrainer._compute_loss).splitlines()) < 40
