"""The sampler draws from the whole softmax, gives its log-probs, and leaves `generate` as it was."""

import pytest
import torch
from transformers import GenerationConfig

from scope_rlhf.models.sampling import BLOCK, SoftmaxSampler, draw, softmax_sampling
from tests.tiny import tiny_gpt2, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@pytest.mark.parametrize("vocabulary", [7, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 100])
def test_tokens_are_drawn_in_proportion_to_their_probabilities(vocabulary):
    """200,000 draws against their expectation: chi-squared of the bins with more than 20 expected draws stays below its
    mean by 6 standard deviations."""
    torch.manual_seed(0)
    p = torch.softmax(3 * torch.randn(1, vocabulary), dim=1)
    p[:, vocabulary // 2] = 0.0
    draws = 200_000
    tokens, total = draw(p.expand(draws, -1))
    assert torch.allclose(total, p.double().sum().expand_as(total), rtol=1e-6)
    counts = torch.bincount(tokens.squeeze(1), minlength=vocabulary).double()
    assert counts.numel() == vocabulary and counts[vocabulary // 2] == 0
    expected = draws * p.double().squeeze(0) / p.double().sum()
    often = expected > 20
    chi = ((counts - expected)[often] ** 2 / expected[often]).sum()
    freedom = int(often.sum()) - 1
    assert abs(chi - freedom) < 6 * (2 * freedom) ** 0.5 + 6


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2.0**-53])
def test_a_token_without_probability_is_never_drawn_at_the_ends_of_the_range(monkeypatch, uniform):
    monkeypatch.setattr(torch, "rand", lambda *size, **kwargs: torch.full(size, uniform, **kwargs))
    for vocabulary, possible in [(2 * BLOCK, [BLOCK + 3]), (2 * BLOCK + 9, [5, BLOCK - 1, 2 * BLOCK + 2]), (6, [2, 3])]:
        p = torch.zeros(1, vocabulary)
        p[0, possible] = 1 / 3
        token, _ = draw(p)
        assert int(token) in possible


def test_rows_are_drawn_independently():
    torch.manual_seed(0)
    tokens, _ = draw(torch.full((1000, 500), 1 / 500))
    assert len(tokens.unique()) > 300


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_are_those_of_the_forward_pass_on_what_was_sampled(temperature):
    model = tiny_gpt2(TOKENIZER).eval()
    prompt = torch.tensor([[5, 6, 7], [8, 9, 10]])
    config = GenerationConfig(max_new_tokens=6, do_sample=True, temperature=temperature, pad_token_id=0, top_k=0)
    torch.manual_seed(0)
    with softmax_sampling(model, temperature) as sampler:
        ids = model.generate(input_ids=prompt, generation_config=config)
    with torch.no_grad():
        log_p = (model(ids).logits[:, 2:-1] / temperature).log_softmax(-1)
    expected = log_p.gather(2, ids[:, 3:, None]).squeeze(2)
    torch.testing.assert_close(sampler.log_probs, expected, rtol=1e-5, atol=1e-5)
    assert config.do_sample and config.temperature == temperature  # the caller's own is untouched
    assert "generate" not in vars(model)


def test_the_mean_over_many_samples_is_that_of_the_models_softmax():
    model = tiny_gpt2(TOKENIZER).eval()
    prompt = torch.tensor([[5, 6, 7]])
    config = GenerationConfig(max_new_tokens=1, do_sample=True, pad_token_id=0, top_k=0)
    torch.manual_seed(1)
    with torch.no_grad():
        p = model(prompt).logits[0, -1].double().softmax(-1)
        with softmax_sampling(model, 1.0):
            tokens = model.generate(input_ids=prompt.expand(20_000, -1), generation_config=config)[:, -1]
    share = torch.bincount(tokens, minlength=len(p)).double() / len(tokens)
    assert ((share - p).abs() < 6 * (p * (1 - p) / len(tokens)).sqrt() + 1e-3).all()


def test_generation_stops_when_every_row_has_ended():
    """Not at max_new_tokens: each row that has drawn its end token is padded until the last one has."""
    model = tiny_gpt2(TOKENIZER).eval()
    ends, calls = [], []
    original = SoftmaxSampler.__call__

    def ending(self, input_ids, scores):
        calls.append(1)
        for row, at in enumerate((2, 4)):
            if len(calls) == at:
                scores[row] = -torch.inf
                scores[row, 7] = 0.0
                ends.append(at)
            elif len(calls) < at:
                scores[row, 7] = -torch.inf
        return original(self, input_ids, scores)

    config = GenerationConfig(max_new_tokens=30, do_sample=True, pad_token_id=0, eos_token_id=7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SoftmaxSampler, "__call__", ending)
        with softmax_sampling(model, 1.0) as sampler:
            ids = model.generate(input_ids=torch.tensor([[5, 6], [8, 9]]), generation_config=config)
    assert ends == [2, 4] and ids.shape == (2, 2 + 4) and len(calls) == 4
    assert ids[0, 3] == 7 and (ids[0, 4:] == 0).all() and ids[1, 5] == 7
    assert sampler.log_probs.shape == (2, 4)


def test_the_same_seed_samples_the_same_and_another_one_does_not():
    model = tiny_gpt2(TOKENIZER).eval()
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        with softmax_sampling(model, 1.0):
            config = GenerationConfig(max_new_tokens=8, pad_token_id=0)
            found.append(model.generate(input_ids=torch.tensor([[5, 6]]), generation_config=config))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_tokens_beyond_the_end_that_generate_cut_off_have_no_log_probs():
    """On a GPU a stop is noticed some tokens late."""
    sampler = SoftmaxSampler(1.0)
    for _ in range(5):
        sampler(torch.zeros(2, 1, dtype=torch.long), torch.randn(2, 9))
    sampler.finish(3)
    assert sampler.log_probs.shape == (2, 3)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_an_error_that_says_what_to_do(bad):
    model = tiny_gpt2(TOKENIZER).eval()
    model.transformer.ln_f.bias.data[0] = bad
    config = GenerationConfig(max_new_tokens=3, pad_token_id=0)
    with softmax_sampling(model, 1.0), pytest.raises(ValueError, match="NaN or infinite.*Lower --learning_rate"):
        model.generate(input_ids=torch.tensor([[5, 6]]), generation_config=config)
    assert "generate" not in vars(model)
