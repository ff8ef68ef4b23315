"""Perplexity of documents, against one whole-document pass and by hand."""

import math

import pytest
import torch

from scope_rlhf.evaluation.perplexity import document_perplexity
from tests.tiny import SENTENCES, tiny_gpt2, tiny_tokenizer


def test_documents_within_the_context_equal_one_pass_each():
    tokenizer = tiny_tokenizer()
    model = tiny_gpt2(tokenizer).eval()
    result = document_perplexity(model, tokenizer, SENTENCES[:3])
    total, count = 0.0, 0
    for text in SENTENCES[:3]:
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]])
        with torch.no_grad():
            log_probs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        total -= log_probs.gather(-1, ids[0, 1:, None]).sum().item()
        count += ids.shape[1] - 1
    assert result["tokens"] == count
    assert result["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    size = sum(len(t.encode()) for t in SENTENCES[:3])
    assert result["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-5)


def test_a_long_document_scores_every_token_once_with_at_least_half_a_window_of_context():
    tokenizer = tiny_tokenizer()
    model = tiny_gpt2(tokenizer).eval()
    text = " ".join(SENTENCES * 3)
    ids = [tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]
    window = model.config.max_position_embeddings
    assert len(ids) > 2 * window
    total = 0.0
    for position in range(1, len(ids)):
        # The window that first reaches this token: windows start at multiples of half of it.
        start = max(0, math.ceil((position + 1 - window) / (window // 2)) * (window // 2))
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[start:position]])).logits[0, -1]
        total -= logits.log_softmax(-1)[ids[position]].item()
    result = document_perplexity(model, tokenizer, [text])
    assert result["tokens"] == len(ids) - 1
    assert result["perplexity"] == pytest.approx(math.exp(total / (len(ids) - 1)), rel=1e-4)
