"""The recipe as a user runs it: the whole chain on tiny models, what it leaves, what it does not do twice, mistakes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.recipes.tldr_files import chain_words, write_files, write_stage_configs

ROOT = Path(__file__).parents[2]


def command(*words: str, recipe: str = "tldr_scope.py") -> list[str]:
    return [sys.executable, str(ROOT / "recipes" / recipe), *words]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(*words: str, cwd: Path, recipe: str = "tldr_scope.py") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words, recipe=recipe), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return (*write_files(folder), *write_stage_configs(folder))


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    done = run(*chain_words(*files, "out"), cwd=folder)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "out", done


def stages(root: Path) -> dict[str, Path]:
    return {path.name.rsplit("-", 1)[0]: path for path in root.iterdir()}


def test_every_stage_leaves_its_folder_model_and_figures(finished):
    root, done = finished
    found = stages(root)
    assert set(found) == {"sft", "reward", "judge", "ppo-scope-42", "winrate-ppo-scope-42"}
    results = {name: json.loads((path / "stage.json").read_text())["results"] for name, path in found.items()}
    assert results["sft"]["after"]["loss"] != results["sft"]["before"]["loss"]
    assert 0 <= results["sft"]["after"]["rougeL"] <= 1
    for role in ("reward", "judge"):
        assert results[role]["accuracy"]["n"] == results[role]["held_out_pairs"] > 20
        assert not results[role]["synthetic"]
        assert (found[role] / "calibration.png").stat().st_size > 10_000
        assert json.loads((found[role] / "model" / "config.json").read_text())["reward_offset"] == pytest.approx(
            results[role]["offset"]
        )
    assert results["judge"]["seed"] == results["reward"]["seed"] + 1
    # No prompt trains both: together they have the 30 pairs of the training split.
    assert results["judge"]["train_pairs"] + results["reward"]["train_pairs"] == 30
    for name in ("sft", "reward", "judge"):
        assert "huggingface.co/None" not in (found[name] / "README.md").read_text()  # TRL's card
    pairs = [(c["system_a"]["name"], c["system_b"]["name"]) for c in results["winrate-ppo-scope-42"]["comparisons"]]
    assert pairs == [("rl", "sft"), ("rl", "references"), ("sft", "references")]
    assert (found["winrate-ppo-scope-42"] / "pairs.html").stat().st_size > 3_000
    assert (found["winrate-ppo-scope-42"] / "win_rate.png").stat().st_size > 10_000
    assert "win rate" in done.stdout and "Traceback" not in done.stderr


def test_the_card_and_the_report_of_the_policy_carry_the_win_rate(finished):
    root, _ = finished
    policy = stages(root)["ppo-scope-42"]
    evaluation = json.loads((policy / "evaluation.json").read_text())
    rate = evaluation["win_rates"][0]["win_rate"]["rate"]
    card = (policy / "model" / "README.md").read_text()
    assert "type: win_rate" in card and f"value: {round(rate['value'], 4)}" in card
    assert "length-controlled" in (policy / "report.md").read_text()
    assert "over_optimisation.png" in (policy / "report.md").read_text()
    assert (policy / "over_optimisation.png").stat().st_size > 10_000


def test_a_second_run_makes_nothing_again_and_prints_the_same_win_rate(files, finished):
    root, first = finished
    times = {path: path.stat().st_mtime_ns for path in root.rglob("stage.json")}
    started = time.perf_counter()
    again = run(*chain_words(*files, "out"), cwd=root.parent)
    assert again.returncode == 0, again.stderr[-3000:]
    assert {path: path.stat().st_mtime_ns for path in root.rglob("stage.json")} == times
    assert again.stdout.count("done before") >= 5

    def table(text: str) -> str:
        return text[text.index("rl against sft") : text.index("TL;DR", text.index("rl against sft"))]

    assert table(again.stdout) == table(first.stdout)
    assert time.perf_counter() - started < 120


def test_the_output_folder_can_be_moved(files, finished, tmp_path):
    """Was: the next stage looked for the models where they had been made."""
    root, _ = finished
    shutil.copytree(root, tmp_path / "out")
    (stages(tmp_path / "out")["ppo-scope-42"] / "stage.json").unlink()  # RL was interrupted, and goes on elsewhere
    root.rename(away := root.with_name("away"))
    try:
        done = run(*chain_words(*files, "out"), "--num_win_rate_prompts", "3", cwd=tmp_path)
    finally:
        away.rename(root)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("done before, out") == 3


@pytest.mark.slow
def test_another_seed_makes_rl_and_win_rate_only(files, finished):
    root, _ = finished
    done = run(*chain_words(*files, "out"), "--seed", "43", "--objective", "ppo", cwd=root.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    assert set(stages(root)) >= {"ppo-ppo-43", "winrate-ppo-ppo-43"}
    assert len([path for path in root.iterdir() if path.name.startswith(("sft", "reward", "judge"))]) == 3


@pytest.mark.slow
def test_a_chain_that_was_killed_ends_with_the_same_verdicts(files, finished, tmp_path):
    """Killed in the middle of SFT and in the middle of RL, each behind its first checkpoint."""
    root, _ = finished
    for pattern in ("sft-*/checkpoint-1/trainer_state.json", "ppo-scope-42-*/checkpoint-1/trainer_state.json"):
        process = subprocess.Popen(
            command(*chain_words(*files, "out")), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        ends = time.monotonic() + 240
        while not list((tmp_path / "out").glob(pattern)) and process.poll() is None and time.monotonic() < ends:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert list((tmp_path / "out").glob(pattern))
    done = run(*chain_words(*files, "out"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    name = "winrate-ppo-scope-42"
    there, here = stages(tmp_path / "out")[name], stages(root)[name]
    assert there.name == here.name  # the same inputs, to the letter
    for file in ("completions_rl.jsonl", "completions_sft.jsonl", "rl-sft/pairs.jsonl", "rl-references/pairs.jsonl"):
        assert (there / file).read_text() == (here / file).read_text()


def test_gptj_runs_the_chain_with_lora_by_grpo(tmp_path):
    model, data = write_files(tmp_path, "gptj")
    words = chain_words(model, data, *write_stage_configs(tmp_path), "out")
    more = ["--algorithm", "grpo", "--use_peft", "--lora_r", "2", "--num_generations", "2", "--steps_per_generation",
            "1", "--objective", "symmetric"]  # fmt: skip
    done = run(*words, *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    adapter = stages(tmp_path / "out")["grpo-symmetric-42"] / "model" / "adapter_config.json"
    assert sorted(json.loads(adapter.read_text())["target_modules"]) == ["q_proj", "v_proj"]


def test_sft_alone_says_that_it_is_done(files, finished):
    model, data, sft, _ = files
    words = ["--config", str(sft), "--model_name_or_path", str(model), "--dataset_name", str(data), "--output_dir",
             "alone", "--dataset_train_split", "train[:50%]", "--dataset_test_split", "train[50%:]",
             "--max_prompt_length", "44"]  # fmt: skip
    first = run(*words, cwd=finished[0].parent, recipe="tldr_sft.py")
    assert first.returncode == 0, first.stderr[-3000:]
    assert "rougeL" in first.stdout
    assert "training: " in first.stderr  # was: no progress line in any recipe
    (card,) = (finished[0].parent / "alone").glob("sft-*/model/README.md")
    assert "On 8 summaries that were not trained on" in card.read_text()
    assert "done before" in run(*words, cwd=finished[0].parent, recipe="tldr_sft.py").stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reward_model_name_or_path", "./nowhere"], "--reward_model_name_or_path='./nowhere' does not exist"),
        (["--judge_model_name_or_path", "./nowhere"], "--judge_model_name_or_path='./nowhere' does not exist"),
        (["--sft_config", "missing.yaml"], "--sft_config 'missing.yaml' is not a file"),
        (["--resume_from_checkpoint", "out"], "the chain goes on by itself"),
        (["--critic_from_reward_model", "--algorithm", "grpo"], "critic_from_reward_model needs a critic"),
        (["--num_train_prompts", "1000000"], "rows, fewer than the 1000000 asked for"),
        (
            ["--reward_model_name_or_path", "embedded/sentiment-reward", "--critic_from_reward_model"],
            "--critic_from_reward_model: ",
        ),
        (["--num_train_prompts", "8"], "the training set has 8 prompts, but one generation batch takes"),
        (["--dataset_test_split", "nothing"], "dataset_test_split of documentation must be one of"),
        (["--num_win_rate_prompts", "1"], "num_win_rate_prompts must be at least 2"),
        (["--win_rate_temperature", "-1"], "win_rate_temperature must be at least 0"),
        (["--objektive", "scope"], "did you mean --objective"),
    ],
)
def test_mistakes_are_named_before_anything_is_made(words, message, tmp_path, monkeypatch, capsys):
    from scope_rlhf.experiments.tldr import main
    from scope_rlhf.runtime import run_main

    monkeypatch.chdir(tmp_path)
    assert run_main(main, words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_arguments_are_the_embedded_chain_with_a_useful_reward_model_and_a_win_over_sft(tmp_path):
    """Its time on two quiet cores is in the README; here only that it ends, and what the README says of it."""
    done = subprocess.run(
        command("--disable_tqdm", "true"), cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=1700,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found = stages(tmp_path / "runs" / "tldr")
    results = {name: json.loads((path / "stage.json").read_text())["results"] for name, path in found.items()}
    assert results["sft"]["after"]["loss"] < results["sft"]["before"]["loss"] - 0.3
    assert results["sft"]["after"]["rougeL"] > 1.5 * results["sft"]["before"]["rougeL"]
    assert results["reward"]["accuracy"]["value"] >= 0.75
    over_sft = results["winrate-ppo-scope-42"]["comparisons"][0]["win_rate"]["rate"]
    assert over_sft["value"] >= 0.6 and over_sft["low"] > 0.5


def test_an_edited_objective_is_another_stage(files, finished):
    """Was: "done before" with the old formula's results."""
    root = finished[0]
    source = (ROOT / "tests" / "data" / "quadratic_penalty.py").read_text()
    own = root.parent / "own.py"
    words = [
        *chain_words(*files, "out"),
        "--objective",
        f"{own}:QuadraticPenalty",
        "--judge_model_name_or_path",
        "none",
    ]
    for text in (source, source + "\n# another formula\n"):
        own.write_text(text)
        done = run(*words, cwd=root.parent)
        assert done.returncode == 0, done.stderr[-3000:]
    assert len(list(root.glob("ppo-QuadraticPenalty-42-*/stage.json"))) == 2


@pytest.mark.slow
def test_two_processes_finish_the_chain(files, tmp_path):
    """Was: the end of RL ended the process group that the stages wait by."""
    words = chain_words(*files, "out")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29653"]
    done = subprocess.run(
        [*torchrun, str(ROOT / "recipes" / "tldr_scope.py"), *words], cwd=tmp_path, env=environment(),
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert set(stages(tmp_path / "out")) == {"sft", "reward", "judge", "ppo-scope-42", "winrate-ppo-scope-42"}


def test_prompts_that_only_differ_behind_the_cut_are_measured_once(tmp_path):
    """Was: "has a prompt twice" at the end of the embedded chain."""
    from scope_rlhf.experiments.tldr import evaluation_prompts, load_prompts
    from scope_rlhf.experiments.tldr_arguments import TldrArguments
    from scope_rlhf.trainers import ScopeGRPOConfig
    from tests.tiny import tiny_tokenizer

    rows = [{"post": f"a film\n{'good ' * 40}{n}", "summary": "good"} for n in range(4)]
    rows += [{"post": f"bad {n}", "summary": "bad"} for n in range(6)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = TldrArguments(
        dataset_name=str(data), dataset_train_split="train[:3]", dataset_test_split="train", max_prompt_length=30
    )
    found = evaluation_prompts(script, tiny_tokenizer(), 100)
    assert len(found) == len(set(found["prompt"])) == 7
    train, evaluation = load_prompts(script, ScopeGRPOConfig(str(tmp_path), use_cpu=True), tiny_tokenizer())
    assert not set(train["prompt"]) & set(evaluation["prompt"]) and len(evaluation) == 6
