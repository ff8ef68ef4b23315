"""`scope-rlhf passk` from the command line, with real tiny models and files."""

import json
import re
from dataclasses import fields

import pandas as pd
import pytest
import torch
from peft import get_peft_model
from transformers import GPT2LMHeadModel

from scope_rlhf.cli import main
from scope_rlhf.cli_help import PASSK_HELP
from scope_rlhf.data.generated_tasks import character_tokenizer
from scope_rlhf.data.verifiable import load_verifiable
from scope_rlhf.evaluation import pass_at_k as evaluation
from scope_rlhf.experiments import passk as experiment
from scope_rlhf.experiments.passk import PassKArguments
from scope_rlhf.metrics import pass_at_k
from scope_rlhf.runtime.files import read_json_lines
from tests.tiny import tiny_gpt2
from tests.trainers.makers import LORA, disturb

pytest.importorskip("matplotlib")

SHORT = {"digits": [1, 1], "operations": [1, 1]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model of characters, an adapter of it, and verifiers."""
    folder = tmp_path_factory.mktemp("made")
    tokenizer = character_tokenizer()
    model = tiny_gpt2(tokenizer)
    torch.nn.init.normal_(model.transformer.wte.weight, std=0.5)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    adapter = get_peft_model(GPT2LMHeadModel.from_pretrained(folder / "base"), LORA)
    disturb(adapter, "lora_B", 0.5)
    adapter.save_pretrained(folder / "adapter")
    (folder / "mine.py").write_text(
        "def has_digit(prompts, completions, answer, **columns):\n"
        "    return [float(any(c.isdigit() for c in text)) for text in completions]\n"
        "def length(completions, **columns):\n    return [len(text) for text in completions]\n"
        "def nothing(completions, **columns):\n    return None\n"
        "def one(completions, **columns):\n    return [1.0]\n"
        "def holes(completions, **columns):\n    return [None] * len(completions)\n"
    )
    return folder


def passk(made, out, systems, *more, samples=4):
    sources = [str(made / s) if (made / s).exists() else str(s) for s in systems]
    argv = [
        *(["--model_name_or_path"] if sources else []),
        *sources,
        "--num_prompts",
        "6",
        "--num_samples",
        str(samples),
    ]
    argv += ["--max_new_tokens", "4", "--output_dir", str(out)]
    if not any(flag in more for flag in ("--dataset_name", "--task_kwargs")):
        argv += ["--task_kwargs", json.dumps(SHORT)]
    return main(["passk", *argv, *map(str, more)])


def summary(folder):
    return json.loads((folder / "passk.json").read_text())


def test_models_and_adapters_are_compared_on_the_same_prompts(made, tmp_path, capsys):
    verifier = f"{made / 'mine.py'}:has_digit"
    assert passk(made, tmp_path, ["base", "adapter"], "--k", "1", "3", "--verifier", verifier) == 0
    assert "Pass@3" in capsys.readouterr().out
    assert {file.name for file in tmp_path.iterdir()} == {
        "config.json", "passk.json", "passk.md", "passk.png", "samples.jsonl",
    }  # fmt: skip
    found, rows = summary(tmp_path), read_json_lines(tmp_path / "samples.jsonl")
    assert found["prompts"] == 6 and found["k"] == [1, 3] and found["dataset"] == "arithmetic"
    assert [s["name"] for s in found["systems"]] == ["base", "adapter"] and len(rows) == 2 * 6 * 4
    prompts = load_verifiable("arithmetic", "test", 6, 0, task_kwargs=SHORT)["prompt"][:]
    for system, own in zip(found["systems"], (rows[:24], rows[24:]), strict=True):
        assert [row["prompt"] for row in own] == [p for p in prompts for _ in range(4)]
        assert all(row["correct"] == any(c.isdigit() for c in row["completion"]) for row in own)
        matrix = [[row["correct"] for row in own[start : start + 4]] for start in range(0, 24, 4)]
        assert system["pass_at_k"]["3"]["value"] == pytest.approx(pass_at_k(matrix, 3).value)
        assert 0 < system["avg"]["value"] < 1 and system["share_ended"] is not None
    first, second = found["systems"]
    difference = second["differences"]["3"]["difference"]
    assert difference == pytest.approx(second["pass_at_k"]["3"]["value"] - first["pass_at_k"]["3"]["value"])
    assert [r["completion"] for r in rows[:24]] != [r["completion"] for r in rows[24:]]


def test_a_second_run_samples_nothing_again_and_another_verifier_is_allowed(made, tmp_path, monkeypatch):
    assert passk(made, tmp_path, ["base", "adapter"]) == 0
    before, rows = summary(tmp_path), (tmp_path / "samples.jsonl").read_bytes()
    assert before["k"] == [1] and before["verifier"] == "exact_answer"  # of 1 8 32 what four samples allow
    monkeypatch.setattr(experiment, "load_model", lambda *_: pytest.fail("was sampled"))
    assert passk(made, tmp_path, ["base", "adapter"]) == 0
    assert summary(tmp_path) == before and (tmp_path / "samples.jsonl").read_bytes() == rows
    threshold = ["--correct_threshold", "2", "--k", "4", "--verifier", f"{made / 'mine.py'}:length"]
    assert passk(made, tmp_path, ["base", "adapter"], *threshold) == 0
    kept = read_json_lines(tmp_path / "samples.jsonl")
    assert all(row["correct"] == (len(row["completion"]) >= 2) for row in kept)
    assert summary(tmp_path)["verifier"].endswith("mine.py:length, right from 2 on")


def test_a_run_that_ended_early_goes_on_with_the_systems_that_are_not_done(made, tmp_path, monkeypatch):
    assert passk(made, tmp_path / "whole", ["base", "adapter"]) == 0
    real = experiment.load_model

    def breaks(source, *rest):
        if source.endswith("adapter"):
            raise KeyboardInterrupt
        return real(source, *rest)

    monkeypatch.setattr(experiment, "load_model", breaks)
    passk(made, tmp_path / "cut", ["base", "adapter"])
    assert {row["system"] for row in read_json_lines(tmp_path / "cut" / "samples.jsonl")} == {"base"}
    assert not (tmp_path / "cut" / "passk.json").exists()
    loaded = []
    monkeypatch.setattr(experiment, "load_model", lambda source, *rest: loaded.append(source) or real(source, *rest))
    assert passk(made, tmp_path / "cut", ["base", "adapter"]) == 0
    assert loaded == [str(made / "adapter")]
    assert summary(tmp_path / "cut") == summary(tmp_path / "whole")
    assert (tmp_path / "cut" / "samples.jsonl").read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()


def test_what_was_sampled_survives_a_verifier_that_fails(made, tmp_path, monkeypatch, capsys):
    assert passk(made, tmp_path, ["base"], "--verifier", f"{made / 'mine.py'}:nothing") == 2
    assert "the verifier nothing returned NoneType for 24 completions" in capsys.readouterr().err
    assert len(read_json_lines(tmp_path / "samples.jsonl")) == 24
    monkeypatch.setattr(experiment, "load_model", lambda *_: pytest.fail("was sampled"))
    assert passk(made, tmp_path, ["base"]) == 0
    assert passk(made, tmp_path, ["base"], "--temperature", "0.5") == 2
    assert "holds results of another temperature" in capsys.readouterr().err


def test_greedy_accuracy_is_one_sample_at_temperature_0(made, tmp_path):
    assert passk(made, tmp_path, ["base"], "--temperature", "0", samples=1) == 0
    (system,) = summary(tmp_path)["systems"]
    assert system["decoding"].startswith("greedy") and list(system["pass_at_k"]) == ["1"]


def test_letters_and_a_math_set_have_their_own_verifiers(made, tmp_path):
    assert passk(made, tmp_path / "letters", ["base"], "--dataset_name", "letters") == 0
    assert summary(tmp_path / "letters")["verifier"] == "exact_answer"
    pytest.importorskip("math_verify")
    data = tmp_path / "math.jsonl"
    data.write_text("".join(json.dumps({"problem": f"{i}+{i}=", "answer": 2 * i}) + "\n" for i in range(6)))
    flags = ["--dataset_name", data, "--dataset_test_split", "train"]
    assert passk(made, tmp_path / "math", ["base"], *flags) == 0
    assert summary(tmp_path / "math")["verifier"] == "math_answer"


def solved(prompts, right, path, **columns):
    """A file with two completions of each prompt, of which the first `right` prompts have one right."""
    rows = [
        {"prompt": p, "completion": c, **{name: values[i] for name, values in columns.items()}}
        for i, p in enumerate(prompts)
        for c in ("no", "=1" if i < right else "=2")
    ]
    pd.DataFrame(rows).to_json(path, orient="records", lines=True)
    return path


def test_files_are_verified_with_their_answers_or_taken_as_they_are(made, tmp_path):
    prompts = ["p", "q", "r", "s"]
    one = solved(prompts, 1, tmp_path / "one.jsonl", answer=["1"] * 4)
    three = solved(prompts[::-1], 3, tmp_path / "three.jsonl", correct=[1, 1, 1, 0])
    assert passk(made, tmp_path / "out", [one, three], "--num_prompts", "0") == 0
    found = summary(tmp_path / "out")
    assert [s["avg"]["value"] for s in found["systems"]] == [1 / 8, 3 / 4] and found["prompts"] == 4
    assert found["verifier"] == "exact_answer (three: as given)" and found["dataset"] == str(one)
    # A verifier that is named replaces what the file says; answers come from the other file.
    assert passk(made, tmp_path / "new", [one, three], "--num_prompts", "4", "--verifier", "exact_answer") == 0
    assert [s["pass_at_k"]["1"]["value"] for s in summary(tmp_path / "new")["systems"]] == [1 / 8, 3 / 8]
    assert passk(made, tmp_path / "only", [three], "--num_prompts", "2") == 0
    assert summary(tmp_path / "only")["systems"][0]["avg"]["value"] == 1.0


def test_a_model_beside_a_file_answers_its_prompts(made, tmp_path):
    prompts = load_verifiable("arithmetic", "test", 6, 0, task_kwargs=SHORT)["prompt"][:]
    given = solved(prompts, 0, tmp_path / "given.jsonl")  # answers are those of the dataset
    assert passk(made, tmp_path / "out", [given, "base"], "--k", "2") == 0
    rows = read_json_lines(tmp_path / "out" / "samples.jsonl")
    assert [r["prompt"] for r in rows if r["system"] == "base"] == [p for p in prompts for _ in range(4)]
    assert [s["num_samples"] for s in summary(tmp_path / "out")["systems"]] == [2, 4]


def test_bad_input_is_one_paragraph_that_says_what_to_do(made, tmp_path, capsys):
    file = solved(["p"], 1, tmp_path / "given.jsonl", correct=[1])
    bare = solved(["p"], 1, tmp_path / "bare.jsonl")
    mine = made / "mine.py"
    cases = [
        ([], [], "give --model_name_or_path with one or several models or files"),
        (["base"], ["--k", "1", "5"], "k must be from 1 to the 4 of --num_samples, got 5; set --k or --num_samples"),
        (["base"], ["--k", "0"], "k must be from 1 to the 4"),
        ([file], ["--k", "3", "--num_prompts", "1"], "got 3 for the 2 of given; set --k"),
        (["base"], ["--temperature", "0"], "temperature 0 gives the same completion 4 times; set --num_samples 1"),
        (["base"], ["--temperature", "-1"], "temperature must be at least 0"),
        (["base"], ["--num_samples", "0"], "num_samples must be at least 1, got 0; set --num_samples"),
        (["base"], ["--names", "a", "b"], "--names must be 1 different names"),
        (["base"], ["--dataset_name", "arithmetics"], "is no verifiable task; did you mean arithmetic"),
        (["base"], ["--verifier", "exact"], "--verifier='exact' is no verifier"),
        (["base"], ["--verifier", f"{mine}:no"], "has no function 'no'"),
        (["base"], ["--verifier", f"{mine}:one"], "the verifier one returned 1 values for 24 completions"),
        (["base"], ["--verifier", f"{mine}:holes"], "the verifier holes gave None for the completion"),
        (["base"], ["--verifier", f"{mine}:length"], "expected 1 .right. or 0 .wrong.; set --correct_threshold"),
        (["base"], ["--task_kwargs", "[1]"], "task_kwargs must be a JSON object"),
        (["base"], ["--task_kwargs", '{"digit": [1, 1]}'], "unexpected keyword argument 'digit'"),
        (["base"], ["--max_new_tokens", "70"], "more than the 64 positions of the model; shorten the prompts"),
        (["base"], ["--use_chat_template", "true"], "has no chat template; leave --use_chat_template out"),
        (["nowhere/at/all"], [], "--model_name_or_path='nowhere/at/all' does not exist"),
        ([file], ["--num_prompts", "2"], "the file has 1 prompts, fewer than the 2 of --num_prompts"),
        ([bare], ["--num_prompts", "1"], "no answer is known to 1 of 1 prompts of the file, such as 'p'"),
        (["base"], ["--num_sample", "3"], "did you mean --num_samples"),
    ]
    for number, (systems, flags, message) in enumerate(cases):
        assert passk(made, tmp_path / f"out{number}", systems, *flags) == 2, message
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and re.search(message, error), (message, error)


def test_a_missing_math_verify_is_told_before_anything_is_sampled(made, tmp_path, monkeypatch, capsys):
    def missing(**_):
        raise ImportError('Install it with `pip install "scope-rlhf[math]"`.')

    monkeypatch.setitem(evaluation.VERIFIERS, "math_answer", missing)
    monkeypatch.setattr(experiment, "load_model", lambda *_: pytest.fail("was sampled"))
    assert passk(made, tmp_path, ["base"], "--verifier", "math_answer") == 2
    assert 'pip install "scope-rlhf[math]"' in capsys.readouterr().err


def test_the_help_names_every_setting_and_no_other(capsys):
    assert main(["passk", "--help"]) == 0
    assert capsys.readouterr().out == PASSK_HELP
    named = set(re.findall(r"--([a-z_]+[a-z]|k)\b", PASSK_HELP)) - {"flag"}
    assert named == {field.name for field in fields(PassKArguments)}
