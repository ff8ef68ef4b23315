"""GPT-2 under left padding: the log-probs of a training pass are those of the rollout."""

import copy
import types

import pytest
import torch
from peft import LoraConfig, get_peft_model

from scope_rlhf.models.positions import derive_positions, positions_from_mask
from tests.tiny import SENTENCES, tiny_gpt2, tiny_gptj, tiny_tokenizer


def rollout(model, tokenizer, length=8):
    """Left-padded unequal prompts, sampled completions, and the log-probs that generate itself used."""
    batch = tokenizer(SENTENCES, return_tensors="pt", padding=True)
    assert batch["attention_mask"].sum(1).unique().numel() > 2
    torch.manual_seed(0)
    out = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        do_sample=True,
        top_k=0,
        max_new_tokens=length,
        min_new_tokens=length,
        output_logits=True,
        return_dict_in_generate=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    width = batch["input_ids"].shape[1]
    sampled = out.sequences[:, width:]
    log_probs = torch.stack(out.logits, dim=1).float().log_softmax(-1).gather(-1, sampled.unsqueeze(-1)).squeeze(-1)
    mask = torch.cat([batch["attention_mask"], torch.ones_like(sampled)], dim=1)
    return out.sequences, mask, width, log_probs


def forward_log_probs(model, ids, mask, width):
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits[:, width - 1 : -1].float()
    return logits.log_softmax(-1).gather(-1, ids[:, width:].unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_gptj])
@pytest.mark.parametrize("lora", [False, True])
def test_generation_log_probs_equal_forward_log_probs_on_a_left_padded_unequal_batch(make, lora):
    tokenizer = tiny_tokenizer()
    model = make(tokenizer).eval()
    derive_positions(model)
    if lora:
        targets = ["c_attn"] if make is tiny_gpt2 else ["q_proj", "v_proj"]
        model = get_peft_model(model, LoraConfig(target_modules=targets, fan_in_fan_out=make is tiny_gpt2)).eval()
    ids, mask, width, generated = rollout(model, tokenizer)
    assert (forward_log_probs(model, ids, mask, width) - generated).abs().max() < 1e-4


def test_gpt2_without_derived_positions_scores_another_model_than_the_one_that_generated():
    """The fault itself: if this starts to pass in transformers, the wrapper can go."""
    tokenizer = tiny_tokenizer()
    model = tiny_gpt2(tokenizer).eval()
    ids, mask, width, generated = rollout(model, tokenizer)
    assert (forward_log_probs(model, ids, mask, width) - generated).abs().max() > 0.1


def test_prepending_pads_changes_nothing():
    tokenizer = tiny_tokenizer()
    model = tiny_gpt2(tokenizer).eval()
    derive_positions(model)
    ids, mask, width, _ = rollout(model, tokenizer)
    padded = torch.cat([torch.full((len(ids), 5), tokenizer.pad_token_id), ids], dim=1)
    padded_mask = torch.cat([torch.zeros(len(ids), 5, dtype=torch.long), mask], dim=1)
    before, after = forward_log_probs(model, ids, mask, width), forward_log_probs(model, padded, padded_mask, width + 5)
    assert (before - after).abs().max() < 1e-5


def test_positions_count_the_tokens_of_each_row():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    assert positions_from_mask(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3]]


def test_given_positions_stand_and_a_second_call_changes_nothing():
    tokenizer = tiny_tokenizer()
    model = tiny_gpt2(tokenizer).eval()
    derive_positions(model)
    first = model.transformer.forward
    derive_positions(model)
    assert model.transformer.forward == first
    assert isinstance(first, types.MethodType)
    ids = torch.tensor([[3, 4, 5]])
    mask, shifted = torch.ones_like(ids), torch.tensor([[7, 8, 9]])
    with torch.no_grad():
        own = model(input_ids=ids, attention_mask=mask, position_ids=shifted).logits
        plain = model(input_ids=ids, attention_mask=mask).logits
    assert (own - plain).abs().max() > 1e-3


def test_a_copied_model_uses_its_own_weights():
    tokenizer = tiny_tokenizer()
    model = tiny_gpt2(tokenizer).eval()
    derive_positions(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    ids = torch.tensor([[3, 4, 5]])
    assert twin(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.abs().max() > 0
