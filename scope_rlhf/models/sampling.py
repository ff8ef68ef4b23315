"""Sampling from the whole softmax, with the log-prob of each token that was drawn."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

# Tokens whose probabilities are summed up first, so that a draw looks at V / BLOCK sums and then at one block.
BLOCK = 256


def draw(p: Tensor) -> tuple[Tensor, Tensor]:
    """(tokens [B, 1] drawn in proportion to p [B, V] >= 0, totals of p [B, 1] float64), by one uniform number a row.

    The inverse of the distribution function, in two steps: the block of BLOCK tokens, then the token in it, both from
    float64 sums. torch.multinomial draws V exponentials a row, which is a third of the time of a small model's
    generation on a CPU. A row whose total is not finite and positive gives some token.
    """
    vocabulary = p.size(1)
    whole = vocabulary // BLOCK * BLOCK
    sums = p[:, :whole].unflatten(1, (-1, BLOCK)).sum(dim=2).double()
    if whole < vocabulary:
        sums = torch.cat([sums, p[:, whole:].sum(dim=1, keepdim=True).double()], dim=1)
    reached = sums.cumsum(dim=1)
    total = reached[:, -1:]
    # Below 1 by more than rounding: the last token that is counted has a probability, those behind it may have none.
    uniform = torch.rand(len(p), 1, device=p.device, dtype=torch.float64).clamp(max=1 - 1e-12)
    aim = uniform * total
    block = torch.searchsorted(reached, aim, right=True).clamp(max=sums.size(1) - 1)
    share = (aim - (reached - sums).gather(1, block)) / sums.gather(1, block)
    columns = block * BLOCK + torch.arange(BLOCK, device=p.device)
    inside = p.gather(1, columns.clamp(max=vocabulary - 1)).double().masked_fill(columns >= vocabulary, 0.0)
    inside = inside.cumsum(dim=1)
    place = torch.searchsorted(inside, share.clamp(0, 1 - 1e-12) * inside[:, -1:], right=True)
    return (block * BLOCK + place).clamp(max=vocabulary - 1), total


class SoftmaxSampler(LogitsProcessor):
    """Draws each next token from softmax(logits / temperature), and makes it the only one that is left to choose.

    `log_probs` [B, T] after generation, in float32: what stands behind an end token means nothing. None before.
    """

    def __init__(self, temperature: float):
        self.temperature = temperature
        self.log_probs: Tensor | None = None
        self._columns: list[Tensor] = []
        self._finite: Tensor | None = None

    def __call__(self, input_ids, scores):
        # transformers hands over a copy of its own, in float32.
        scores = scores if self.temperature == 1 else scores.div_(self.temperature)
        p = torch.softmax(scores, dim=1, out=scores)
        tokens, total = draw(p)
        self._columns.append((p.gather(1, tokens).double() / total).log().float())
        finite = total.isfinite().all()
        self._finite = finite if self._finite is None else self._finite & finite
        return p.fill_(-torch.inf).scatter_(1, tokens, 0.0)

    def finish(self, length: int) -> None:
        """Keep the log-probs of `length` tokens: on a GPU some more are drawn before a stop is noticed. ValueError for
        logits that are NaN or infinite.
        """
        if self._finite is not None and not bool(self._finite):
            raise ValueError(
                "the policy gave logits that are NaN or infinite, so nothing can be sampled from it: training has "
                "diverged, or the weights were damaged. Lower --learning_rate, or go back to an earlier checkpoint."
            )
        self.log_probs = torch.cat(self._columns, dim=1)[:, :length] if self._columns else None
        self._columns, self._finite = [], None


@contextmanager
def softmax_sampling(model: Any, temperature: float) -> Iterator[SoftmaxSampler]:
    """Within the context `model.generate` samples from the full softmax at this temperature, by SoftmaxSampler.

    `model` is unwrapped from DDP and PEFT. Of its generation_config the lengths and special tokens are used; settings
    that truncate or reshape the distribution are refused where a run is configured.
    """
    sampler = SoftmaxSampler(temperature)
    generate = model.generate

    def sampling(*args, generation_config=None, logits_processor=None, **kwargs):
        config = copy.deepcopy(model.generation_config if generation_config is None else generation_config)
        # What is left to choose is one token; these are the defaults, about which transformers does not warn.
        config.do_sample, config.temperature, config.top_k, config.top_p = False, 1.0, 50, 1.0
        processors = LogitsProcessorList([*(logits_processor or []), sampler])
        result = generate(*args, generation_config=config, logits_processor=processors, **kwargs)
        sequences = result if isinstance(result, Tensor) else result.sequences
        prompt = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        sampler.finish(sequences.size(1) - prompt.size(1))
        return result

    model.generate = sampling
    try:
        yield sampler
    finally:
        del model.generate
