"""What goes silently wrong in RLHF code, each claim for PPO and, where test_grpo.py has it not, for GRPO."""

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import AutoModelForSequenceClassification

from tests.trainers.makers import (
    ALGORITHMS,
    disturb,
    make_trainer,
    save_reward_model,
)

END = 0  # of the tiny tokenizer: pad, bos and eos at once
both = pytest.mark.parametrize("algorithm", ALGORITHMS)
each_critic = pytest.mark.parametrize(
    ("algorithm", "backbone"), [("grpo", None), ("ppo", "shared"), ("ppo", "adapter"), ("ppo", "model")]
)
# Behind the end stands what a sampler may leave there; the last row is cut.
COMPLETIONS = [[5, 6, END, 9, 9, 9], [END, 7, END, 7, 8, 9], [5, 5, 5, 5, 5, END], [11, 12, 13, 14, 15, 16]]
LENGTHS = [3, 1, 6, 6]
ENDED = [True, True, True, False]


def critic_of(backbone, tmp_path):
    settings = {} if backbone is None else {"critic_backbone": backbone}
    if backbone == "model":
        settings["critic_model_name_or_path"] = str(save_reward_model(tmp_path / "rm"))
    return settings


@each_critic
def test_dropout_is_off_in_policy_lora_layers_critic_and_reference_while_they_train(tmp_path, algorithm, backbone):
    lora = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, r=4, lora_dropout=0.5)
    trainer = make_trainer(algorithm, tmp_path, lora=lora, **critic_of(backbone, tmp_path))
    disturb(trainer.model, "lora_B")
    if algorithm == "ppo":
        disturb(trainer.model, "value_head.weight", 1.0)
    trainer.model.train()
    ids = torch.tensor([[4, 5, 6, 7, 8, 9]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "fused_lm_head": True}
    first, second = trainer.model(**given), trainer.model(**given)
    assert torch.equal(first.log_probs, second.log_probs)
    if algorithm == "ppo":
        assert torch.equal(first.critic_outputs, second.critic_outputs)
    assert [n for n, m in trainer.model.named_modules() if isinstance(m, nn.Dropout) and m.p > 0] == []


@both
def test_dropout_is_off_in_a_reward_model_that_was_handed_over_in_training_mode(tmp_path, algorithm):
    folder = save_reward_model(tmp_path / "rm")
    model = AutoModelForSequenceClassification.from_pretrained(folder).train()
    trainer = make_trainer(algorithm, tmp_path, [model])
    trainer.model.train()
    scores = [trainer._calculate_rewards([{}], ["a bad film"], [" I liked it"], [[1]]) for _ in range(2)]
    assert torch.equal(*scores)
