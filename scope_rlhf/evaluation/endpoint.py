"""The judge behind an OpenAI-compatible endpoint: retries, concurrency, a cache on disk, a log of cost and latency."""

import hashlib
import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from scope_rlhf.evaluation.judges import (
    INVALID,
    WORDING,
    Comparison,
    Judgement,
    check_wording,
    fill_wording,
    read_verdict,
)
from scope_rlhf.runtime.endpoint import EndpointClient, Failed, Refused, check_endpoint
from scope_rlhf.runtime.files import json_line, read_json_lines

# Refusals that may concern one question, such as a text longer than the context.
OF_THE_QUESTION = (400, 413, 422)
LEAST = {"max_new_tokens": 1, "concurrency": 1, "retries": 0}


@dataclass
class EndpointConfig:
    """Where and how to ask.

    base_url: up to /v1, such as https://api.openai.com/v1 or http://127.0.0.1:8000/v1. api: "chat" (chat/completions)
    or "completions". api_key_variable: the environment variable with the key; a server on this machine needs none.
    timeout: seconds for one request. retries: further attempts after a transient failure, waiting 1, 2, 4, ... seconds
    (or as long as the server asks, at most a minute). prices: per million tokens of the question and of the answer.
    """

    base_url: str
    model: str
    api: str = "chat"
    api_key_variable: str = "OPENAI_API_KEY"
    max_new_tokens: int = 256
    temperature: float = 0.0
    timeout: float = 60.0
    retries: int = 5
    concurrency: int = 8
    wording: str = WORDING
    price_prompt: float = 0.0
    price_completion: float = 0.0
    seed: int | None = 0

    def __post_init__(self):
        counts = {name: (getattr(self, name), least) for name, least in LEAST.items()}
        check_endpoint("judge_", self.base_url, self.api, ("chat", "completions"), self.timeout, counts)
        check_wording(self.wording)


class EndpointJudge:
    """Asks an OpenAI-compatible endpoint; `cache` (a .jsonl file) keeps every answer, so that a killed run resumes.

    An answer that names no verdict is invalid and kept. A request that still fails after its retries is invalid and
    not kept, so that the next run asks again; so is a question that the server refuses (too long, for one). The first
    request is made alone: an endpoint that cannot be reached, a refused key and an unknown model are one
    ConnectionError or ValueError before the others are sent. So many failures in a row that the server must be gone
    (twice the concurrency, at least 10) are a ConnectionError too; what was answered is kept.

    The log beside the cache (<cache>.log.jsonl) has one line for each request: status, seconds, tokens, cost.
    """

    def __init__(self, config: EndpointConfig, cache: str | Path):
        self.config, self.cache = config, Path(cache)
        self.log = self.cache.with_suffix(".log.jsonl")
        self.name = f"{config.model} at {config.base_url}"
        self._client = EndpointClient(
            "the judge",
            "judge_",
            "judge_model",
            config.base_url,
            config.api_key_variable,
            config.timeout,
            config.retries,
            self._write_log,
        )
        self._lock = threading.Lock()
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        self._answers: dict[str, str] = {}
        if self.cache.exists():
            rows = read_json_lines(self.cache)
            self._answers = {
                row["key"]: row["words"] for row in rows if isinstance(row.get("words"), str) and "key" in row
            }
            _cut_last_line(self.cache)

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        questions = {self._hash(c): fill_wording(self.config.wording, c) for c in comparisons}
        todo = [(key, question) for key, question in questions.items() if key not in self._answers]
        failed: dict[str, str] = {}
        in_a_row = 0

        def ask(item: tuple[str, str]) -> None:
            nonlocal in_a_row
            key, question = item
            try:
                words = self._ask(question)
            except Refused as error:
                if item is todo[0] or error.status not in OF_THE_QUESTION:
                    raise
                failed[key] = str(error)
                return
            except Failed as error:
                failed[key] = str(error)
                in_a_row += 1
                if in_a_row >= max(10, 2 * self.config.concurrency):
                    raise ConnectionError(
                        f"the judge at {self.config.base_url} failed {in_a_row} times in a row (last: {error}). The "
                        "answers that were given are kept; start again when the server runs."
                    ) from error
                return
            in_a_row = 0
            with self._lock:
                self._answers[key] = words
                with self.cache.open("a", encoding="utf-8") as file:
                    file.write(json_line({"key": key, "words": words}))

        with tqdm(total=len(todo), desc=f"judge {self.config.model}", leave=False, dynamic_ncols=True) as progress:
            if todo:
                self._probe(todo[0], ask, failed)
                progress.update()
            pool = ThreadPoolExecutor(self.config.concurrency)
            try:
                for _ in pool.map(ask, todo[1:]):
                    progress.update()
            finally:  # after an error the other questions are not sent any more
                pool.shutdown(cancel_futures=True)
        judgements = []
        for c in comparisons:
            key = self._hash(c)
            if key in failed:
                judgements.append(Judgement(INVALID, f"no answer: {failed[key]}"))
            else:
                words = self._answers[key]
                judgements.append(Judgement(read_verdict(words), words.strip()))
        return judgements

    def cost(self) -> dict[str, float]:
        """Of all requests in the log: requests, failures, seconds of a request (median), tokens, cost."""
        rows = read_json_lines(self.log) if self.log.exists() else []
        answered = sorted(row["seconds"] for row in rows if row["status"] == 200)
        return {
            "requests": len(rows),
            "failed": len(rows) - len(answered),
            "median_seconds": answered[len(answered) // 2] if answered else 0.0,
            "prompt_tokens": sum(row["prompt_tokens"] for row in rows),
            "completion_tokens": sum(row["completion_tokens"] for row in rows),
            "cost": sum(row["cost"] for row in rows),
        }

    def _hash(self, comparison: Comparison) -> str:
        """Everything that the answer depends on."""
        c = self.config
        asked = [
            c.base_url,
            c.model,
            c.api,
            c.max_new_tokens,
            c.temperature,
            c.seed,
            fill_wording(c.wording, comparison),
        ]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]

    def _probe(self, item: tuple[str, str], ask: Any, failed: dict[str, str]) -> None:
        ask(item)
        if item[0] in failed:
            raise ConnectionError(
                f"the judge at {self.config.base_url} did not answer the first question ({failed[item[0]]}). Check "
                "--judge_base_url and that the server runs; answers that were given before are kept."
            )

    def _ask(self, question: str) -> str:
        """The words of one answer, after at most `retries` further attempts."""
        return self._client.post(
            "chat/completions" if self._chat else "completions", self._request(question), self._words
        )

    @property
    def _chat(self) -> bool:
        return self.config.api == "chat"

    def _request(self, question: str) -> dict[str, Any]:
        c = self.config
        asked: dict[str, Any] = {"model": c.model, "max_tokens": c.max_new_tokens, "temperature": c.temperature}
        if c.seed is not None:
            asked["seed"] = c.seed
        return asked | ({"messages": [{"role": "user", "content": question}]} if self._chat else {"prompt": question})

    def _words(self, body: dict[str, Any]) -> str:
        choice = body["choices"][0]
        words = choice["message"]["content"] if self._chat else choice["text"]
        return "" if words is None else str(words)

    def _write_log(self, row: dict[str, Any]) -> None:
        c = self.config
        cost = (row["prompt_tokens"] * c.price_prompt + row["completion_tokens"] * c.price_completion) / 1e6
        with self._lock, self.log.open("a", encoding="utf-8") as file:
            file.write(json_line({**row, "cost": cost}))


def _cut_last_line(path: Path) -> None:
    """Remove what a killed run left of its last line, so that the next line begins where one does."""
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
