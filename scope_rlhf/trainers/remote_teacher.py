"""A teacher behind an OpenAI-compatible completions endpoint that gives log-probs of prompts: vLLM's, for one."""

import hashlib
import json
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from scope_rlhf.runtime.endpoint import TRANSIENT, EndpointClient, Failed, Refused, check_endpoint
from scope_rlhf.trainers.teacher_cache import FLOAT32, LogProbCache

# What asks for the log-probs of the prompt. One token is generated: small servers read 0 as "no limit".
APIS: dict[str, dict[str, Any]] = {
    "prompt_logprobs": {"prompt_logprobs": 0, "max_tokens": 1},
    "echo": {"echo": True, "logprobs": 1, "max_tokens": 1},
}
# Refusals that may be of a request that is too large.
OF_THE_SIZE = (400, 413, 422)
LEAST = {"retries": 0, "concurrency": 1, "request_batch_size": 1}
# Token ids of the probe.
PROBE_LENGTH = 16
# What vLLM writes in the place of minus infinity, which JSON lacks.
INFINITE = -9999.0
# A log-prob that float arithmetic has put above 0; a logit is above it somewhere.
ROUNDING = 1e-3


@dataclass
class TeacherEndpoint:
    """Where and how the teacher is asked; the fields are settings of the trainer's configuration.

    teacher_base_url: up to /v1, such as http://127.0.0.1:8000/v1. teacher_model_name_or_path: the model's name there.
    teacher_api: "prompt_logprobs" (vLLM's extension) or "echo" (the prompt is repeated with its log-probs, as in
    OpenAI's first models). teacher_request_batch_size: sequences in one request; teacher_concurrency: requests at the
    same time. temperature: the log-probs are log_softmax(logits / temperature); set by --teacher_temperature.
    """

    teacher_base_url: str
    teacher_model_name_or_path: str
    teacher_api: str = "prompt_logprobs"
    teacher_api_key_variable: str = "OPENAI_API_KEY"
    teacher_timeout: float = 120.0
    teacher_retries: int = 5
    teacher_concurrency: int = 8
    teacher_request_batch_size: int = 16
    temperature: float = 1.0

    def __post_init__(self):
        counts = {name: (getattr(self, f"teacher_{name}"), least) for name, least in LEAST.items()}
        check_endpoint("teacher_", self.teacher_base_url, self.teacher_api, tuple(APIS), self.teacher_timeout, counts)
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(
                f"teacher_temperature must be positive and finite, got {self.temperature}; set --teacher_temperature."
            )


class RemoteTeacher:
    """Log-probs of given tokens under the teacher. Token ids are sent as they are; nothing is tokenized again.

    `tokenizer` is the student's: the server must know every sent id by the same text. `cache` is a file of this
    process alone that keeps every answer; None keeps nothing beyond a call. requests, cached: HTTP requests made, and
    sequences found in the cache.

    A log-prob that is missing, NaN or infinite, and every failure, is an error, never a number: 0 would say that the
    teacher is certain, and give the sequence the largest weight. ValueError: the server refuses, or answers something
    else than what was asked for. ConnectionError: it cannot be reached, or fails in every attempt. What other requests
    were answered is in the cache then.
    """

    def __init__(self, endpoint: TeacherEndpoint, tokenizer: PreTrainedTokenizerBase, cache: str | Path | None = None):
        self.endpoint, self.tokenizer = endpoint, tokenizer
        self.requests = self.cached = 0
        self._cache = None if cache is None else LogProbCache(cache)
        self._lock = threading.Lock()
        self._special = set(tokenizer.all_special_ids)
        self._texts: dict[int, set[str]] = {}
        self._client = EndpointClient(
            "the teacher",
            "teacher_",
            "teacher_model_name_or_path",
            endpoint.teacher_base_url,
            endpoint.teacher_api_key_variable,
            endpoint.teacher_timeout,
            endpoint.teacher_retries,
            self._count,
        )

    def log_probs(self, sequences: Sequence[list[int]], starts: Sequence[int]) -> list[list[float]]:
        """log p(sequence[t] | sequence[:t]) for t from `start` (at least 1) to the end of each sequence, in float32."""
        for ids, start in zip(sequences, starts, strict=True):
            if not 1 <= start <= len(ids):
                raise ValueError(
                    f"a start must lie in [1, {len(ids)}], the length of its sequence, got {start}: the first token "
                    "follows nothing, so that it has no log-prob."
                )
        keys = [self._hash(ids, start) for ids, start in zip(sequences, starts, strict=True)]
        wanted = {
            key: (ids, start) for key, ids, start in zip(keys, sequences, starts, strict=True) if start < len(ids)
        }
        known = {key: np.empty(0, FLOAT32) for key in keys if key not in wanted}
        if self._cache is not None:
            found = self._cache.read({key: len(ids) - start for key, (ids, start) in wanted.items()})
            self.cached += len(found)
            known |= found
        todo = [(key, *asked) for key, asked in wanted.items() if key not in known]
        size = self.endpoint.teacher_request_batch_size

        def ask(batch: list[tuple[str, list[int], int]]) -> None:
            batch_keys, ids, batch_starts = (list(column) for column in zip(*batch, strict=True))
            answers = [np.array(a, FLOAT32) for a in self._ask(ids, batch_starts, self.endpoint.temperature)]
            rows = dict(zip(batch_keys, answers, strict=True))
            if self._cache is not None:
                self._cache.write(rows.items())
            known.update(rows)

        pool = ThreadPoolExecutor(self.endpoint.teacher_concurrency)
        try:
            for _ in pool.map(ask, [todo[i : i + size] for i in range(0, len(todo), size)]):
                pass
        finally:  # after an error the other requests are not sent any more
            pool.shutdown(cancel_futures=True)
        return [known[key].tolist() for key in keys]

    def probe(self) -> None:
        """Ask for ids from all over the vocabulary, past the cache. ValueError where the server gives no log-probs of a
        prompt, knows an id by another text or not at all, or takes no notice of the temperature.
        """
        spread = np.linspace(0, self.tokenizer.vocab_size - 1, PROBE_LENGTH).astype(int).tolist()
        ids = [token for token in spread if token not in self._special]
        sequences = [ids, ids[::-1]][: self.endpoint.teacher_request_batch_size]
        starts = [1] * len(sequences)
        plain = np.concatenate(self._ask(sequences, starts, 1.0))
        temperature = self.endpoint.temperature
        if temperature == 1:
            return
        tempered = np.concatenate(self._ask(sequences, starts, temperature))
        # d log p / d(1/T) = logit - its mean, some nats; a hundredth of that is noise of the server's arithmetic.
        if np.abs(tempered - plain).max() <= 0.01 * abs(1 - 1 / temperature):
            raise ValueError(
                f"the teacher at {self.endpoint.teacher_base_url} gives the same prompt log-probs at temperature 1 and "
                f"at {temperature}, as vLLM does in every --logprobs-mode, while log_softmax(logits / temperature) is "
                "wanted; set --teacher_temperature 1, take a server that applies it, or leave --teacher_base_url unset "
                "for a teacher on this machine."
            )

    def _hash(self, ids: list[int], start: int) -> str:
        """Everything that the answer depends on."""
        e = self.endpoint
        asked = [e.teacher_base_url, e.teacher_model_name_or_path, e.teacher_api, float(e.temperature), ids, start]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]

    def _count(self, row: dict[str, Any]) -> None:
        with self._lock:
            self.requests += 1

    def _ask(self, sequences: list[list[int]], starts: list[int], temperature: float) -> list[list[float]]:
        """One request."""
        e = self.endpoint
        asked = {"model": e.teacher_model_name_or_path, "prompt": sequences, "temperature": temperature}
        try:
            return self._client.post(
                "completions", asked | APIS[e.teacher_api], lambda body: self._read(body, sequences, starts)
            )
        except Refused as error:
            if error.status not in OF_THE_SIZE:
                raise
            raise ValueError(
                f"{error} The request held {len(sequences)} sequences of at most {max(map(len, sequences))} token ids: "
                "where that is too much, lower --teacher_request_batch_size; where the server takes no token ids or "
                f"gives no prompt log-probs, start one that does (`vllm serve {e.teacher_model_name_or_path}`)."
            ) from error
        except Failed as error:
            if error.status in (0, *TRANSIENT):
                raise ConnectionError(
                    f"the teacher at {e.teacher_base_url} failed: {error}. Check --teacher_base_url and that the "
                    "server runs; the answers that were given are in the cache, where there is one."
                ) from error
            raise self._wrong(f"gave no answer that can be read: {error}") from error

    def _read(self, body: dict[str, Any], sequences: list[list[int]], starts: list[int]) -> list[list[float]]:
        """The log-probs of all sequences; choices come in any order."""
        choices = {choice["index"]: choice for choice in body["choices"]}
        if choices.keys() != set(range(len(sequences))) or len(body["choices"]) != len(sequences):
            raise self._wrong(f"answered choices {sorted(choices)} to {len(sequences)} sequences")
        read = self._read_prompt_logprobs if self.endpoint.teacher_api == "prompt_logprobs" else self._read_echo
        return [
            self._checked(ids, start, *read(choices[i], ids))
            for i, (ids, start) in enumerate(zip(sequences, starts, strict=True))
        ]

    def _read_prompt_logprobs(self, choice: dict[str, Any], ids: list[int]) -> tuple[list[Any], list[Any]]:
        """[None, {"<token id>": {"logprob", "decoded_token"}, ...}, ...] -> log-probs and texts from the second on."""
        entries = choice.get("prompt_logprobs")
        if not isinstance(entries, list) or not entries:
            raise self._without_log_probs("echo")
        if len(entries) != len(ids):
            raise self._wrong(
                f"gave {len(entries)} prompt log-probs for {len(ids)} token ids: the prompt is cut or changed"
            )
        said = []
        for position, (token, entry) in enumerate(zip(ids, entries, strict=True)):
            of_token = entry.get(str(token)) if isinstance(entry, dict) else None
            if position and not isinstance(of_token, dict):
                raise self._wrong(
                    f"gave no log-prob of token {token} at position {position}, but {str(entry)[:200]} "
                    "(another tokenizer?)"
                )
            said.append(of_token or {})
        return [one.get("logprob") for one in said[1:]], [one.get("decoded_token") for one in said[1:]]

    def _read_echo(self, choice: dict[str, Any], ids: list[int]) -> tuple[list[Any], list[Any]]:
        """{"token_logprobs": [None, ...], "tokens": [...]} -> both from the second on, without a generated token."""
        found = choice.get("logprobs")
        values, texts = (found.get(name) if isinstance(found, dict) else None for name in ("token_logprobs", "tokens"))
        if not isinstance(values, list) or not isinstance(texts, list) or len(values) <= 1:
            raise self._without_log_probs("prompt_logprobs")
        if len(values) not in (len(ids), len(ids) + 1) or len(texts) != len(values):
            raise self._wrong(
                f"repeated {len(texts)} tokens with {len(values)} log-probs for {len(ids)} token ids, while that many "
                "and at most one generated token are expected (another tokenizer?)"
            )
        return values[1 : len(ids)], texts[1 : len(ids)]

    def _checked(self, ids: list[int], start: int, values: list[Any], texts: list[Any]) -> list[float]:
        for position, (token, value, text) in enumerate(zip(ids[1:], values, texts, strict=True), start=1):
            if not self._same_text(token, text):
                raise self._wrong(
                    f"knows token {token} as {text!r}, the student's tokenizer as {self.tokenizer.decode([token])!r}: "
                    "it has another tokenizer, while the student's is needed"
                )
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if position >= start and not (number and INFINITE < value <= ROUNDING):
                raise self._wrong(
                    f"gave {value!r} as the log-prob of token {token} at position {position}, while a finite number "
                    "of at most 0 is expected (vLLM: --logprobs-mode raw_logprobs)"
                )
        return values[start - 1 :]

    def _same_text(self, token: int, text: Any) -> bool:
        """Whether the server may mean the student's token: False only where both are plain texts that differ.

        Servers write a token as its text, as its entry of the vocabulary, or by its id; and special tokens, and parts
        of a character, each in their own way.
        """
        if not isinstance(text, str) or token in self._special:
            return True
        if text.startswith("token_id:"):
            return text == f"token_id:{token}"
        said = text.strip()
        if not said or "\ufffd" in said or said.startswith("bytes:") or (said[0] == "<" and said[-1] == ">"):
            return True
        if token not in self._texts:
            forms = (self.tokenizer.decode([token]), self.tokenizer.convert_ids_to_tokens(token))
            self._texts[token] = {str(form or "").strip() for form in forms}
        ours = self._texts[token]
        return said in ours or "" in ours or any("\ufffd" in one for one in ours)

    def _without_log_probs(self, other_api: str) -> ValueError:
        return self._wrong(
            f"answers without log-probs of the prompt, as small servers do: start one that gives them "
            f"(`vllm serve {self.endpoint.teacher_model_name_or_path}`), or set --teacher_api {other_api} where it "
            "gives them in that way"
        )

    def _wrong(self, what: str) -> ValueError:
        return ValueError(
            f"the teacher at {self.endpoint.teacher_base_url} {what}. Check --teacher_base_url, "
            "--teacher_model_name_or_path and --teacher_api."
        )
