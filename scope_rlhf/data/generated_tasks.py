"""Verifiable tasks that need no Hub: integer arithmetic and letter sorting, and a tokenizer of their characters.

A problem's part is decided by a hash of its prompt, so train and test share no problem whatever the seeds and settings.
"""

import hashlib
import random
import string
from collections.abc import Callable, Sequence
from typing import Any

from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# Upper bound (exclusive) of the hash bucket, out of 100.
PARTS = {"train": 80, "test": 100}
OPERATORS = "+-*"
CHARACTERS = string.digits + OPERATORS + "= " + string.ascii_lowercase
# Draws in a row without a new problem after which a part counts as used up: all but about a thousandth of it is found.
_MISSES = 30_000


def problem_part(prompt: str) -> str:
    """The part that a problem belongs to (a key of PARTS): the same on every machine."""
    bucket = int(hashlib.sha256(prompt.encode()).hexdigest()[:8], 16) % 100
    return next(part for part, bound in PARTS.items() if bucket < bound)


def arithmetic(
    part: str,
    num: int,
    seed: int = 0,
    *,
    digits: Sequence[int] = (1, 2),
    operations: Sequence[int] = (1, 3),
    operators: str = "+-",
) -> Dataset:
    """`num` different problems such as prompt "37+85-6=", solution "122-6=116", answer "116".

    digits, operations: (least, most) of the digits of a number and of the operations of a problem, both drawn evenly.
    operators: of "+-*". The solution makes one operation at a time, `*` first, else from the left; a problem of one
    operation has its answer as solution. Columns: prompt, solution, answer, difficulty (digits x operations), digits
    (of the longest number), operations.

    ValueError for an unknown part, settings out of range, and more problems than can be found.
    """
    fewest, most = _bounds("digits", digits)
    least, last = _bounds("operations", operations)
    if not operators or set(operators) - set(OPERATORS):
        raise ValueError(f"operators must be some of {OPERATORS!r}, got {operators!r}.")

    def draw(generator: random.Random) -> dict[str, Any]:
        count = generator.randint(least, last)
        numbers = [_number(generator, generator.randint(fewest, most)) for _ in range(count + 1)]
        signs = [generator.choice(operators) for _ in range(count)]
        steps = _reduce(numbers, signs)
        longest = max(len(str(number)) for number in numbers)
        return {
            "prompt": f"{_write(numbers, signs)}=", "solution": "=".join(steps), "answer": steps[-1],
            "difficulty": longest * count, "digits": longest, "operations": count,
        }  # fmt: skip

    return _distinct("arithmetic", draw, part, num, seed)


def letters(part: str, num: int, seed: int = 0, *, length: Sequence[int] = (3, 6)) -> Dataset:
    """`num` different problems such as prompt "sort hbxa=", solution and answer "abhx".

    length: (least, most) letters, drawn evenly; a letter may come twice. Columns: prompt, solution, answer, difficulty
    (number of letters). ValueError as for arithmetic.
    """
    least, most = _bounds("length", length)

    def draw(generator: random.Random) -> dict[str, Any]:
        drawn = generator.choices(string.ascii_lowercase, k=generator.randint(least, most))
        answer = "".join(sorted(drawn))
        return {"prompt": f"sort {''.join(drawn)}=", "solution": answer, "answer": answer, "difficulty": len(drawn)}

    return _distinct("letters", draw, part, num, seed)


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each character of both tasks, padding on the left, "<end>" as the end token and a pad token of its
    own; text of the tasks decodes to itself. Any other character is "<unk>".
    """
    names = {"pad_token": "<pad>", "eos_token": "<end>", "unk_token": "<unk>"}
    vocabulary = {token: i for i, token in enumerate((*names.values(), *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=names["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, padding_side="left", truncation_side="left", clean_up_tokenization_spaces=False,
        model_max_length=512, **names,
    )  # fmt: skip


def _number(generator: random.Random, digits: int) -> int:
    """Exactly `digits` digits; 0 counts as a number of one."""
    return generator.randint(10 ** (digits - 1) if digits > 1 else 0, 10**digits - 1)


def _reduce(numbers: Sequence[int], signs: Sequence[str]) -> list[str]:
    """What is left after each operation, as text; the last is the answer."""
    numbers, signs, steps = list(numbers), list(signs), []
    while signs:
        place = signs.index("*") if "*" in signs else 0
        a, b = numbers[place : place + 2]
        sign = signs.pop(place)
        numbers[place : place + 2] = [a + b if sign == "+" else a - b if sign == "-" else a * b]
        steps.append(_write(numbers, signs))
    return steps


def _write(numbers: Sequence[int], signs: Sequence[str]) -> str:
    return "".join(f"{number}{sign}" for number, sign in zip(numbers, [*signs, ""], strict=True))


def _bounds(name: str, bounds: Sequence[int]) -> tuple[int, int]:
    pair = isinstance(bounds, list | tuple) and len(bounds) == 2
    whole = pair and all(isinstance(bound, int) and not isinstance(bound, bool) for bound in bounds)
    if not whole or not 1 <= bounds[0] <= bounds[1]:
        raise ValueError(f"{name} must be (least, most), whole numbers with 1 <= least <= most, got {bounds!r}.")
    return bounds[0], bounds[1]


def _distinct(task: str, draw: Callable[[random.Random], dict[str, Any]], part: str, num: int, seed: int) -> Dataset:
    """Problems of the part in the order in which a seeded generator finds them."""
    if part not in PARTS:
        raise ValueError(f"unknown part {part!r} of {task}; valid parts: {', '.join(PARTS)}.")
    if num < 1:
        raise ValueError(f"the number of problems must be at least 1, got {num}.")
    generator = random.Random(seed)
    found: dict[str, dict[str, Any]] = {}
    misses = 0
    while len(found) < num:
        problem = draw(generator)
        prompt = problem["prompt"]
        if prompt in found or problem_part(prompt) != part:
            misses += 1
        else:
            found[prompt], misses = problem, 0
        if misses == _MISSES:
            raise ValueError(
                f"{num} different problems of {task}, part {part}, were asked for, but only {len(found)} can be found "
                "with these settings; ask for fewer, or for longer problems."
            )
    return Dataset.from_list(list(found.values()))
