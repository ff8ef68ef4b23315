"""Runs that SIGKILL ends in an update or in the writing of a checkpoint, resumed by another process."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from scope_rlhf.experiments.resume import find_checkpoint
from tests.trainers.resume_script import COMMON, make_trainer, trained_weights

ROOT = Path(__file__).parents[2]
STEPS, ROLLOUT = COMMON["max_steps"], 4  # updates in all, and from one rollout
CHOICE = random.Random(20)
# Killed in the update after this one. 8 and 12 are ends of a rollout, 12 for PPO of a data epoch too.
ALIGNED = {kind: CHOICE.choice(range(ROLLOUT, STEPS, ROLLOUT)) for kind in ("ppo", "grpo")}
UNALIGNED = {kind: CHOICE.choice([s for s in range(1, STEPS) if s % ROLLOUT]) for kind in ("ppo", "grpo")}


def launch(kind: str, folder: Path, *arguments: str, expected: int = 0) -> None:
    """Run resume_script in a process, which must end with the expected code."""
    command = [sys.executable, "-m", "tests.trainers.resume_script", kind, str(folder), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == expected, done.stderr[-3000:]


def newest(folder: Path) -> Path:
    found = find_checkpoint(SimpleNamespace(resume_from_checkpoint="true", output_dir=str(folder)))
    assert found is not None
    return Path(found)


def assert_finishes_as(weights: dict[str, torch.Tensor], kind: str, folder: Path) -> None:
    launch(kind, folder, str(newest(folder)), "--save-to", str(folder / "weights.safetensors"))
    found = load_file(folder / "weights.safetensors")
    assert found.keys() == weights.keys()
    assert ("base_model.model.value_head.weight" in found) == (kind == "ppo")
    for name, weight in weights.items():
        assert torch.equal(weight, found[name]), name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """uninterrupted(kind): the weights after all steps, in this process."""
    done = {}

    def get(kind):
        if kind not in done:
            trainer = make_trainer(kind, tmp_path_factory.mktemp(kind), save_strategy="no")
            start = trained_weights(trainer)
            trainer.train()
            done[kind] = trained_weights(trainer)
            assert all(not torch.equal(weight, start[name]) for name, weight in done[kind].items())
        return done[kind]

    return get


def kill_in_step_and_resume(folder: Path, kind: str, step: int, weights: dict[str, torch.Tensor]) -> None:
    launch(kind, folder, "--kill-in-step", str(step + 1), expected=-signal.SIGKILL)
    assert newest(folder).name == f"checkpoint-{step}"
    assert not (folder / "weights.safetensors").exists()
    assert_finishes_as(weights, kind, folder)


def test_ppo_killed_within_a_rollout_ends_with_the_weights_of_the_uninterrupted_run(tmp_path, uninterrupted):
    kill_in_step_and_resume(tmp_path, "ppo", UNALIGNED["ppo"], uninterrupted("ppo"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "step"),
    [("ppo", ALIGNED["ppo"]), ("grpo", ALIGNED["grpo"]), ("grpo", UNALIGNED["grpo"]), ("distillation", 7)],
)
def test_a_killed_run_ends_with_the_weights_of_the_uninterrupted_one(tmp_path, uninterrupted, kind, step):
    kill_in_step_and_resume(tmp_path, kind, step, uninterrupted(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_a_run_killed_while_it_writes_a_checkpoint_goes_on_from_the_one_before(tmp_path, uninterrupted, kind):
    launch(kind, tmp_path, "--kill-in-save", "7", expected=-signal.SIGKILL)
    cut = tmp_path / "checkpoint-7"
    assert (cut / "optimizer.pt").exists() and (cut / "rollout_rank0.pt").exists()
    assert newest(tmp_path).name == "checkpoint-6"
    assert_finishes_as(uninterrupted(kind), kind, tmp_path)


@pytest.mark.slow
def test_a_run_killed_four_times_by_the_clock_ends_with_the_weights_of_the_uninterrupted_one(tmp_path, uninterrupted):
    """Whatever it is doing then: sampling, updating, or writing any file of a checkpoint."""
    delays, steps = random.Random(3), []
    for _ in range(4):
        checkpoint = [str(newest(tmp_path))] if steps else []
        launch("ppo", tmp_path, *checkpoint, "--kill-after", str(delays.uniform(0, 0.06)), expected=-signal.SIGKILL)
        steps.append(int(newest(tmp_path).name.removeprefix("checkpoint-")))
    assert steps == sorted(set(steps)) and steps[-1] < STEPS
    assert_finishes_as(uninterrupted("ppo"), "ppo", tmp_path)


def damaged(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    "file",
    [
        "trainer_state.json", "objective.json", "critic.safetensors", "critic.json", "ppo_state.json", "optimizer.pt",
        "scheduler.pt", "rng_state.pth", "adapter_model.safetensors",
    ],
)  # fmt: skip
def test_a_checkpoint_with_a_file_cut_off_is_passed_over_or_refused_by_name(tmp_path, file):
    settings = {"max_steps": 2, "use_score_scaling": False, "use_score_norm": False}
    make_trainer("ppo", tmp_path, **settings).train()
    damaged(tmp_path / "checkpoint-2" / file)
    again = make_trainer("ppo", tmp_path, **settings)
    if file == "trainer_state.json":  # the last one to be written: what a kill leaves
        assert newest(tmp_path).name == "checkpoint-1"
        again.train(resume_from_checkpoint=True)
        assert again.state.global_step == 2 and again._micro_batches_before == 1
        return
    assert newest(tmp_path).name == "checkpoint-2"
    with pytest.raises(ValueError, match=r"checkpoint-2.*damaged"):
        again.train(resume_from_checkpoint=True)


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_that_lacks_a_file_is_refused_instead_of_becoming_another_run(tmp_path, kind, file):
    make_trainer(kind, tmp_path, max_steps=1).train()
    (tmp_path / "checkpoint-1" / file).unlink()
    with pytest.raises(ValueError, match=rf"checkpoint-1 cannot be resumed exactly: it lacks {file}"):
        make_trainer(kind, tmp_path, max_steps=2).train(resume_from_checkpoint=True)


def test_a_checkpoint_of_save_only_model_is_refused_by_that_name(tmp_path):
    make_trainer("ppo", tmp_path, max_steps=1, save_only_model=True).train()
    with pytest.raises(ValueError, match=r"lacks optimizer.pt, scheduler.pt.* --save_only_model"):
        make_trainer("ppo", tmp_path, max_steps=2).train(resume_from_checkpoint=True)
