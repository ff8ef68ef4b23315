import re

import pytest
from transformers import AutoTokenizer

from scope_rlhf.data.generated_tasks import PARTS, arithmetic, character_tokenizer, letters, problem_part

HARD = {"digits": (1, 3), "operations": (1, 4), "operators": "+-*"}


def value(expression: str) -> int:
    """Python's own value of an expression of numbers and + - *."""
    assert re.fullmatch(r"-?\d+([-+*]\d+)*", expression), expression
    return eval(expression)


def test_every_step_of_every_solution_has_the_value_of_the_problem_and_one_operation_less():
    for row in arithmetic("train", 2000, **HARD):
        problem = row["prompt"].removesuffix("=")
        steps = [problem, *row["solution"].split("=")]
        assert {value(step) for step in steps} == {value(problem)}
        counts = [len(re.findall(r"(?<=\d)[-+*]", step)) for step in steps]
        assert counts == list(range(row["operations"], -1, -1))
        assert row["answer"] == steps[-1] == str(value(problem))
        # A product is made before a sum to its left.
        assert all("*" not in step for step in steps[problem.count("*") :])


def test_two_operations_are_written_as_what_is_left_after_the_first_and_the_answer():
    for row in arithmetic("train", 100, operations=(2, 2)):
        a, first, b, second, c = re.findall(r"\d+|[-+]", row["prompt"])
        left = value(a + first + b)
        assert row["solution"] == f"{left}{second}{c}={value(f'{left}{second}{c}')}"


def test_difficulty_is_within_what_was_asked_for_and_covers_it():
    rows = arithmetic("test", 500, digits=(2, 3), operations=(1, 2))
    assert set(rows["digits"]) == {2, 3} and set(rows["operations"]) == {1, 2}
    assert set(rows["difficulty"]) == {2, 3, 4, 6}
    for row in rows:
        assert {len(number) for number in re.findall(r"\d+", row["prompt"])} <= {2, row["digits"]}
        assert row["difficulty"] == row["digits"] * row["operations"]
    only = arithmetic("train", 50, digits=(2, 2), operations=(1, 1), operators="*")
    assert all(re.fullmatch(r"\d\d\*\d\d=", prompt) for prompt in only["prompt"])
    assert only["solution"] == only["answer"]


def test_letters_are_sorted():
    rows = letters("train", 300, length=(2, 5))
    assert set(rows["difficulty"]) == {2, 3, 4, 5}
    for row in rows:
        given = row["prompt"].removeprefix("sort ").removesuffix("=")
        assert re.fullmatch("[a-z]+", given)
        assert row["answer"] == row["solution"] == "".join(sorted(given)) and row["difficulty"] == len(given)


@pytest.mark.parametrize("task", [arithmetic, letters])
def test_parts_share_no_problem_whatever_the_seeds_and_none_comes_twice(task):
    train, test = ({seed: task(part, 400, seed)["prompt"] for seed in range(4)} for part in PARTS)
    for prompts in (*train.values(), *test.values()):
        assert len(set(prompts)) == 400
    seen = {p for prompts in train.values() for p in prompts}, {p for prompts in test.values() for p in prompts}
    assert not seen[0] & seen[1] and len(seen[0]) > 400
    assert task("train", 400, 3)["prompt"][:] == train[3][:] != train[2][:]
    assert task("train", 100, 3)["prompt"][:] == train[3][:100]


def test_a_part_gives_all_the_problems_that_it_has_and_says_how_many_these_are():
    """All sums of two digits: 100 problems."""
    settings = {"digits": (1, 1), "operations": (1, 1), "operators": "+"}
    every = [f"{a}+{b}=" for a in range(10) for b in range(10)]
    expected = sorted(p for p in every if problem_part(p) == "test")
    assert 10 < len(expected) < 30
    assert sorted(arithmetic("test", len(expected), **settings)["prompt"]) == expected
    with pytest.raises(ValueError, match=f"only {len(expected)} can be found with these settings; ask for fewer"):
        arithmetic("test", len(expected) + 1, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"digits": (2, 1)}, "digits must be (least, most), whole numbers with 1 <= least <= most, got (2, 1)"),
        ({"digits": (0, 1)}, "digits must be (least, most)"),
        ({"operations": (1, 2, 3)}, "operations must be (least, most)"),
        ({"operations": (1, 1.5)}, "got (1, 1.5)"),
        ({"operators": "+/"}, "operators must be some of '+-*', got '+/'"),
        ({"operators": ""}, "got ''"),
        ({"part": "dev"}, "unknown part 'dev' of arithmetic; valid parts: train, test"),
        ({"num": 0}, "the number of problems must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError) as error:
        arithmetic(**({"part": "train", "num": 3} | settings))
    assert message in str(error.value)


def test_text_of_the_tasks_is_one_token_for_each_character_and_decodes_to_itself(tmp_path):
    made = character_tokenizer()
    made.save_pretrained(tmp_path)
    texts = [r["prompt"] + r["solution"] for r in (*arithmetic("test", 50, **HARD), *letters("test", 50))]
    for tokenizer in (made, AutoTokenizer.from_pretrained(tmp_path)):
        assert tokenizer.padding_side == "left"
        for text in texts:
            ids = tokenizer(text)["input_ids"]
            assert len(ids) == len(text) and tokenizer.decode(ids) == text
        special = [tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id]
        assert sorted(special) == [0, 1, 2]
        assert tokenizer("1<end>")["input_ids"] == [tokenizer.convert_tokens_to_ids("1"), tokenizer.eos_token_id]
        assert tokenizer("é\n")["input_ids"] == [tokenizer.unk_token_id] * 2
        padded = tokenizer(["1", "12"], padding=True)
        assert padded["input_ids"][0][0] == tokenizer.pad_token_id and padded["attention_mask"][0] == [0, 1]
        decoded = tokenizer.batch_decode([[*padded["input_ids"][0], tokenizer.eos_token_id]], skip_special_tokens=True)
        assert decoded == ["1"]
