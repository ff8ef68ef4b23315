import json

import pytest

from scope_rlhf.data.generated_tasks import arithmetic, letters
from scope_rlhf.data.verifiable import MATH_INSTRUCTION, load_verifiable


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def math_set(tmp_path):
    """The columns of MATH-500."""
    rows = [
        {"problem": f"What is {i} + {i}?", "solution": rf"Thus \boxed{{{2 * i}}}", "answer": 2 * i, "level": i % 5}
        for i in range(20)
    ]
    return write(tmp_path / "math.jsonl", rows)


def test_generated_tasks_are_those_of_their_functions_with_their_settings():
    settings = {"digits": [2, 2], "operators": "*"}
    assert (
        load_verifiable("arithmetic", "test", 20, 3, task_kwargs=settings)[:]
        == (arithmetic("test", 20, 3, digits=(2, 2), operators="*")[:])
    )
    assert load_verifiable("letters", "train", 20)[:] == letters("train", 20, 0)[:]


def test_a_math_set_becomes_prompts_with_their_instruction_and_answers_as_text(math_set):
    rows = load_verifiable(math_set, "test", 6, seed=1, split="train", instruction=MATH_INSTRUCTION)
    assert set(rows.column_names) == {"prompt", "answer", "solution", "level"} and len(rows) == 6
    for row in rows:
        first, second = row["prompt"].split("\n\n")
        number = int(first.split()[2])
        assert first == f"What is {number} + {number}?" and second == MATH_INSTRUCTION
        assert row["answer"] == str(2 * number) and row["solution"] == rf"Thus \boxed{{{2 * number}}}"
    every = load_verifiable(math_set, "train", seed=1)
    assert [p.split("\n\n")[0] for p in rows["prompt"]] == every["prompt"][:6] and len(every) == 20
    assert load_verifiable(math_set, "train", seed=2)["prompt"][:] != every["prompt"][:]


@pytest.mark.parametrize(
    ("names", "settings", "used"),
    [
        (("question", "final_answer", "solution"), {}, (0, 1)),  # DeepMath-103K
        (("problem", "answer", "solution"), {}, (0, 1)),  # MATH-500, AIME
        (("prompt", "solution", "x"), {}, (0, 1)),
        (("problem", "answer", "x"), {"answer_column": "x"}, (0, 2)),
        (("problem", "answer", "x"), {"prompt_column": "x"}, (2, 1)),
    ],
)
def test_columns_are_found_or_set(tmp_path, names, settings, used):
    file = write(tmp_path / "a.jsonl", [dict(zip(names, ("one", "two", "three"), strict=True))])
    (row,) = load_verifiable(file, "train", **settings)
    texts = ("one", "two", "three")
    assert (row["prompt"], row["answer"]) == tuple(texts[i] for i in used)


def test_a_prompt_that_comes_twice_is_one_problem(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"prompt": p, "answer": "1"} for p in "aabbc"])
    assert sorted(load_verifiable(file)["prompt"]) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="has 3 different problems, fewer than the 4 that were asked for"):
        load_verifiable(file, num=4)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("arithmetic", {}, "say how many problems"),
        ("arithmetic", {"num": 0}, "whole number >= 1, or None for all, got 0"),
        ("arithmetic", {"num": 2, "part": "dev"}, "unknown part 'dev' of arithmetic; valid parts: train, test"),
        ("arithmetic", {"num": 2, "split": "train"}, "arithmetic is generated and takes no split"),
        ("letters", {"num": 2, "instruction": "Think."}, "letters is generated and takes no instruction"),
        ("letters", {"num": 2, "task_kwargs": {"digits": [1, 2]}}, "unexpected keyword argument 'digits'; set --task"),
        ("aritmetic", {"num": 2}, "--dataset_name='aritmetic' is no verifiable task; did you mean arithmetic?"),
        ("Letter", {"num": 2}, "did you mean letters?"),
        ("nowhere.jsonl", {}, "--dataset_name='nowhere.jsonl' does not exist"),
    ],
)
def test_what_cannot_be_loaded_is_refused(name, settings, message):
    with pytest.raises(ValueError) as error:
        load_verifiable(name, **settings)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("row", "settings", "message"),
    [
        (
            {"text": "x", "answer": "1"},
            {},
            "no column prompt or problem or question; its columns: text, answer. Set",
        ),
        ({"prompt": "x"}, {}, "no column answer or final_answer or solution; its columns: prompt. Set --answer_column"),
        ({"prompt": "x", "answer": "1"}, {"answer_column": "y"}, "has no column y; its columns"),
        ({"prompt": "x", "answer": None}, {}, "answer of 'x' is None, not one answer"),
        ({"prompt": "x", "answer": " "}, {}, "answer of 'x' is ' '"),
        ({"prompt": "x", "answer": ["1", "2"]}, {}, "is ['1', '2']"),
        ({"prompt": [{"role": "user", "content": "x"}], "answer": "1"}, {}, "prompt must hold texts"),
        ({"prompt": "", "answer": "1"}, {}, "prompt must hold texts, one is ''"),
        ({"prompt": "x", "answer": "1"}, {"task_kwargs": {"digits": [1, 1]}}, "task_kwargs are of arithmetic and lett"),
        ({"prompt": "x", "answer": "1"}, {"split": "dev"}, "has no split 'dev'"),
    ],
)
def test_rows_that_are_no_problems_are_refused(tmp_path, row, settings, message):
    file = write(tmp_path / "a.jsonl", [row])
    with pytest.raises(ValueError) as error:
        load_verifiable(file, "train", **settings)
    assert message in str(error.value)
