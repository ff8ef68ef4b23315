"""The recipe as a user starts it, with two updates of everything."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = [
    "--teacher_sft_steps", "4", "--student_sft_steps", "2", "--max_steps", "2", "--num_train_prompts", "64",
    "--num_eval_prompts", "4", "--num_samples", "2", "--k", "1", "2", "--per_device_train_batch_size", "8",
    "--num_generations", "4", "--save_steps", "1", "--jobs", "1", "--logging_steps", "1",
]  # fmt: skip


def recipe(folder, *flags, timeout=280):
    command = [sys.executable, str(ROOT / "recipes" / "distill_dual_path.py"), *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout)


def test_two_updates_of_every_row_and_nothing_is_made_twice(tmp_path):
    done = recipe(tmp_path, *SMALL, "--output_dir", "out")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr
    out = tmp_path / "out"
    rows = [json.loads(line) for line in (out / "table.jsonl").read_text().splitlines()]
    assert [row["row"] for row in rows] == ["teacher", "start", "opd", "opd num_generations=1", "grpo", "scope"]
    for row in rows:
        assert {"accuracy", "avg", "pass@1", "pass@2"} <= set(row["metrics"])
        assert ("kl_wrong" in row["metrics"]) == (row["row"] != "teacher")
        assert row["metrics"]["pass@1"] == pytest.approx(row["metrics"]["avg"])
    logs = {folder.name.rsplit("-", 2)[0]: folder for folder in out.glob("*-seed1-*")}
    for name in ("opd", "opd-num_generations-1", "grpo", "scope"):
        logged = [json.loads(line) for line in (logs[name] / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in logged] == [1, 2]
        assert ("distillation/teacher_perplexity" in logged[0]) == (name != "grpo")
        assert (logs[name] / "model" / "model.safetensors").exists()
    again = recipe(tmp_path, *SMALL, "--output_dir", "out", "--methods", "opd", "scope", "scope tau=2")
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.count("done before") == 2  # teacher and student
    more = [json.loads(line) for line in (out / "table.jsonl").read_text().splitlines()]
    assert [row["row"] for row in more] == ["teacher", "start", "opd", "scope", "scope tau=2"]
    assert more[2] == rows[2] and more[3] == rows[5]


def test_models_by_name_on_the_other_task_with_lora(tmp_path):
    first = recipe(tmp_path, *SMALL, "--output_dir", "out", "--dataset_name", "arithmetic", "--methods", "opd",
                   "--task_kwargs", '{"digits": [1, 1]}')  # fmt: skip
    assert first.returncode == 0, first.stderr[-3000:]
    folders = {folder.name.split("-")[0]: folder / "model" for folder in (tmp_path / "out").glob("*-*")}
    done = recipe(
        tmp_path, *SMALL, "--output_dir", "named", "--dataset_name", "arithmetic", "--methods", "scope", "--use_peft",
        "--model_name_or_path", str(folders["student"]), "--teacher_model_name_or_path", str(folders["teacher"]),
        "--per_device_train_batch_size", "8", "--gradient_checkpointing", "false", "--max_completion_length", "8",
        "--seeds", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line)["row"] for line in (tmp_path / "named" / "table.jsonl").read_text().splitlines()]
    assert rows == ["teacher", "start", "scope", "scope"]
    assert len(list((tmp_path / "named").glob("scope-*/model/adapter_model.safetensors"))) == 2


def test_bad_settings_are_told_in_one_paragraph(tmp_path):
    done = recipe(tmp_path, "--methods", "scope", "scope tua=2")
    assert done.returncode == 2 and "did you mean tau" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
