"""`scope-rlhf evaluate` from the command line, with real tiny models, files and run folders."""

import json
import re
from dataclasses import fields

import pytest
from peft import get_peft_model

from scope_rlhf.cli import main
from scope_rlhf.cli_help import EVALUATE_HELP
from scope_rlhf.experiments.evaluate import EvaluateArguments
from tests.tiny import tiny_gpt2, tiny_tokenizer
from tests.trainers.makers import LORA, disturb, save_reward_model

pytest.importorskip("matplotlib")

NAMES = ["film", "cast", "plot", "movie", "year", "ending"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a policy, an adapter of it, two reward models, a dataset of six posts and completions of them."""
    folder = tmp_path_factory.mktemp("made")
    tokenizer = tiny_tokenizer()
    tiny_gpt2(tokenizer).save_pretrained(folder / "sft")
    tokenizer.save_pretrained(folder / "sft")
    base = type(tiny_gpt2(tokenizer)).from_pretrained(folder / "sft")
    adapter = get_peft_model(base, LORA)
    disturb(adapter, "lora_B", 0.3)
    adapter.save_pretrained(folder / "rl")
    save_reward_model(folder / "rm", seed=5)
    save_reward_model(folder / "judge", seed=6)
    posts = [{"prompt": f"POST: the {name}\n\nTL;DR:", "completion": f"a good {name}"} for name in NAMES]
    (folder / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in posts))
    given = [{"prompt": row["prompt"], "completion": "a bad film", "ended": True} for row in posts[::-1]]
    (folder / "given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    return folder


def evaluate(made, out, systems, *more):
    sources = [str(made / s) if (made / s).exists() else s for s in systems]
    scorers = ["--reward_model_name_or_path", str(made / "rm"), "--judge_model_name_or_path", str(made / "judge")]
    data = ["--dataset_name", str(made / "posts.jsonl"), "--dataset_test_split", "train", "--num_prompts", "6"]
    argv = ["--systems", *sources, *scorers, *data, "--max_new_tokens", "6", "--output_dir", str(out)]
    return main(["evaluate", *argv, *map(str, more)])


def test_models_files_and_references_share_a_table_and_a_second_run_measures_nothing_again(made, tmp_path, capsys):
    systems = ["sft", "rl", "references"]
    reference = ["--reference_model_name_or_path", made / "sft", "--names", "sft", "trained", "human"]
    assert evaluate(made, tmp_path / "one", systems, *reference) == 0
    assert "held-out judge" in capsys.readouterr().out  # the table, not only where it lies
    summary = json.loads((tmp_path / "one" / "rewards.json").read_text())
    sft, trained, human = (s["metrics"] for s in summary["systems"])
    assert summary["prompts"] == 6 and summary["notes"] == []
    assert sft["kl"]["mean"] == pytest.approx(0, abs=1e-5) and trained["kl"]["std"] > 0.1
    assert "kl" not in human and human["rouge1"]["mean"] == 1.0 and human["perplexity"]["mean"] > 1
    assert {"reward", "judge", "perplexity", "distinct_2", "length", "eos_rate", "rouge2", "rougeL"} <= trained.keys()
    assert sft["reward"]["mean"] != sft["judge"]["mean"] and trained["judge"]["difference"] is not None
    lines = (tmp_path / "one" / "report.md").read_text().splitlines()
    headers = [number for number, line in enumerate(lines) if line.startswith("|  |")]
    assert [lines[number] for number in headers] == [
        "|  | sft | trained | human |",
        "|  | trained | human |",
        "|  | sft | trained | human |",
    ]
    first = [line.split(" | ")[0] for line in lines[headers[0] + 2 : headers[0] + 5]]
    assert first == ["| training reward", "| held-out judge", "| KL to the reference (nats per sequence)"]
    assert (tmp_path / "one" / "rewards.png").read_bytes().startswith(b"\x89PNG")
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "one").glob("scored_*.json")}
    report = (tmp_path / "one" / "report.md").read_text()
    assert evaluate(made, tmp_path / "one", systems, *reference) == 0
    assert len(kept) == 3 and kept == {file: file.stat().st_mtime_ns for file in kept}
    assert evaluate(made, tmp_path / "two", systems, *reference) == 0
    assert (tmp_path / "two" / "report.md").read_text() == report == (tmp_path / "one" / "report.md").read_text()


def test_an_adapter_has_its_own_reference_and_a_file_says_the_prompts(made, tmp_path):
    assert evaluate(made, tmp_path, ["given.jsonl", "rl"], "--num_prompts", "5") == 0
    summary = json.loads((tmp_path / "rewards.json").read_text())
    given, trained = (s["metrics"] for s in summary["systems"])
    assert summary["prompts"] == 5 and trained["kl"]["std"] > 0.1
    assert "perplexity" not in given and trained["perplexity"]["difference"] is None
    # "a bad film" against "a good ...": one word of three; the last of the file, "film", has two but is not among five.
    assert given["rouge1"]["mean"] == pytest.approx(1 / 3)


def test_a_greedy_model_and_one_without_a_reference_have_no_kl_and_say_so(made, tmp_path):
    assert evaluate(made, tmp_path / "greedy", ["sft", "rl"], "--temperature", "0") == 0
    summary = json.loads((tmp_path / "greedy" / "rewards.json").read_text())
    assert (
        all("kl" not in s["metrics"] for s in summary["systems"]) and summary["systems"][0]["decoding"][:6] == "greedy"
    )
    assert evaluate(made, tmp_path / "alone", ["sft"]) == 0
    summary = json.loads((tmp_path / "alone" / "rewards.json").read_text())
    assert summary["notes"] == ["No KL and perplexity of sft: it has no adapter; give --reference_model_name_or_path."]
    assert "No KL and perplexity" in (tmp_path / "alone" / "report.md").read_text()


def test_prompts_without_references_have_no_rouge_and_say_so(made, tmp_path):
    own = tmp_path / "own.jsonl"
    own.write_text('{"prompt": "other", "completion": "x"}\n{"prompt": "another", "completion": "y z"}\n')
    assert evaluate(made, tmp_path / "out", [str(own)], "--num_prompts", "0") == 0
    summary = json.loads((tmp_path / "out" / "rewards.json").read_text())
    assert "rouge1" not in summary["systems"][0]["metrics"] and summary["notes"][0].startswith("No ROUGE: ")


def test_the_curve_of_runs_needs_no_model(make_run, tmp_path, capsys):
    assert main(["evaluate", "--run_dir", str(make_run()), "--output_dir", str(tmp_path / "out")]) == 0
    picture = tmp_path / "out" / "over_optimisation.png"
    assert str(picture) in capsys.readouterr().out and picture.read_bytes().startswith(b"\x89PNG")


def test_bad_input_is_one_paragraph_that_says_what_to_do(made, tmp_path, capsys):
    lacking = tmp_path / "lacking.jsonl"
    lacking.write_text('{"prompt": "p"}\n')
    cases = [
        ([], "give --systems .* or --run_dir"),
        (["--systems", str(lacking)], "has no column completion"),
        (["--systems", str(made / "sft"), "--names", "a", "b"], "--names has 2 names for 1 systems"),
        (["--systems", "x.jsonl", "y.jsonl", "--names", "a", "a"], "--names must be different ones"),
        (["--systems", str(tmp_path / "nowhere")], "--systems='.*nowhere'"),
        (["--systems", str(made / "given.jsonl"), "--judge_model_name_or_path", str(made / "sft")],
         "--judge_model_name_or_path=.* is no trained classifier"),
        (["--run_dir", str(tmp_path / "no-run")], "--run_dir='.*no-run' is no run folder: it has no metrics.jsonl"),
        (["--systems", str(made / "given.jsonl"), "--confidence", "2"], "confidence must lie strictly between"),
        (["--system", str(made / "given.jsonl")], "what no setting takes: --system .*did you mean --systems?"),
    ]  # fmt: skip
    for number, (flags, message) in enumerate(cases):
        assert main(["evaluate", *flags, "--output_dir", str(tmp_path / f"out{number}")]) == 2, message
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and re.search(message, error), (message, error)


def test_a_policy_and_a_reference_with_other_tokenizers_have_no_kl(made, tmp_path, capsys):
    other = tmp_path / "other"
    tokenizer = tiny_tokenizer(pad=True)
    tiny_gpt2(tokenizer).save_pretrained(other)
    tokenizer.save_pretrained(other)
    assert evaluate(made, tmp_path / "out", ["sft"], "--reference_model_name_or_path", other) == 2
    assert "have different tokenizers, so that no KL is defined" in capsys.readouterr().err


def test_the_help_names_every_setting_and_no_other(capsys):
    assert main(["evaluate", "--help"]) == 0
    assert capsys.readouterr().out == EVALUATE_HELP
    named = set(re.findall(r"--([a-z_]+[a-z])\b", EVALUATE_HELP)) - {"flag"}
    assert named == {field.name for field in fields(EvaluateArguments)}
