"""The log-probs that the sampler itself saw, recorded while it generates."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList


class SamplingLogProbs(LogitsProcessor):
    """Keeps log softmax(logits / temperature) of each sampled token; one row of the vocabulary is held at a time.

    `log_probs` [B, T] after generation: what stands behind an end token means nothing. None before.
    """

    def __init__(self, temperature: float):
        self.temperature = temperature
        self.log_probs: Tensor | None = None
        self._last: Tensor | None = None
        self._columns: list[Tensor] = []

    def __call__(self, input_ids, scores):
        # Called before the temperature is applied, with the token sampled from the scores of the call before.
        if self._last is not None:
            self._columns.append(self._last.gather(1, input_ids[:, -1:]))
        self._last = (scores.float() / self.temperature).log_softmax(-1)
        return scores

    def finish(self, sequences: Tensor) -> None:
        """Take the last token from the result, which no call has seen."""
        if self._last is not None:
            self._columns.append(self._last.gather(1, sequences[:, -1:]))
            self.log_probs = torch.cat(self._columns, dim=1)
        self._last, self._columns = None, []


@contextmanager
def record_sampling(model: Any, temperature: float) -> Iterator[SamplingLogProbs]:
    """Record what `model.generate` samples within the context; `model` is unwrapped from DDP and PEFT."""
    recorder = SamplingLogProbs(temperature)
    generate = model.generate

    def recording(*args, logits_processor=None, **kwargs):
        result = generate(*args, logits_processor=LogitsProcessorList([*(logits_processor or []), recorder]), **kwargs)
        recorder.finish(result if isinstance(result, Tensor) else result.sequences)
        return result

    model.generate = recording
    try:
        yield recorder
    finally:
        del model.generate
