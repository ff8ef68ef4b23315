import importlib.util
from concurrent.futures import ThreadPoolExecutor

import pytest

from scope_rlhf.data.generated_tasks import arithmetic, letters
from scope_rlhf.data.verifiers import exact_answer, math_answer


def say(text):
    return [{"role": "assistant", "content": text}]


def test_solutions_are_right_and_those_of_other_answers_wrong():
    for rows in (arithmetic("train", 100, operators="+-*"), letters("train", 100)):
        columns = {"prompts": rows["prompt"], "difficulty": rows["difficulty"]}
        answers = rows["answer"][:]
        assert exact_answer(completions=rows["solution"], answer=answers, **columns) == [1.0] * 100
        talk = [say(solution) for solution in rows["solution"]]
        assert exact_answer(completions=talk, answer=answers, **columns) == [1.0] * 100
        others = [*answers[1:], answers[0]]
        expected = [float(a == b) for a, b in zip(answers, others, strict=True)]
        assert exact_answer(completions=rows["solution"], answer=others, **columns) == expected


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("122-6=116", True), ("116", True), (" 116 \n", True), ("=116", True), ("116=", False), ("122-6", False),
        ("116 and", False), ("0116", False), ("", False), ("116=117", False),
    ],
)  # fmt: skip
def test_what_follows_the_last_equals_sign_counts(completion, right):
    assert exact_answer(["p"], [completion], ["116"]) == [float(right)]


def test_the_last_message_of_a_conversation_counts():
    assert exact_answer(["p"], [[*say("1"), {"role": "user", "content": "?"}, *say("2")]], ["2"]) == [1.0]


@pytest.mark.parametrize(
    ("completion", "answer", "right"),
    [
        (r"It is \boxed{\frac{1}{3}}.", r"\frac{1}{3}", True),
        (r"It is \boxed{\dfrac{2}{6}}.", r"$\frac{1}{3}$", True),
        (r"It is \boxed{0.5}.", r"\frac12", True),
        (r"It is \boxed{\frac{1}{2}}.", r"\frac{1}{3}", False),
        ("the answer is $x=5$", "5", True),
        (r"\boxed{(1,2)}", "(1, 2)", True),
        (r"\boxed{Yes}", "Yes", True),
        (r"\boxed{\frac12}", r"\frac12", True),
        (r"\boxed{ \sqrt2 }", r"$\sqrt2$", True),
        (r"\boxed{\frac12} or \boxed{\frac34}", r"\frac12", False),
        (r"\boxed{No}", "Yes", False),
        (r"Hence \boxed{7}", r"First 3, then \boxed{7}", True),
        ("no answer", "7", False),
        ("", "7", False),
        (r"\boxed{", "7", False),
    ],
)
def test_mathematics_is_compared_by_value(completion, answer, right):
    pytest.importorskip("math_verify")
    assert math_answer(["p", "p"], [completion, say(completion)], [answer, answer]) == [float(right)] * 2


def test_it_works_in_a_thread_where_alarms_do_not():
    pytest.importorskip("math_verify")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(math_answer, ["p"], [r"\boxed{4}"], ["2+2"]).result() == [1.0]


def test_an_answer_that_cannot_be_read_is_named():
    pytest.importorskip("math_verify")
    with pytest.raises(ValueError, match="cannot read the answer ' ' as mathematics; leave its problem out"):
        math_answer(["p", "q"], [r"\boxed{4}"] * 2, ["4", " "])


def test_a_missing_math_verify_is_told_with_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "scope-rlhf\[math\]"'):
        math_answer(["p"], ["1"], ["1"])
