"""Sampling and scoring a policy on held-out prompts."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model

from scope_rlhf.evaluation.policy import (
    Sample,
    compare_samples,
    completion_log_probs,
    reference_policy,
    sample_policy,
)
from scope_rlhf.models.positions import derive_positions
from tests.tiny import SENTENCES, tiny_gpt2, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def policy(scale=0.0):
    model = tiny_gpt2(TOKENIZER)
    derive_positions(model)
    model = get_peft_model(model, LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, r=4))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=scale) if scale else None
    return model


def lengths(texts):
    return torch.tensor([float(len(t)) for t in texts])


def draw(model, seed=0, **settings):
    return sample_policy(
        model, TOKENIZER, SENTENCES, {"length": lengths}, max_new_tokens=6, seed=seed, show_progress=False, **settings
    )


def test_a_fresh_adapter_has_no_kl_and_a_trained_one_has():
    assert all(s.kl == 0 for s in draw(policy()))
    assert sum(abs(s.kl) for s in draw(policy(scale=0.2))) > 0.1


def test_log_probs_of_a_batch_equal_each_row_alone():
    model = policy(scale=0.2).eval()
    prompts = [TOKENIZER(p)["input_ids"] for p in SENTENCES[:3]]
    completions = [[5, 6, 7, 8], [9], [10, TOKENIZER.eos_token_id]]
    together = completion_log_probs(model, prompts, completions, TOKENIZER.pad_token_id, 1.0)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        alone = completion_log_probs(model, [prompt], [completion], TOKENIZER.pad_token_id, 1.0)[0]
        assert torch.allclose(together[row], alone, atol=1e-5)
        assert len(alone) == len(completion)


def test_temperature_divides_the_logits():
    model = policy(scale=0.2).eval()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 1]
    expected = (logits / 0.5).log_softmax(-1)[7]
    assert completion_log_probs(model, [[5, 6]], [[7]], 0, 0.5)[0][0] == pytest.approx(expected.item(), abs=1e-5)


def test_the_same_seed_gives_the_same_samples_and_leaves_the_callers_random_state():
    model = policy()
    model.train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = draw(model), draw(model), draw(model, seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert [s.completion_ids for s in first] == [s.completion_ids for s in second]
    assert [s.completion_ids for s in first] != [s.completion_ids for s in other]


def test_scores_are_of_prompt_and_completion():
    for sample in draw(policy()):
        assert sample.scores["length"] == len(sample.prompt + sample.completion)


def test_a_completion_counts_up_to_and_with_its_first_end_token():
    model = policy()
    # An end token that is nearly always next.
    model.base_model.model.lm_head = torch.nn.Linear(32, len(TOKENIZER))
    with torch.no_grad():
        model.base_model.model.lm_head.weight.zero_()
        model.base_model.model.lm_head.bias.zero_()
        model.base_model.model.lm_head.bias[TOKENIZER.eos_token_id] = 50.0
    for sample in draw(model):
        assert sample.completion_ids == [TOKENIZER.eos_token_id]
        assert sample.ended
        assert sample.completion == ""


def test_the_adapter_is_back_after_an_exception_inside_the_reference():
    model = policy(scale=0.3).eval()
    ids = torch.tensor([[5, 6, 7]])
    before = model(input_ids=ids).logits

    def fail_inside():
        with reference_policy(model, None) as reference:
            assert (reference(input_ids=ids).logits - before).abs().max() > 1e-3
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_inside()
    assert torch.equal(model(input_ids=ids).logits, before)


def test_a_fully_fine_tuned_policy_needs_a_reference():
    model = tiny_gpt2(TOKENIZER)
    derive_positions(model)
    with pytest.raises(ValueError, match="reference"):
        draw(model)
    assert all(s.kl == 0 for s in draw(model, reference=model))


def sample(prompt, ids, score, kl=0.0, nll=2.0):
    return Sample(prompt, "x", ids, False, {"s": score}, kl, nll)


def test_perplexity_is_over_tokens_not_over_rows():
    rows = [sample("a", [1], 0.0, nll=1.0), sample("b", [1, 2, 3], 0.0, nll=5.0)]
    assert compare_samples(rows, rows, {})["perplexity"]["before"] == pytest.approx(math.exp(6.0 / 4))


def test_comparison_pairs_prompts_and_refuses_others():
    before = [sample(str(i), [i, i + 1, i + 2], 0.2 + 0.01 * (i % 3)) for i in range(20)]
    after = [sample(str(i), [i, i + 1, i + 2], 0.8 + 0.01 * (i % 3), kl=3.0, nll=3.0) for i in range(20)]
    table = compare_samples(before, after, {"s": "score"})
    assert table["s"]["difference"] == pytest.approx(0.6)
    assert table["s"]["low"] > 0.55
    assert table["kl"]["after"] == pytest.approx(3.0)
    assert table["distinct_2"]["difference"] == 0
    assert table["perplexity"]["after"] > table["perplexity"]["before"]
    with pytest.raises(ValueError, match="same prompts"):
        compare_samples(before, after[::-1], {"s": "score"})


def test_temperature_zero_is_refused():
    with pytest.raises(ValueError, match="temperature"):
        draw(policy(), temperature=0.0)
