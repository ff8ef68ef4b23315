"""Critics on an adapter or a model of their own: same forward, the policy untouched, their own file."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)
from trl.trainer.utils import add_fused_lm_head

from scope_rlhf.models.critic_backbones import make_value_head
from scope_rlhf.models.positions import derive_positions
from scope_rlhf.models.value_head import leave_critic_out, load_critic, save_critic, split_critic
from scope_rlhf.objectives import make_critic_loss
from tests.models.test_value_head import TOKENIZER, batch
from tests.tiny import tiny_gpt2

MSE = make_critic_loss("mse")
HL = make_critic_loss("hl_gauss", v_min=0.0, v_max=1.0, bins=7)


def reward_model(folder, seed=5, vocabulary=None, encoder=False):
    torch.manual_seed(seed)
    size = vocabulary or len(TOKENIZER)
    if encoder:
        config = DistilBertConfig(vocab_size=size, dim=16, n_layers=1, n_heads=2, hidden_dim=16, num_labels=1)
        model = DistilBertForSequenceClassification(config)
    else:
        config = GPT2Config(vocab_size=size, n_positions=64, n_embd=16, n_layer=1, n_head=2, num_labels=1)
        config.pad_token_id = TOKENIZER.pad_token_id
        model = GPT2ForSequenceClassification(config)
    model.save_pretrained(folder)
    return model.eval()


def policy(backbone, critic=MSE, name=None):
    model = tiny_gpt2(TOKENIZER).eval()
    derive_positions(model)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    model = get_peft_model(model, LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, r=4)).eval()
    head = make_value_head(model, critic, backbone, name)
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name or name.endswith("value_head.weight"):
            torch.nn.init.normal_(weight, std=0.2)
    return model, head


def trainable(model):
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("backbone", ["shared", "adapter", "model"])
def test_values_and_log_probs_train_their_own_weights_only(tmp_path, backbone):
    """With a shared backbone the critic's gradient reaches the policy's adapter; otherwise nothing crosses over."""
    reward_model(tmp_path)
    model, _ = policy(backbone, name=tmp_path)
    before = trainable(model)
    output = model(**batch(), fused_lm_head=True)
    MSE.decode(output.critic_outputs).square().sum().backward(retain_graph=True)
    names = {n for n, w in model.named_parameters() if w.grad is not None and w.grad.abs().sum() > 0}
    own, others = split_critic(dict.fromkeys(names))[1], split_critic(dict.fromkeys(names))[0]
    assert own and bool(others) == (backbone == "shared")
    model.zero_grad()
    output.log_probs.sum().backward()
    names = {n for n, w in model.named_parameters() if w.grad is not None and w.grad.abs().sum() > 0}
    assert names and not split_critic(dict.fromkeys(names))[1]
    assert trainable(model) == before


def test_a_critic_adapter_leaves_the_policy_as_it_is_and_is_another_function(tmp_path):
    model, _head = policy("adapter")
    plain, _ = policy("shared")
    inputs = batch()
    output, expected = (m(**inputs, fused_lm_head=True) for m in (model, plain))
    shared = dict(plain.named_parameters())
    for name, weight in model.named_parameters():
        if name in shared:
            weight.data.copy_(shared[name])
    output = model(**inputs, fused_lm_head=True)
    assert torch.equal(output.log_probs, expected.log_probs)
    assert (output.critic_outputs - expected.critic_outputs).abs().max() > 1e-3
    assert model.active_adapter == "default"


def test_a_critic_adapter_still_learns_after_the_reference_pass_has_switched_adapters_off():
    model, _ = policy("adapter")
    with torch.no_grad(), model.disable_adapter():
        model(**batch(), fused_lm_head=True)
    MSE.decode(model(**batch(), fused_lm_head=True).critic_outputs).sum().backward()
    grads = [w.grad for n, w in model.named_parameters() if ".critic." in n]
    assert len(grads) == 4 and all(g is not None for g in grads)
    assert all(w.requires_grad for n, w in model.named_parameters() if "lora_" in n)


def test_the_adapter_is_restored_after_an_exception_in_the_critics_pass():
    _model, head = policy("adapter")
    with pytest.raises(RuntimeError), head._switched():
        raise RuntimeError
    layers: Any = head._layers
    assert {str(layer._active_adapter) for layer in layers} <= {"default", "['default']"}


def test_a_critic_from_a_reward_model_begins_with_its_scores(tmp_path):
    scorer = reward_model(tmp_path)
    model, head = policy("model", name=tmp_path)
    with torch.no_grad():
        head.weight.copy_(scorer.score.weight)  # policy() fills it with noise
    inputs = batch()
    values = MSE.decode(model(**inputs, fused_lm_head=True).critic_outputs)
    for row in range(len(values)):
        ids = inputs["input_ids"][row][inputs["attention_mask"][row].bool()][None, :-1]
        expected = scorer(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0]
        torch.testing.assert_close(values[row, -1], expected, rtol=1e-4, atol=1e-5)


def test_a_fresh_model_critic_takes_over_the_score_layer_and_a_categorical_one_does_not(tmp_path):
    scorer = reward_model(tmp_path)
    model = tiny_gpt2(TOKENIZER)
    add_fused_lm_head(model)
    assert torch.equal(make_value_head(model, MSE, "model", str(tmp_path)).weight, scorer.score.weight)
    other = tiny_gpt2(TOKENIZER)
    add_fused_lm_head(other)
    assert make_value_head(other, HL, "model", str(tmp_path)).weight.abs().sum() == 0


@pytest.mark.parametrize("backbone", ["adapter", "model"])
def test_the_critics_file_holds_its_backbone_and_comes_back_the_same(tmp_path, backbone):
    reward_model(tmp_path / "rm")
    model, _ = policy(backbone, HL, tmp_path / "rm")
    kept, critic = split_critic(model.state_dict())
    assert not any("critic" in name or "value_head" in name for name in kept)
    save_critic(tmp_path, critic, HL)
    again, _ = policy(backbone, HL, tmp_path / "rm")
    with torch.no_grad():
        for weight in split_critic(dict(again.named_parameters()))[1].values():
            weight.add_(1.0)
    load_critic(tmp_path, again, HL)
    first, second = (m(**batch(), fused_lm_head=True).critic_outputs for m in (model, again))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"vocabulary": 17}, "17 token embeddings and the policy"), ({"encoder": True}, "looks ahead")],
)
def test_a_critic_model_of_another_vocabulary_or_an_encoder_is_refused(tmp_path, settings, words):
    reward_model(tmp_path, **settings)
    with pytest.raises(ValueError, match=words):
        policy("model", name=tmp_path)


def test_a_critic_adapter_without_lora_is_refused():
    model = tiny_gpt2(TOKENIZER)
    add_fused_lm_head(model)
    with pytest.raises(ValueError, match="needs a LoRA policy"):
        make_value_head(model, MSE, "adapter")


def test_the_critic_is_not_sent_to_vllm():
    """TRL's own iteration over the parameters, which sync_weights sends; vLLM itself is not needed for it."""
    from contextlib import nullcontext
    from types import SimpleNamespace

    from trl.generation.vllm_generation import VLLMGeneration

    model = tiny_gpt2(TOKENIZER)
    expected = {name for name, _ in model.named_parameters()}
    add_fused_lm_head(model)
    make_value_head(model, MSE, "shared")
    generation = object.__new__(VLLMGeneration)
    generation.model, generation.accelerator = model, SimpleNamespace(device="cpu")
    generation._dist = SimpleNamespace(is_fsdp=False, gather_params=lambda weights: nullcontext())
    assert {name for name, _ in generation._iter_named_params()} - expected == {"value_head.weight", "value_head.bias"}
    leave_critic_out(generation)
    assert {name for name, _ in generation._iter_named_params()} == expected
