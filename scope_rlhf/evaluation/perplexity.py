"""Perplexity of whole documents under a causal language model."""

import math

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def document_perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    stride: int | None = None,
) -> dict[str, float]:
    """exp(mean negative log-likelihood per token), each document read alone behind an end-of-text token.

    A window of the model's context length moves by `stride` (default half of it); every token is scored once, with at
    least window - stride tokens of context where the document has them, as in the perplexity guide of transformers.

    Returns perplexity, tokens (scored), documents, and bits_per_byte (bits over the UTF-8 bytes of the text), which
    unlike perplexity does not depend on the vocabulary.
    """
    model.eval()
    window = model.config.max_position_embeddings
    stride = stride or window // 2
    total, count = 0.0, 0
    for text in texts:
        ids = [tokenizer.eos_token_id, *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
        row = torch.tensor([ids], device=model.device)
        scored = 1  # the first token is given
        for start in range(0, len(ids), stride):
            end = min(start + window, len(ids))
            logits = model(input_ids=row[:, start:end], use_cache=False).logits[0, scored - start - 1 : -1].float()
            total += torch.nn.functional.cross_entropy(logits, row[0, scored:end], reduction="sum").item()
            count, scored = count + end - scored, end
            if end == len(ids):
                break
    size = sum(len(text.encode()) for text in texts)
    return {
        "perplexity": math.exp(total / count),
        "bits_per_byte": total / math.log(2) / size,
        "tokens": count,
        "documents": len(texts),
    }
