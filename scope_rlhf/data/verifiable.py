"""Problems whose answers a program can check: generated ones (`arithmetic`, `letters`), and math sets of the Hub.

| source                                         | prompt                      | answer                      |
|------------------------------------------------|-----------------------------|-----------------------------|
| `arithmetic`, `letters`                        | see data.generated_tasks    |                             |
| `zwhe99/DeepMath-103K`                         | question                    | final_answer                |
| `HuggingFaceH4/MATH-500`, AIME                 | problem                     | answer                      |
| file (.jsonl, .json, .csv, .parquet) or folder | the first of PROMPT_COLUMNS | the first of ANSWER_COLUMNS |
"""

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from scope_rlhf.data.generated_tasks import PARTS, arithmetic, letters
from scope_rlhf.data.loading import load_split

TASKS: dict[str, Callable[..., Dataset]] = {"arithmetic": arithmetic, "letters": letters}
PROMPT_COLUMNS = ("prompt", "problem", "question")
# A short answer is better than a worked solution, which math-verify reads too.
ANSWER_COLUMNS = ("answer", "final_answer", "solution")
MATH_INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
# Columns of a dataset that are kept beside prompt and answer.
_KEPT = ("solution", "difficulty", "level", "subject")


def load_verifiable(
    name: str,
    part: str = "train",
    num: int | None = None,
    seed: int = 0,
    *,
    task_kwargs: Mapping[str, Any] | None = None,
    split: str | None = None,
    config_name: str | None = None,
    prompt_column: str | None = None,
    answer_column: str | None = None,
    instruction: str = "",
) -> Dataset:
    """`num` problems, no prompt twice: columns prompt and answer (texts), and solution, difficulty where known.

    name: `arithmetic` or `letters` (settings of those functions by task_kwargs), a Hub name, a file or a folder, of
    which `split` (default: the part's name) is read in a seeded order; num None takes all of it. Two parts of such a
    dataset are as disjoint as their splits are. instruction: what stands two line ends behind each prompt, such as
    MATH_INSTRUCTION.

    ValueError for what does not load, missing columns, missing answers, too few problems, and settings that do not
    apply to `name`.
    """
    if part not in PARTS:
        raise ValueError(f"unknown part {part!r} of {name}; valid parts: {', '.join(PARTS)}.")
    if num is not None and (isinstance(num, bool) or not isinstance(num, int) or num < 1):
        raise ValueError(f"the number of problems must be a whole number >= 1, or None for all, got {num!r}.")
    columns = {"prompt_column": prompt_column, "answer_column": answer_column}
    if name in TASKS:
        idle = {"split": split, "config_name": config_name, **columns, "instruction": instruction or None}
        used = [setting for setting, value in idle.items() if value is not None]
        if used:
            raise ValueError(f"{name} is generated and takes no {', '.join(used)}; leave it out, or set --task_kwargs.")
        if num is None:
            raise ValueError(f"{name} is generated, without an end: say how many problems, by their number.")
        try:
            return TASKS[name](part, num, seed, **(task_kwargs or {}))
        except TypeError as error:  # an unknown setting
            raise ValueError(f"{name}: {error}; set --task_kwargs.") from error
    if task_kwargs:
        raise ValueError(f"task_kwargs are of {' and '.join(TASKS)}, got {dict(task_kwargs)} for {name!r}.")
    near = difflib.get_close_matches(name.lower(), TASKS, n=1)
    if near and "/" not in name and not Path(name).exists():
        raise ValueError(f"--dataset_name={name!r} is no verifiable task; did you mean {near[0]}?")
    return _read(name, part, split or part, num, seed, config_name, columns, instruction)


def _read(
    name: str, part: str, split: str, num: int | None, seed: int, config_name: str | None,
    columns: dict[str, str | None], instruction: str,
) -> Dataset:  # fmt: skip
    where = f"split {split!r} of --dataset_name={name!r}"
    data = load_split(
        name, split, setting="--dataset_name", split_setting=f"--dataset_{part}_split", what="problems",
        example="HuggingFaceH4/MATH-500", embedded="arithmetic", config_name=config_name,
    )  # fmt: skip
    prompt, answer = (
        _column(data, columns[setting], valid, setting, where)
        for setting, valid in (("prompt_column", PROMPT_COLUMNS), ("answer_column", ANSWER_COLUMNS))
    )
    kept = [column for column in _KEPT if column in data.column_names and column not in (prompt, answer)]
    rows: dict[str, dict[str, Any]] = {}
    # Only what is used: DeepMath-103K has three worked solutions of thousands of tokens for each problem.
    for row in data.select_columns([prompt, answer, *kept]).shuffle(seed=seed).to_list():
        text, right = row[prompt], row[answer]
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{where}: {prompt} must hold texts, one is {text!r}; set --prompt_column.")
        if isinstance(right, list | dict) or right is None or not str(right).strip():
            raise ValueError(f"{where}: {answer} of {text[:80]!r} is {right!r}, not one answer; leave the row out.")
        text = f"{text}\n\n{instruction}" if instruction else text
        rows.setdefault(text, {"prompt": text, "answer": str(right), **{column: row[column] for column in kept}})
        if len(rows) == num:
            break
    if not rows or len(rows) < (num or 0):
        raise ValueError(f"{where} has {len(rows)} different problems, fewer than the {num or 1} that were asked for.")
    return Dataset.from_list(list(rows.values()))


def _column(data: Dataset, given: str | None, valid: tuple[str, ...], setting: str, where: str) -> str:
    found = next((column for column in ([given] if given else valid) if column in data.column_names), None)
    if found is None:
        wanted = given or " or ".join(valid)
        present = ", ".join(data.column_names)
        raise ValueError(f"{where} has no column {wanted}; its columns: {present}. Set --{setting}.")
    return found
