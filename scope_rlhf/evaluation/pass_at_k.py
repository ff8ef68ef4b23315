"""Pass@k and Avg@k of systems on verifiable problems: n completions of each prompt, sampled or read, and verified.

A verifier is a reward function as of TRL, (prompts, completions, **columns of the problems) -> one number for each.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset
from tqdm import tqdm

from scope_rlhf.data.loading import load_split
from scope_rlhf.data.verifiers import VERIFIERS
from scope_rlhf.evaluation.completions import generate
from scope_rlhf.metrics.intervals import PairedDifference, paired_interval
from scope_rlhf.metrics.pass_at_k import avg_at_k, pass_at_k_curve, pass_at_k_estimates
from scope_rlhf.runtime.functions import load_function
from scope_rlhf.runtime.settings import did_you_mean

Verifier = Callable[..., Any]
# Completions that a verifier sees at once.
_CHUNK = 256
# Columns of a file of completions that are no column of its problems.
_OWN = ("prompt", "completion", "correct", "ended", "system")


@dataclass(frozen=True)
class Samples:
    """What one system wrote: completions[p] are the n completions of prompts[p].

    correct: [prompts, n], None before they are verified. ended: [prompts, n] whether a completion stopped by itself,
    None if unknown. decoding: how they were made, for the record.
    """

    name: str
    prompts: list[str]
    completions: list[list[str]]
    correct: np.ndarray | None = None
    ended: np.ndarray | None = None
    decoding: str = "as given"

    @property
    def num_samples(self) -> int:
        return len(self.completions[0])

    def rows(self) -> list[dict[str, Any]]:
        """One for each completion: system, prompt, completion and, where known, correct and ended."""
        known = {name: values for name in ("correct", "ended") if (values := getattr(self, name)) is not None}
        return [
            {"system": self.name, "prompt": prompt, "completion": text}
            | {name: bool(values[p, i]) for name, values in known.items()}
            for p, prompt in enumerate(self.prompts)
            for i, text in enumerate(self.completions[p])
        ]

    def select(self, prompts: Sequence[str]) -> "Samples":
        """Those of `prompts`, in their order; ValueError where one is missing."""
        places = {prompt: p for p, prompt in enumerate(self.prompts)}
        missing = [prompt for prompt in prompts if prompt not in places]
        if missing:
            raise ValueError(
                f"{self.name} must answer the prompts of the other systems, but lacks {len(missing)} of "
                f"{len(prompts)}, such as {missing[0][:120]!r}."
            )
        order = [places[prompt] for prompt in prompts]
        kept = {name: values[order] for name in ("correct", "ended") if (values := getattr(self, name)) is not None}
        return replace(self, prompts=list(prompts), completions=[self.completions[p] for p in order], **kept)


def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    num_samples: int,
    *,
    name: str,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    use_chat_template: bool = False,
    show_progress: bool = True,
) -> Samples:
    """`num_samples` completions of each prompt, by `generate`; batch_size counts completions.

    temperature 0 is greedy: one sample, whose Avg@1 is the greedy accuracy. use_chat_template: the model sees each
    prompt as the one user message of a conversation. ValueError also for no sample, for more than one greedy one, and
    for a tokenizer without a template.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}; set --num_samples.")
    if temperature == 0 and num_samples > 1:
        raise ValueError(
            f"at temperature 0 all {num_samples} samples of a prompt are the same; set --num_samples 1 for the greedy "
            "accuracy, or a positive --temperature."
        )
    shown = list(prompts)
    if use_chat_template:
        if not tokenizer.chat_template:
            raise ValueError(f"{name}: its tokenizer has no chat template; leave --use_chat_template out.")
        talks = ([{"role": "user", "content": prompt}] for prompt in prompts)
        shown = [tokenizer.apply_chat_template(t, add_generation_prompt=True, tokenize=False) for t in talks]
    system = generate(
        model, tokenizer, [prompt for prompt in shown for _ in range(num_samples)], name=name, seed=seed,
        max_new_tokens=max_new_tokens, temperature=temperature, batch_size=batch_size, show_progress=show_progress,
    )  # fmt: skip
    starts = range(0, len(system.completions), num_samples)
    completions = [system.completions[start : start + num_samples] for start in starts]
    ended = np.reshape(np.array(system.ended), (-1, num_samples))
    return Samples(name, list(prompts), completions, None, ended, system.decoding)


def verify(
    samples: Samples,
    problems: Mapping[str, Mapping[str, Any]],
    verifier: Verifier,
    correct_threshold: float | None = None,
    show_progress: bool = True,
) -> Samples:
    """The samples with `correct`. problems: prompt -> the columns that the verifier is called with, such as answer.

    ValueError for a verifier that does not return one number for each completion, or other numbers than 0 and 1
    without correct_threshold, from which on a number counts as right.
    """
    label = getattr(verifier, "__name__", type(verifier).__name__)
    columns = list(problems[samples.prompts[0]])
    if verifier in VERIFIERS.values() and "answer" not in columns:
        raise ValueError(f"{samples.name}: the verifier {label} needs a column answer beside the prompts.")
    flat = [
        (prompt, text) for prompt, texts in zip(samples.prompts, samples.completions, strict=True) for text in texts
    ]
    values: list[bool] = []
    starts = range(0, len(flat), _CHUNK)
    for start in tqdm(starts, desc=f"verifying {samples.name}", disable=not show_progress, leave=False):
        prompts, texts = (list(side) for side in zip(*flat[start : start + _CHUNK], strict=True))
        given = {column: [problems[prompt][column] for prompt in prompts] for column in columns}
        returned = verifier(prompts=prompts, completions=texts, **given)
        values += read_binary(returned, len(texts), f"the verifier {label}", correct_threshold, texts)
    return replace(samples, correct=np.reshape(np.array(values), (len(samples.prompts), -1)))


def read_binary(
    values: Any, expected: int, where: str, correct_threshold: float | None = None, texts: Sequence[str] | None = None
) -> list[bool]:
    """Verdicts as truth values; ValueError, beginning with `where`, for what are no verdicts (see `verify`)."""
    rows = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(rows, list | tuple) or len(rows) != expected:
        found = f"{len(rows)} values" if isinstance(rows, list | tuple) else type(rows).__name__
        raise ValueError(f"{where} returned {found} for {expected} completions, expected one number for each.")
    for row, value in enumerate(rows):
        number = isinstance(value, bool | int | float | np.generic) and float(value) == float(value)
        if number and (correct_threshold is not None or value in (0, 1)):
            continue
        told = "; set --correct_threshold, from which on a number counts as right" if number else ""
        written = "" if texts is None else f" for the completion {texts[row][:120]!r}"
        raise ValueError(f"{where} gave {value!r}{written}, expected 1 (right) or 0 (wrong){told}.")
    return [float(value) >= (1 if correct_threshold is None else correct_threshold) for value in rows]


def sample_and_verify(
    model: Any, tokenizer: Any, problems: Dataset, verifier: Verifier, num_samples: int, *, name: str = "policy",
    correct_threshold: float | None = None, show_progress: bool = True, **sampling: Any,
) -> Samples:  # fmt: skip
    """`sample` and `verify` on the problems of `load_verifiable`; sampling: further settings of `sample`."""
    prompts = list(problems["prompt"])
    samples = sample(model, tokenizer, prompts, num_samples, name=name, show_progress=show_progress, **sampling)
    return verify(samples, problem_columns(problems.to_list()), verifier, correct_threshold, show_progress)


def problem_columns(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """prompt -> the other columns of its (first) row, without those of a completion."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(row["prompt"], {name: value for name, value in row.items() if name not in _OWN})
    return found


def make_verifier(name: str, setting: str = "--verifier") -> Verifier:
    """The verifier of that name, or the function of `path/to/file.py:function` or `module:function`.

    ImportError for a verifier whose package is missing, ValueError for one that is not there or does not load.
    """
    if name in VERIFIERS:
        VERIFIERS[name](prompts=[], completions=[], answer=[])  # a missing package is told before anything is sampled
        return VERIFIERS[name]
    if ":" not in name:
        meant = did_you_mean(name, VERIFIERS) or f"; valid: {', '.join(VERIFIERS)}, FILE.py:FUNCTION, MODULE:FUNCTION."
        raise ValueError(f"{setting}={name!r} is no verifier{meant}")
    return load_function(name, setting)


def read_samples(
    path: str, setting: str, name: str, correct_threshold: float | None = None
) -> tuple[Samples, dict[str, dict[str, Any]]]:
    """The completions of a file (.jsonl, .json, .csv, .parquet) with the columns prompt and completion, the rows of a
    prompt anywhere, and its further columns by prompt. Columns correct and ended are read where they are there.

    ValueError, naming `setting`, for missing columns, what is no text, prompts of unequal numbers of completions, and
    verdicts as in `verify`.
    """
    where = f"{setting}={path!r}"
    data = load_split(
        path, "train", setting=setting, split_setting=setting, what="completions", example="you/completions"
    )
    missing = [column for column in ("prompt", "completion") if column not in data.column_names]
    if missing:
        raise ValueError(f"{where} has no column {' and '.join(missing)}; its columns: {', '.join(data.column_names)}.")
    rows = data.to_list()
    if len({row.get("system") for row in rows}) > 1:
        raise ValueError(f"{where} holds the completions of several systems; give a file for each.")
    return group_rows(rows, where, name, correct_threshold), problem_columns(rows)


def group_rows(
    rows: Sequence[Mapping[str, Any]], where: str, name: str, correct_threshold: float | None = None
) -> Samples:
    """Rows of single completions as the samples of one system. ValueError, beginning with `where`, as read_samples."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for number, row in enumerate(rows):
        for column in ("prompt", "completion"):
            if not isinstance(row[column], str):
                raise ValueError(
                    f"{where}: {column} of row {number} is no text but {row[column]!r}; in .csv numbers and empty "
                    "texts are none: use .jsonl or .parquet."
                )
        groups.setdefault(row["prompt"], []).append(row)
    if not groups:
        raise ValueError(f"{where} holds no completions.")
    sizes = {prompt: len(group) for prompt, group in groups.items()}
    if len(set(sizes.values())) > 1:
        few, many = min(sizes, key=lambda p: sizes[p]), max(sizes, key=lambda p: sizes[p])
        raise ValueError(
            f"{where} has {sizes[few]} completions of {few[:80]!r} and {sizes[many]} of {many[:80]!r}; every prompt "
            "needs the same number."
        )
    ordered = [row for group in groups.values() for row in group]
    completions = [[row["completion"] for row in group] for group in groups.values()]
    ended = [row.get("ended") for row in ordered]
    samples = Samples(name, list(groups), completions)
    shape = len(groups), samples.num_samples
    if all("correct" in row for row in ordered):
        texts = [row["completion"] for row in ordered]
        verdicts = [row["correct"] for row in ordered]
        given = read_binary(verdicts, len(rows), f"correct of {where}", correct_threshold, texts)
        samples = replace(samples, correct=np.reshape(np.array(given), shape))
    return samples if None in ended else replace(samples, ended=np.reshape(np.array(ended, dtype=bool), shape))


def summarise(samples: Sequence[Samples], ks: Sequence[int], confidence: float = 0.95, seed: int = 0) -> dict[str, Any]:
    """Avg@k, Pass@k at the ks and, for the curve, at the powers of two below the largest, of systems on the same
    prompts; paired differences to the first system. ValueError for unverified samples and as of `pass_at_k`.
    """
    powers = {2**i for i in range(max(ks).bit_length())}
    curve = sorted({*ks, *(k for k in powers if k < max(ks))})
    matrices = [_matrix(s) for s in samples]
    systems = []
    for number, (s, correct) in enumerate(zip(samples, matrices, strict=True)):
        differences: dict[str, PairedDifference] = {}
        if number:
            pairs = {"avg": [matrix.mean(axis=1) for matrix in (matrices[0], correct)]}
            pairs |= {str(k): [pass_at_k_estimates(matrix, k) for matrix in (matrices[0], correct)] for k in ks}
            differences = {
                key: paired_interval(before, after, confidence, seed=seed) for key, (before, after) in pairs.items()
            }
        passes = pass_at_k_curve(correct, curve, confidence, seed=seed)
        systems.append({
            "name": s.name, "decoding": s.decoding, "num_samples": s.num_samples,
            "avg": asdict(avg_at_k(correct, max(ks), confidence, seed=seed)),
            "pass_at_k": {str(k): asdict(interval) for k, interval in passes.items()},
            "differences": {key: asdict(difference) for key, difference in differences.items()},
            "share_ended": None if s.ended is None else float(s.ended.mean()),
        })  # fmt: skip
    return {"prompts": len(samples[0].prompts), "k": sorted(set(ks)), "confidence": confidence, "systems": systems}


def _matrix(samples: Samples) -> np.ndarray:
    if samples.correct is None:
        raise ValueError(f"{samples.name}: its completions are not verified")
    return samples.correct.astype(bool)
