"""Judges of two completions of one prompt: a reward model, a Python function, a local pipeline.

A judge is called with comparisons (texts in the order in which they are shown) and names a position. It never learns
which system wrote what; evaluation.win_rate shows every pair in both orders. evaluation.endpoint has the judge behind
an OpenAI-compatible endpoint.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from tqdm import tqdm

from scope_rlhf.runtime.functions import load_function

FIRST, SECOND, TIE, INVALID = "first", "second", "tie", "invalid"

# What a language model is asked. Own words; the three criteria are those of the TL;DR evaluations.
WORDING = """Which of two summaries of the text below is better? A good summary holds its important points, \
says nothing that the text does not say, and is short.

### Text
{prompt}

### Summary A
{first}

### Summary B
{second}

Compare them in one sentence. Then write the verdict on a line of its own, as "Preferred: A", "Preferred: B" or \
"Preferred: tie".

Comparison:"""
_VERDICT = re.compile(
    r"Preferred[*_\s]*:[\W_]*(?:summary[\W_]+)?((?:a\s+)?tie|A|B)\b(?!\s*(?:and|or|&|/)\W*\s*[AB]\b)", re.IGNORECASE
)


@dataclass(frozen=True)
class Comparison:
    """A prompt and two completions in the order in which they are shown."""

    prompt: str
    first: str
    second: str


@dataclass(frozen=True)
class Judgement:
    """verdict: first, second, tie or invalid. words: what the judge said, for people to read."""

    verdict: str
    words: str = ""


class Judge(Protocol):
    """name: what results call it, with its version. deterministic: the verdict does not depend on chance."""

    name: str

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        """One judgement for each comparison, in order."""
        ...


def read_verdict(words: str) -> str:
    """The position that the last "Preferred: ..." of an answer names; invalid where there is none."""
    found = _VERDICT.findall(words)
    return {"a": FIRST, "b": SECOND, "tie": TIE}[found[-1].lower().split()[-1]] if found else INVALID


def fill_wording(wording: str, comparison: Comparison) -> str:
    """The question to a language model. Only the three fields are filled; other braces stay."""
    for name in ("prompt", "first", "second"):
        wording = wording.replace("{" + name + "}", "\0" + name + "\0")
    for name in ("prompt", "first", "second"):
        wording = wording.replace("\0" + name + "\0", getattr(comparison, name).strip())
    return wording


def check_wording(wording: str, setting: str = "--judge_wording") -> None:
    """ValueError for a wording without one of the fields {prompt}, {first}, {second}."""
    missing = [name for name in ("prompt", "first", "second") if "{" + name + "}" not in wording]
    if missing:
        raise ValueError(f"{setting} lacks {', '.join('{' + name + '}' for name in missing)}; got {wording[:200]!r}")


class RewardJudge:
    """Prefers the completion that a reward model scores higher; a difference of at most `tie_margin` is a tie, a
    score that is no number invalid.

    scorer: texts -> scores, such as models.reward.RewardScorer. Every text is scored once, in either order.
    """

    def __init__(self, scorer: Callable[[list[str]], Tensor], name: str, tie_margin: float = 0.0):
        if not tie_margin >= 0:
            raise ValueError(f"tie_margin must be at least 0, got {tie_margin!r}")
        self.scorer, self.name, self.tie_margin = scorer, name, tie_margin
        self._scores: dict[str, float] = {}

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        texts = dict.fromkeys(c.prompt + text for c in comparisons for text in (c.first, c.second))
        new = [text for text in texts if text not in self._scores]
        self._scores.update(zip(new, self.scorer(new).tolist(), strict=True))
        judgements = []
        for c in comparisons:
            first, second = (self._scores[c.prompt + text] for text in (c.first, c.second))
            margin = first - second
            verdict = TIE if abs(margin) <= self.tie_margin else FIRST if margin > 0 else SECOND
            if not math.isfinite(margin):
                verdict = INVALID
            judgements.append(Judgement(verdict, f"scores {first:.3f} and {second:.3f}"))
        return judgements


class FunctionJudge:
    """A Python function (prompt, first, second) -> "first", "second" or "tie"; anything else is invalid.

    An exception of the function stops the evaluation, with the prompt in its note.
    """

    def __init__(self, function: Callable[[str, str, str], Any], name: str | None = None):
        self.function = function
        self.name = name or getattr(function, "__name__", type(function).__name__)

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        judgements = []
        for c in comparisons:
            try:
                answer = self.function(c.prompt, c.first, c.second)
            except Exception as error:
                error.add_note(f"in the judge {self.name}, for the prompt {c.prompt[:200]!r}")
                raise
            valid = answer in (FIRST, SECOND, TIE)
            judgements.append(Judgement(answer if valid else INVALID, "" if valid else f"returned {answer!r}"))
        return judgements


def load_function_judge(spec: str, setting: str = "--judge_function") -> FunctionJudge:
    """The judge of `file.py:function` or `module:function`. ValueError as of load_function."""
    return FunctionJudge(load_function(spec, setting), spec)


class PipelineJudge:
    """A local language model that answers `wording`, by a transformers text-generation pipeline, greedily.

    pipeline: `transformers.pipeline("text-generation", ...)`. Where its tokenizer has a chat template the question is
    one user message, otherwise plain text that it goes on from. A question that leaves no room for max_new_tokens in
    the model's positions is not asked: its judgement is invalid and says so.
    """

    def __init__(
        self, pipeline: Any, name: str, wording: str = WORDING, max_new_tokens: int = 128, batch_size: int = 8
    ):
        check_wording(wording)
        self.pipeline, self.name, self.wording = pipeline, name, wording
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        if pipeline.tokenizer.pad_token_id is None:
            pipeline.tokenizer.pad_token = pipeline.tokenizer.eos_token

    def __call__(self, comparisons: Sequence[Comparison]) -> list[Judgement]:
        questions: list[Any] = [fill_wording(self.wording, c) for c in comparisons]
        if self.pipeline.tokenizer.chat_template:
            questions = [[{"role": "user", "content": question}] for question in questions]
        judgements = [self._too_long(question) for question in questions]
        asked = [i for i, judgement in enumerate(judgements) if judgement is None]
        starts = range(0, len(asked), self.batch_size)
        for start in tqdm(starts, desc=f"judge {self.name}", leave=False, dynamic_ncols=True):
            rows = asked[start : start + self.batch_size]
            answers = self.pipeline(
                [questions[row] for row in rows], max_new_tokens=self.max_new_tokens, do_sample=False,
                return_full_text=False, batch_size=len(rows),
            )  # fmt: skip
            for row, answer in zip(rows, answers, strict=True):
                words = str(answer[0]["generated_text"])
                judgements[row] = Judgement(read_verdict(words), words.strip())
        return [judgement for judgement in judgements if judgement is not None]

    def _too_long(self, question: Any) -> Judgement | None:
        """The judgement of a question that the model has no room for; None for the others."""
        tokenizer = self.pipeline.tokenizer
        positions = getattr(self.pipeline.model.config, "max_position_embeddings", None)
        if isinstance(question, str):
            ids = tokenizer(question, verbose=False)["input_ids"]
        else:
            ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True)["input_ids"]
        if positions is None or len(ids) + self.max_new_tokens <= positions:
            return None
        said = (
            f"not asked: the question has {len(ids)} tokens, with {self.max_new_tokens} of an answer "
            f"(--judge_max_new_tokens) more than the {positions} positions of the model"
        )
        return Judgement(INVALID, said)
