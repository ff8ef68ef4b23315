"""The value head: same forward, right positions, gradients, its own file, TRL's old checkpoints."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from trl.trainer.utils import add_fused_lm_head

from scope_rlhf.models.positions import derive_positions
from scope_rlhf.models.value_head import (
    ValueHead,
    add_value_head,
    initial_bias,
    load_critic,
    load_trl_value_head,
    save_critic,
    split_critic,
)
from scope_rlhf.objectives import make_critic_loss
from tests.tiny import SENTENCES, tiny_gpt2, tiny_gptj, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MSE = make_critic_loss("mse")
HL = make_critic_loss("hl_gauss", v_min=0.0, v_max=1.0, bins=7)


def batch():
    given = TOKENIZER(SENTENCES, return_tensors="pt", padding=True)
    labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
    return {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"], "labels": labels}


def with_head(make=tiny_gpt2, critic=MSE, lora=False, fill=True, dtype=None):
    model = make(TOKENIZER).eval()
    if dtype is not None:
        model = model.to(dtype)
    derive_positions(model)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    if lora:
        targets = ["c_attn"] if make is tiny_gpt2 else ["q_proj"]
        model = get_peft_model(model, LoraConfig(target_modules=targets, fan_in_fan_out=make is tiny_gpt2)).eval()
    head = add_value_head(model, critic)
    if fill:
        torch.manual_seed(0)
        torch.nn.init.normal_(head.weight)
    return model, head


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_gptj])
@pytest.mark.parametrize("lora", [False, True])
def test_values_are_the_head_on_the_hidden_state_before_each_token_and_log_probs_stay(make, lora):
    model, head = with_head(make, HL, lora)
    plain = make(TOKENIZER).eval()
    derive_positions(plain)
    inputs = batch()
    output = model(**inputs, fused_lm_head=True)
    states = plain(inputs["input_ids"], attention_mask=inputs["attention_mask"], output_hidden_states=True)
    expected = states.hidden_states[-1][:, :-1] @ head.weight.T + head.bias
    torch.testing.assert_close(output.critic_outputs, expected, rtol=1e-5, atol=1e-5)
    log_probs = states.logits[:, :-1].log_softmax(-1).gather(-1, inputs["input_ids"][:, 1:, None]).squeeze(-1)
    counted = inputs["labels"][:, 1:] != -100
    torch.testing.assert_close(output.log_probs[counted], log_probs[counted], rtol=1e-4, atol=1e-4)
    assert output.entropy is not None


def test_generation_and_plain_calls_are_as_before():
    model, _ = with_head()
    plain = tiny_gpt2(TOKENIZER).eval()
    derive_positions(plain)
    inputs = batch()
    del inputs["labels"]
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": TOKENIZER.pad_token_id}
    assert torch.equal(model.generate(**inputs, **settings), plain.generate(**inputs, **settings))
    assert torch.equal(model(**inputs).logits, plain(**inputs).logits)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_critics_gradient_reaches_head_and_backbone(lora, checkpointing):
    model, head = with_head(lora=lora)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    values = MSE.decode(model(**batch(), fused_lm_head=True).critic_outputs)
    values.square().sum().backward()
    assert head.weight.grad.abs().sum() > 0
    reached = {n for n, w in model.named_parameters() if w.grad is not None and w.grad.abs().sum() > 0}
    wanted = "lora_B" if lora else "h.0.attn.c_attn.weight"
    assert any(wanted in name for name in reached)
    if lora:
        assert all("lora" in name or "value_head" in name for name in reached)


def test_a_new_head_starts_at_mid_support_or_at_the_given_value():
    model, _ = with_head(critic=HL, fill=False)
    values = HL.decode(model(**batch(), fused_lm_head=True).critic_outputs)
    torch.testing.assert_close(values, torch.full_like(values, 0.5))
    assert ValueHead(4, MSE, initial_value=2.5)(torch.randn(3, 4)).squeeze(-1).tolist() == [2.5] * 3


@pytest.mark.parametrize("name", ["hl_gauss", "two_hot"])
@pytest.mark.parametrize("value", [-0.9, 0.0, 0.3, 1.9])
def test_a_categorical_critic_begins_at_the_given_value_with_the_distribution_of_largest_entropy(name, value):
    critic = make_critic_loss(name, v_min=-1.0, v_max=2.0, bins=15, padding_bins=2)
    bias = initial_bias(critic, value)
    assert critic.decode(bias).item() == pytest.approx(value, abs=1e-5)
    # Any change of the distribution that keeps sum and mean lowers its entropy: log p is linear in the centres.
    slopes = bias.log_softmax(-1).diff() / critic.centres().diff()
    assert slopes.max() - slopes.min() < 1e-3 * max(1.0, slopes.abs().max().item())


def test_an_initial_value_outside_the_support_or_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"must lie inside the critic's support \(0, 1\)"):
        ValueHead(4, HL, initial_value=1.5)
    with pytest.raises(ValueError, match="must be finite"):
        ValueHead(4, MSE, initial_value=float("nan"))


def test_a_bfloat16_backbone_keeps_its_values_in_float32():
    model, head = with_head(dtype=torch.bfloat16)
    assert head.weight.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(**batch(), fused_lm_head=True).critic_outputs.dtype == torch.float32


def test_the_critic_is_a_file_of_its_own_and_comes_back_the_same(tmp_path):
    model, head = with_head(critic=HL)
    policy, critic = split_critic(model.state_dict())
    assert not any("value_head" in name for name in policy)
    assert set(critic) == {"weight", "bias"}
    assert len(policy) + len(critic) == len(model.state_dict())
    save_critic(tmp_path, critic, HL)
    again, other = with_head(critic=HL, fill=False)
    load_critic(tmp_path, again, HL)
    assert torch.equal(other.weight, head.weight) and torch.equal(other.bias, head.bias)


def test_a_critic_of_another_support_kind_width_or_backbone_is_refused(tmp_path):
    model, _ = with_head(critic=HL)
    save_critic(tmp_path, split_critic(model.state_dict())[1], HL)
    other = make_critic_loss("hl_gauss", v_min=0.0, v_max=2.0, bins=7)
    with pytest.raises(ValueError, match="v_max was 1.0, is 2.0"):
        load_critic(tmp_path, model, other)
    with pytest.raises(ValueError, match="critic was 'hl_gauss', is 'mse'"):
        load_critic(tmp_path, model, MSE)
    with pytest.raises(ValueError, match="holds no critic"):
        load_critic(tmp_path / "nowhere", model, HL)
    save_critic(tmp_path / "narrow", ValueHead(16, HL).state_dict(), HL)
    with pytest.raises(ValueError, match="width 16, this one has width 32"):
        load_critic(tmp_path / "narrow", model, HL)
    save_critic(tmp_path / "own", {**ValueHead(32, HL).state_dict(), "backbone.x": torch.zeros(1)}, HL)
    with pytest.raises(ValueError, match="backbone 'model', this one 'shared'"):
        load_critic(tmp_path / "own", model, HL)
    (tmp_path / "critic.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match="is damaged"):
        load_critic(tmp_path, model, HL)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_value_head_of_trl_1_12_loads(tmp_path, kind):
    torch.manual_seed(1)
    weights = {"v_head.summary.weight": torch.randn(1, 32), "v_head.summary.bias": torch.randn(1)}
    policy = {f"transformer.{n}": w for n, w in tiny_gpt2(TOKENIZER).transformer.state_dict().items()}
    if kind == "safetensors":
        save_file({**policy, **weights}, tmp_path / "model.safetensors")
        assert "v_head.summary.weight" in load_file(tmp_path / "model.safetensors")
    else:
        torch.save({**policy, **weights}, tmp_path / "pytorch_model.bin")
    head = ValueHead(32, MSE)
    load_trl_value_head(tmp_path, head)
    hidden = torch.randn(3, 32)
    expected = hidden @ weights["v_head.summary.weight"].T + weights["v_head.summary.bias"]
    torch.testing.assert_close(head(hidden), expected)
    with pytest.raises(ValueError, match=r"has shape \(1, 32\), expected \(7, 32\)"):
        load_trl_value_head(tmp_path, ValueHead(32, HL))


def test_a_checkpoint_without_a_value_head_is_refused(tmp_path):
    with pytest.raises(ValueError, match="neither model.safetensors nor"):
        load_trl_value_head(tmp_path, ValueHead(32, MSE))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="holds no value head of TRL"):
        load_trl_value_head(tmp_path, ValueHead(32, MSE))


def test_a_second_head_and_a_model_without_a_fused_head_are_refused():
    model, _ = with_head()
    with pytest.raises(ValueError, match="already"):
        add_value_head(model, MSE)
    with pytest.raises(ValueError, match="no log-prob head"):
        add_value_head(tiny_gpt2(TOKENIZER), MSE)
