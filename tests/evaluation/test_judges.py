"""Judges: what an answer means, what a reward model prefers, what a user's function may return."""

from types import SimpleNamespace

import pytest
import torch

from scope_rlhf.evaluation.judges import (
    WORDING,
    Comparison,
    FunctionJudge,
    PipelineJudge,
    RewardJudge,
    check_wording,
    fill_wording,
    load_function_judge,
    read_verdict,
)
from tests.tiny import tiny_tokenizer


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        ("A is shorter.\nPreferred: A", "first"),
        ('Both fail.\nPreferred: "B".', "second"),
        ("preferred:  **tie**", "tie"),
        ("At first I wrote Preferred: A, but\nPreferred: B", "second"),
        ("**Preferred**: Summary B", "second"),
        ("Preferred: a tie", "tie"),
        ("Preferred: A, because it is shorter", "first"),
        ("Preferred: A and B are equal", "invalid"),
        ("Preferred: A or B", "invalid"),
        ("Preferred: Apple", "invalid"),
        ("A", "invalid"),
        ("", "invalid"),
    ],
)
def test_the_last_verdict_of_an_answer_counts_and_no_verdict_is_invalid(words, verdict):
    assert read_verdict(words) == verdict


def test_texts_that_look_like_fields_are_not_filled_again():
    filled = fill_wording(WORDING, Comparison(" {second} of f{x} ", "{prompt}", "b"))
    assert "### Text\n{second} of f{x}\n" in filled
    assert "### Summary A\n{prompt}\n" in filled
    assert "### Summary B\nb\n" in filled


def test_a_wording_without_a_field_is_refused():
    with pytest.raises(ValueError, match=r"--judge_wording lacks \{first\}, \{second\}"):
        check_wording("Which is better of {prompt}?")


def length_scores(texts):
    return torch.tensor([float(len(text)) for text in texts])


def test_a_score_that_is_no_number_is_invalid_and_no_tie():
    judge = RewardJudge(lambda texts: torch.full((len(texts),), float("nan")), "nan")
    assert [j.verdict for j in judge([Comparison("p", "a", "b")])] == ["invalid"]


def test_a_reward_judge_prefers_the_higher_score_of_prompt_and_completion_whatever_the_order():
    calls = []

    def scorer(texts):
        calls.extend(texts)
        return length_scores(texts)

    judge = RewardJudge(scorer, "length")
    pairs = [Comparison("p", "long one", "short"), Comparison("p", "short", "long one"), Comparison("q", "ab", "cd")]
    assert [j.verdict for j in judge(pairs)] == ["first", "second", "tie"]
    assert judge(pairs[:1])[0].words == "scores 9.000 and 6.000"
    assert sorted(calls) == sorted(["plong one", "pshort", "qab", "qcd"])  # each text once


def test_a_tie_margin_makes_small_differences_ties():
    judge = RewardJudge(length_scores, "length", tie_margin=2.0)
    verdicts = [j.verdict for j in judge([Comparison("", "abc", "a"), Comparison("", "abcd", "a")])]
    assert verdicts == ["tie", "first"]
    with pytest.raises(ValueError, match="tie_margin must be at least 0"):
        RewardJudge(length_scores, "length", tie_margin=-1)


def test_a_function_judge_counts_nonsense_and_passes_errors_on_with_the_prompt():
    answers = iter(["first", "tie", "A", None])
    judge = FunctionJudge(lambda prompt, first, second: next(answers), "mine")
    judgements = judge([Comparison("p", "a", "b")] * 4)
    assert [j.verdict for j in judgements] == ["first", "tie", "invalid", "invalid"]
    assert judgements[2].words == "returned 'A'"

    def failing(prompt, first, second):
        raise KeyError("x")

    with pytest.raises(KeyError) as error:
        FunctionJudge(failing)([Comparison("the prompt", "a", "b")])
    assert "in the judge failing, for the prompt 'the prompt'" in error.value.__notes__


def test_a_function_judge_comes_from_a_file_outside_the_repository(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def shorter(prompt, first, second):\n    return 'first' if len(first) < len(second) else 'second'\n"
    )
    judge = load_function_judge(f"{file}:shorter")
    assert judge([Comparison("p", "a", "bb")])[0].verdict == "first"
    for spec, message in [
        (f"{file}:longer", "has no function 'longer'"),
        (str(file), "expected FILE.py:FUNCTION"),
        (f"{tmp_path}/no.py:f", "expected FILE.py:FUNCTION or MODULE:FUNCTION, and no file"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_function_judge(spec)
    file.write_text("import no_such_module_at_all")
    with pytest.raises(ValueError, match="does not import .ModuleNotFoundError"):
        load_function_judge(f"{file}:shorter")


class Echo:
    """Stands where a pipeline does: answers with a fixed text, remembers what it was asked."""

    def __init__(self, chat_template):
        self.asked = []
        self.tokenizer, self.model = tiny_tokenizer(), SimpleNamespace(config=SimpleNamespace())
        self.tokenizer.chat_template = chat_template

    def __call__(self, questions, **settings):
        assert settings["do_sample"] is False and settings["return_full_text"] is False
        self.asked += questions
        return [[{"generated_text": "Fine.\nPreferred: B"}] for _ in questions]


@pytest.mark.parametrize("template", [None, "{{ messages }}"])
def test_a_pipeline_judge_asks_in_the_form_the_model_takes(template):
    pipeline = Echo(template)
    judgements = PipelineJudge(pipeline, "echo", batch_size=2)([Comparison("text", "one", "two")] * 3)
    assert [j.verdict for j in judgements] == ["second"] * 3
    asked = pipeline.asked[0] if template is None else pipeline.asked[0][0]["content"]
    assert "### Summary A\none" in asked and len(pipeline.asked) == 3


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m['content'] }}{% endfor %}"])
def test_a_question_longer_than_the_pipelines_positions_is_invalid_and_the_others_are_asked(template):
    """Was: an IndexError of the position embedding."""
    pipeline = Echo(template)
    pipeline.model.config.max_position_embeddings = 40
    wording = "{prompt} {first} {second}"
    judge = PipelineJudge(pipeline, "echo", wording, max_new_tokens=8)
    judgements = judge([Comparison("good " * 40, "a", "b"), Comparison("good", "a", "b")])
    assert [j.verdict for j in judgements] == ["invalid", "second"] and len(pipeline.asked) == 1
    assert "with 8 of an answer (--judge_max_new_tokens) more than the 40 positions of the model" in judgements[0].words
