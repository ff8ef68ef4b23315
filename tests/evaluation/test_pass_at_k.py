"""Completions sampled or read, verified, and summarised; with real tiny models."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from scope_rlhf.data.generated_tasks import character_tokenizer
from scope_rlhf.data.verifiable import load_verifiable
from scope_rlhf.data.verifiers import exact_answer
from scope_rlhf.evaluation.pass_at_k import (
    Samples,
    group_rows,
    make_verifier,
    read_binary,
    read_samples,
    sample,
    sample_and_verify,
    summarise,
    verify,
)
from scope_rlhf.metrics import mean_interval, paired_interval, pass_at_k
from scope_rlhf.models.positions import derive_positions

PROMPTS = ["1+1=", "2+20-3=", "12+3="]


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=end, eos_token_id=end,
        initializer_range=0.2,
    )  # fmt: skip
    made = GPT2LMHeadModel(config)
    derive_positions(made)
    return made


def draw(model, tokenizer, num_samples=3, **settings):
    given = {"name": "m", "max_new_tokens": 6, "show_progress": False} | settings
    return sample(model, tokenizer, PROMPTS, num_samples, **given)


def test_n_samples_of_a_prompt_differ_and_the_same_seed_gives_the_same(model, tokenizer):
    one = draw(model, tokenizer, 8, batch_size=5)
    assert [len(texts) for texts in one.completions] == [8, 8, 8] and one.prompts == PROMPTS
    assert all(len(set(texts)) > 4 for texts in one.completions) and one.ended.shape == (3, 8)
    assert draw(model, tokenizer, 8, batch_size=5).completions == one.completions
    assert draw(model, tokenizer, 8, batch_size=5, seed=1).completions != one.completions
    assert one.decoding == "temperature 1, seed 0, at most 6 tokens" and one.correct is None


def test_sampling_leaves_the_random_state_and_the_training_mode_of_the_caller(model, tokenizer):
    model.train()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    draw(model, tokenizer)
    assert torch.equal(torch.get_rng_state(), before) and model.training
    model.eval()


def test_samples_are_drawn_from_the_models_own_distribution(model, tokenizer):
    """The share of each first character of 4,000 samples against the softmax of the logits."""
    drawn = sample(
        model, tokenizer, ["1+1="], 4000, name="m", max_new_tokens=1, temperature=0.7, batch_size=1000,
        show_progress=False,
    )  # fmt: skip
    ids = tokenizer("1+1=", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = (model(ids).logits[0, -1] / 0.7).softmax(-1)
    for token in expected.topk(3).indices.tolist():
        share = np.mean([text == tokenizer.decode([token]) for text in drawn.completions[0]])
        assert share == pytest.approx(expected[token].item(), abs=4 * (expected[token].item() / 4000) ** 0.5)


def test_greedy_is_one_sample_and_what_the_model_finds_most_likely(model, tokenizer):
    greedy = draw(model, tokenizer, 1, temperature=0, max_new_tokens=3)
    for prompt, (text,) in zip(PROMPTS, greedy.completions, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            first = model(ids).logits[0, -1].argmax().item()
        assert text[:1] == tokenizer.decode([first], skip_special_tokens=True)
    with pytest.raises(
        ValueError, match="at temperature 0 all 2 samples of a prompt are the same; set --num_samples 1"
    ):
        draw(model, tokenizer, 2, temperature=0)


def test_a_chat_template_wraps_the_prompt_that_the_model_sees_and_not_that_of_the_results(model, tokenizer):
    with pytest.raises(ValueError, match="m: its tokenizer has no chat template; leave --use_chat_template out"):
        draw(model, tokenizer, use_chat_template=True)
    chatty = character_tokenizer()
    chatty.chat_template = "12{{ messages[0].content }}{% if add_generation_prompt %}3{% endif %}"
    talked = draw(model, chatty, 2, use_chat_template=True)
    by_hand = sample(model, tokenizer, [f"12{p}3" for p in PROMPTS], 2, name="m", max_new_tokens=6, show_progress=False)
    assert talked.completions == by_hand.completions and talked.prompts == PROMPTS


def test_samples_are_verified_with_the_columns_of_their_problem(model, tokenizer):
    problems = load_verifiable("arithmetic", "test", 4)
    seen = []

    def verifier(prompts, completions, answer, **columns):
        seen.extend(zip(prompts, answer, columns["difficulty"], strict=True))
        return [float(len(text) > 3) for text in completions]

    found = sample_and_verify(
        model, tokenizer, problems, verifier, 70, max_new_tokens=5, show_progress=False, name="policy"
    )
    assert found.correct.tolist() == [[len(text) > 3 for text in texts] for texts in found.completions]
    assert 0 < found.correct.mean() < 1
    rows = problems.to_list()
    assert seen == [
        (r["prompt"], r["answer"], r["difficulty"]) for r in rows for _ in range(70)
    ]  # two calls: 256 and 24
    with pytest.raises(ValueError, match="m: the verifier exact_answer needs a column answer beside the prompts"):
        verify(draw(model, tokenizer), {p: {} for p in PROMPTS}, exact_answer, show_progress=False)


@pytest.mark.parametrize(
    ("values", "threshold", "expected"),
    [
        ([1, 0, True], None, [True, False, True]),
        ((1.0, 0.0, False), None, [True, False, False]),
        (np.array([1, 0, 1]), None, [True, False, True]),
        (torch.tensor([0.2, 0.5, 0.7]), 0.5, [False, True, True]),
        ([-1, 3, 1], 2, [False, True, False]),
    ],
)
def test_verdicts_are_0_and_1_or_numbers_with_a_threshold(values, threshold, expected):
    assert read_binary(values, 3, "v", threshold) == expected


@pytest.mark.parametrize(
    ("values", "threshold", "message"),
    [
        (None, None, "the verifier v returned NoneType for 3 completions, expected one number for each"),
        ([1, 0], None, "returned 2 values for 3 completions"),
        ("110", None, "returned str"),
        ([1, None, 0], None, "gave None for the completion 'b', expected 1 (right) or 0 (wrong)."),
        ([1, None, 0], 0.5, "gave None"),
        ([1, float("nan"), 0], 0.5, "gave nan"),
        ([1, "1", 0], None, "gave '1'"),
        (
            [1, 0.5, 0],
            None,
            "gave 0.5 for the completion 'b', expected 1 (right) or 0 (wrong); set --correct_threshold",
        ),
    ],
)
def test_what_is_no_verdict_is_refused(values, threshold, message):
    samples = Samples("m", ["p"], [["a", "b", "c"]])

    def v(prompts, completions):
        return values

    with pytest.raises(ValueError) as error:
        verify(samples, {"p": {}}, v, threshold, show_progress=False)
    assert message in str(error.value)


def test_verifiers_are_found_by_name_or_loaded(tmp_path):
    assert make_verifier("exact_answer") is exact_answer
    (tmp_path / "mine.py").write_text("def right(prompts, completions, **columns):\n    return [1.0] * len(prompts)\n")
    assert make_verifier(f"{tmp_path / 'mine.py'}:right")(["p"], ["c"]) == [1.0]
    assert make_verifier("scope_rlhf.data.verifiers:exact_answer") is exact_answer
    for name, message in [
        ("exact_anwser", "--verifier='exact_anwser' is no verifier, did you mean exact_answer or math_answer?"),
        ("xyz", "is no verifier; valid: exact_answer, math_answer, FILE.py:FUNCTION, MODULE:FUNCTION."),
        (f"{tmp_path / 'mine.py'}:wrong", "has no function 'wrong'"),
        (f"{tmp_path / 'no.py'}:f", "no file"),
        ("no_such_module_at_all:f", "does not import (ModuleNotFoundError"),
    ]:
        with pytest.raises(ValueError) as error:
            make_verifier(name)
        assert message in str(error.value)


ROWS = [{"prompt": p, "completion": f"c{p}{i}", "answer": f"a{p}"} for i in range(2) for p in "xyz"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_completions_of_a_file_are_grouped_by_prompt_and_keep_their_columns(tmp_path, suffix):
    file = tmp_path / f"given{suffix}"
    table = pd.DataFrame([row | {"correct": row["completion"].endswith("1"), "ended": True} for row in ROWS])
    write = {".jsonl": lambda f: table.to_json(f, orient="records", lines=True), ".csv": table.to_csv}
    write.get(suffix, table.to_parquet)(file)
    samples, problems = read_samples(str(file), "--x", "given")
    assert samples.prompts == ["x", "y", "z"] and samples.completions[1] == ["cy0", "cy1"]
    assert samples.correct.tolist() == [[False, True]] * 3 and samples.ended.all() and samples.num_samples == 2
    assert {name: row["answer"] for name, row in problems.items()} == {"x": "ax", "y": "ay", "z": "az"}
    rows = samples.rows()
    assert rows[3] == {"system": "given", "prompt": "y", "completion": "cy1", "correct": True, "ended": True}
    again = group_rows(rows, "kept", "given")
    assert again.completions == samples.completions and (again.correct == samples.correct).all()


def test_samples_of_some_prompts_are_taken_in_their_order():
    samples = group_rows([row | {"correct": i} for row, i in zip(ROWS, (0, 0, 0, 1, 0, 1), strict=True)], "f", "s")
    picked = samples.select(["z", "x"])
    assert picked.completions == [["cz0", "cz1"], ["cx0", "cx1"]] and picked.correct.tolist() == [[False, True]] * 2
    with pytest.raises(
        ValueError, match="s must answer the prompts of the other systems, but lacks 1 of 2, such as 'q'"
    ):
        samples.select(["q", "x"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "p"}], "--x='FILE' has no column completion; its columns: prompt"),
        ([{"prompt": "p", "completion": 3}], "completion of row 0 is no text but 3; in .csv numbers and empty texts"),
        (
            [{"prompt": p, "completion": "c"} for p in ("p", "p", "q")],
            "has 1 completions of 'q' and 2 of 'p'; every prompt needs the same number",
        ),
        (
            [{"prompt": "p", "completion": "c", "system": s} for s in "ab"],
            "holds the completions of several systems; give a file for each",
        ),
        ([{"prompt": "p", "completion": "c", "correct": 0.3}], "correct of --x='FILE' gave 0.3 for the completion 'c'"),
    ],
)
def test_files_that_hold_no_samples_of_one_system_are_refused(tmp_path, rows, message):
    file = tmp_path / "given.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError) as error:
        read_samples(str(file), "--x", "given")
    assert message.replace("FILE", str(file)) in str(error.value)


def test_the_summary_has_the_metrics_of_each_system_and_its_paired_differences_to_the_first():
    generator = np.random.default_rng(0)
    first, second = (generator.random((20, 8)) < p for p in (0.3, 0.5))
    prompts = [str(i) for i in range(20)]
    systems = [Samples(n, prompts, [["c"] * 8] * 20, m) for n, m in (("one", first), ("two", second))]
    summary = summarise(systems, [6, 1], 0.9, seed=3)
    assert (summary["prompts"], summary["k"], summary["confidence"]) == (20, [1, 6], 0.9)
    one, two = summary["systems"]
    assert list(two["pass_at_k"]) == ["1", "2", "4", "6"]
    expected = pass_at_k(second, 6, 0.9, seed=3)
    assert (two["pass_at_k"]["6"]["value"], two["pass_at_k"]["6"]["low"]) == (expected.value, expected.low)
    mean = mean_interval(second.mean(axis=1), 0.9, seed=3)
    assert (two["avg"]["value"], two["avg"]["high"]) == (mean.value, mean.high)
    difference = paired_interval(first.mean(axis=1), second.mean(axis=1), 0.9, seed=3)
    assert two["differences"]["avg"]["low"] == difference.low and set(two["differences"]) == {"avg", "1", "6"}
    assert two["differences"]["1"]["difference"] == pytest.approx(difference.difference)
    assert one["differences"] == {} and one["share_ended"] is None and one["num_samples"] == 8
    with pytest.raises(ValueError, match="k must be a whole number from 1 to the 8 completions"):
        summarise(systems, [9])
    with pytest.raises(ValueError, match="three: its completions are not verified"):
        summarise([*systems, Samples("three", prompts, [["c"] * 8] * 20)], [1])


def test_a_dataset_of_ones_own_with_a_prompt_and_an_answer_is_enough(model, tokenizer):
    problems = Dataset.from_dict({"prompt": ["1+1=", "sort ba="], "answer": ["2", "ab"]})
    found = sample_and_verify(
        model, tokenizer, problems, exact_answer, 1, temperature=0, max_new_tokens=4, show_progress=False
    )
    assert found.correct.shape == (2, 1) and found.decoding == "greedy, at most 4 tokens"
