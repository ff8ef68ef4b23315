"""A killed run goes on exactly; a crashed environment ends it with a checkpoint. The environments are such that their
state does not matter: what is left is the learner.
"""

import json
import multiprocessing
import os
import re
import resource
import sys
import traceback
from pathlib import Path

import pytest
import torch

from scope_rlhf.control.a2c import train_a2c
from scope_rlhf.control.checkpoint import FREE_SETTINGS
from scope_rlhf.control.dqn import train_dqn
from scope_rlhf.control.ppo import train_ppo
from scope_rlhf.experiments.control_arguments import parse_control
from scope_rlhf.runtime import run_main
from scope_rlhf.runtime.checkpoints import changed_settings, find_checkpoint, save_checkpoint

HERE = Path(__file__).parent
ON_POLICY = ["--num_envs", "4", "--num_steps", "8", "--total_timesteps", "640"]
FLAGS = {
    "ppo": [*ON_POLICY, "--num_mini_batches", "2", "--ent_coef", "0.01", "--save_steps", "4", "--objective", "scope"],
    "ppo-noise": [
        *ON_POLICY, "--algorithm", "ppo", "--save_steps", "4", "--reward_flip_probability", "0.2",
        "--reward_noise_std", "0.1", "--critic", "hl_gauss", "--critic_kwargs", '{"v_min": -1, "v_max": 1}',
        "--repeat_action_probability", "0.25",
    ],
    "ppo-continuous": [
        *ON_POLICY, "--env", "bandit_environment:ContinuousBandit-v0", "--policy", "binned", "--save_steps", "4"
    ],
    "ppo-normalised": [
        *ON_POLICY, "--normalize_observations", "true", "--normalize_rewards", "true", "--save_steps", "4"
    ],
    "a2c": [*ON_POLICY, "--algorithm", "a2c", "--save_steps", "4"],
    "dqn": [
        "--algorithm", "dqn", "--num_envs", "2", "--total_timesteps", "640", "--learning_starts", "32", "--batch_size",
        "8", "--buffer_size", "100", "--target_update_frequency", "64", "--exploration_steps", "300",
        "--save_steps", "128",
    ],
}  # fmt: skip


def train(argv):
    """`scope-rlhf control` without its report, whose picture takes longer than the run."""
    algorithm, config = parse_control(argv)
    {"ppo": train_ppo, "a2c": train_a2c, "dqn": train_dqn}[algorithm](config)


def child(argv, output, variables):
    """The command in a forked process: its imports are there already."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = sys.stderr = os.fdopen(1, "w")  # pytest has put others in their place
    os.environ.update(variables)
    sys.path.insert(0, str(HERE))
    torch.set_num_threads(1)
    try:
        status = run_main(train, argv)
    except Exception:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    os._exit(status)


def run(folder, name, *more, **variables):
    """(exit status, what it said)."""
    argv = ["--suite", "gymnasium", "--env", "bandit_environment:Bandit-v0", "--output_dir", str(folder)]
    argv += ["--num_eval_episodes", "2", *FLAGS[name], *more]
    output = folder.parent / "output.txt"
    process = multiprocessing.get_context("fork").Process(target=child, args=(argv, output, variables))
    process.start()
    process.join(120)
    return process.exitcode, output.read_text()


def final(folder):
    newest = max(folder.glob("checkpoint-*"), key=lambda f: int(f.name[11:]))
    states = [torch.load(newest / name, weights_only=True) for name in ("learner.pt", "process-0.pt")]
    return newest.name, states


def differences(one, two, path=""):
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        return [d for key in one for d in differences(one[key], two[key], f"{path}/{key}")]
    if isinstance(one, list | tuple):
        assert len(one) == len(two), path
        return [d for i, pair in enumerate(zip(one, two, strict=True)) for d in differences(*pair, f"{path}/{i}")]
    same = torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two
    return [] if same else [path]


@pytest.mark.parametrize("name", FLAGS)
def test_a_killed_run_that_is_resumed_ends_with_the_learner_of_an_uninterrupted_one(tmp_path, name):
    status, said = run(tmp_path / "whole", name)
    assert status == 0, said
    # Between two checkpoints, and within a rollout.
    assert run(tmp_path / "killed", name, BANDIT_KILL="53" if name != "dqn" else "100")[0] == -9
    assert not (tmp_path / "killed" / "finished.json").exists()
    saved = sorted(int(f.name[11:]) for f in (tmp_path / "killed").glob("checkpoint-*"))
    assert saved
    assert saved[-1] < 640
    status, said = run(tmp_path / "killed", name, "--resume")
    assert status == 0, said
    (step, expected), (step_too, found) = final(tmp_path / "whole"), final(tmp_path / "killed")
    assert step == step_too == "checkpoint-640"
    assert differences(expected, found) == []
    lines = [json.loads(line)["step"] for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    whole_lines = [json.loads(line)["step"] for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert lines == whole_lines


@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_an_environment_that_crashes_ends_the_run_with_a_checkpoint_that_resumes_exactly(tmp_path, name):
    status, said = run(tmp_path / "crashed", name, "--save_steps", "0", BANDIT_CRASH="53")
    assert status == 1
    assert "the simulator lost its mind" in said
    assert "--resume goes on from there" in said
    assert (tmp_path / "crashed" / "error.txt").exists()
    status, said = run(tmp_path / "crashed", name, "--save_steps", "0", "--resume")
    assert status == 0, said
    if name == "ppo":  # DQN's environments were one step further than its replay
        run(tmp_path / "whole", name, "--save_steps", "0")
        assert differences(final(tmp_path / "whole")[1], final(tmp_path / "crashed")[1]) == []


@pytest.mark.parametrize("name", ["ppo", "a2c", "dqn"])
def test_ctrl_c_ends_the_run_after_an_update_with_a_checkpoint_that_resumes_exactly(tmp_path, name):
    """It lost all since the last checkpoint: with the default save_steps, everything."""
    status, said = run(tmp_path / "stopped", name, "--save_steps", "0", BANDIT_INTERRUPT="53")
    assert status == 130, said
    assert "saving after this update" in said
    assert "--resume goes on from there" in said
    status, said = run(tmp_path / "stopped", name, "--save_steps", "0", "--resume")
    assert status == 0, said
    if name != "dqn":  # whose environments were within an episode, and begin new ones
        run(tmp_path / "whole", name, "--save_steps", "0")
        assert differences(final(tmp_path / "whole")[1], final(tmp_path / "stopped")[1]) == []


def test_a_second_ctrl_c_ends_the_run_at_once(tmp_path):
    status, said = run(tmp_path / "stopped", "ppo", "--save_steps", "0", BANDIT_INTERRUPT="53", BANDIT_INTERRUPTS="2")
    assert status == 130, said
    assert "is saved" not in said


@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_an_environment_that_crashes_in_an_evaluation_does_not_lose_the_learner(tmp_path, name):
    every = "4" if name == "ppo" else "128"
    flags = ["--save_steps", "0", "--eval_steps", every, "--num_eval_episodes", "1"]
    status, said = run(tmp_path / "crashed", name, *flags, BANDIT_CRASH_SEED="10000")
    assert status == 1
    assert "an evaluation failed: RuntimeError: no bandit with this seed" in said
    assert "--resume goes on from there" in said
    status, said = run(tmp_path / "crashed", name, *flags, "--resume")
    assert status == 0, said
    run(tmp_path / "whole", name, *flags)
    assert differences(final(tmp_path / "whole")[1], final(tmp_path / "crashed")[1]) == []


@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_an_evaluation_whose_environments_cannot_be_made_does_not_lose_the_learner(tmp_path, name):
    every = "4" if name == "ppo" else "128"
    flags = ["--save_steps", "0", "--eval_steps", every, "--num_eval_episodes", "1"]
    made = 1 + (4 if name == "ppo" else 2)  # the probe's and the training's
    status, said = run(tmp_path / "run", name, *flags, BANDIT_MAKE=str(made + 2))
    assert status == 1
    assert "an evaluation failed to start: OSError: no more licences" in said
    assert "--resume goes on from there" in said
    assert run(tmp_path / "run", name, *flags, "--resume")[0] == 0


@pytest.mark.parametrize("what", ["observation", "reward"])
@pytest.mark.parametrize("name", ["ppo", "dqn"])
def test_an_environment_that_gives_nan_is_named_and_does_not_lose_the_learner(tmp_path, name, what):
    """It was told as a run that has diverged, or as returns that the critic cannot take."""
    status, said = run(tmp_path / "run", name, "--save_steps", "0", BANDIT_NAN=f"53 {what}")
    assert status == 1
    assert re.search(rf"environment \d gave an? {what} that is NaN or infinite", said), said
    assert "--resume goes on from there" in said
    assert run(tmp_path / "run", name, "--save_steps", "0", "--resume")[0] == 0


def _without(file, key):
    state = torch.load(file, weights_only=True)
    del state[key]
    torch.save(state, file)


def _flip_a_byte_of_a_weight(file):
    content = bytearray(file.read_bytes())
    weight = next(iter(torch.load(file, weights_only=True)["model"].values()))
    content[content.index(weight.numpy().tobytes())] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "checkpoint.json").write_text('{"step": 640}'), "checkpoint.json is damaged, .* has no algor"),
        (lambda f: (f / "checkpoint.json").write_text("{"), "checkpoint.json cannot be read"),
        (lambda f: _without(f / "learner.pt", "model"), "learner.pt is damaged, or of another version: no model in it"),
        (lambda f: _without(f / "process-0.pt", "random"), "process-0.pt is damaged, or of another version: no random"),
        (lambda f: _flip_a_byte_of_a_weight(f / "learner.pt"), "learner.pt cannot be loaded .*is not what was written"),
        (lambda f: (f / "learner.pt").write_bytes(b""), "learner.pt cannot be loaded"),
    ],
)
def test_a_damaged_checkpoint_is_told_with_its_file_and_the_way_out(tmp_path, damage, message):
    """A flipped bit went on unnoticed, a missing part ended with KeyError."""
    assert run(tmp_path / "run", "ppo", "--num_eval_episodes", "0")[0] == 0
    damage(tmp_path / "run" / "checkpoint-640")
    status, said = run(tmp_path / "run", "ppo", "--resume", "--total_timesteps", "1280", "--num_eval_episodes", "0")
    assert status == 2, said
    assert re.search(message + r".*; set --resume_from_checkpoint \S*checkpoint-512 in place of --resume\.", said)


def test_an_interrupt_while_a_checkpoint_takes_the_place_of_another_of_its_step_loses_none(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, {}, {"a": 1}, {})

    def interrupted(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, 1, {}, {"a": 2}, {})
    assert find_checkpoint(tmp_path, True, None) == tmp_path / "checkpoint-1"
    assert torch.load(tmp_path / "checkpoint-1" / "learner.pt") == {"a": 2}


def test_a_full_disk_is_told_with_the_checkpoint_and_loses_none(tmp_path):
    def save(step):
        return save_checkpoint(tmp_path, step, {}, {"model": torch.zeros(10_000)}, {}, keep=1)

    kept = save(1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"checkpoint-2 cannot be written to .*Free some space, or set --output_dir"):
            save(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [f.name for f in tmp_path.iterdir()] == [kept.name]


def test_a_resumed_run_says_which_settings_are_others_and_refuses_what_cannot_go_on(tmp_path):
    assert run(tmp_path / "run", "ppo")[0] == 0
    for flags, message in [
        (["--num_envs", "2"], "its num_envs is 4, this run has 2; set --num_envs"),
        (["--num_steps", "16"], "its num_steps is 8, this run has 16"),
        (["--total_timesteps", "320"], "is at step 640, beyond total_timesteps=320; set --total_timesteps"),
    ]:
        status, said = run(tmp_path / "run", "ppo", "--resume", *flags)
        assert status == 2 and message in said, said
    more = ["--resume", "--total_timesteps", "704", "--gamma", "0.5"]
    status, said = run(tmp_path / "run", "ppo", *more)
    assert status == 0, said
    before, now = ({"gamma": gamma, "seed": 1, "total_timesteps": gamma, "bins": None} for gamma in (0.99, 0.5))
    (tmp_path / "config.json").write_text(json.dumps({"arguments": before}))
    assert changed_settings(tmp_path / "checkpoint-4", now, FREE_SETTINGS) == "gamma 0.99 -> 0.5"
    assert (
        changed_settings(tmp_path / "checkpoint-4", before, FREE_SETTINGS)
        == changed_settings(tmp_path / "a/checkpoint-4", now, FREE_SETTINGS)
        == ""
    )
    status, said = run(tmp_path / "run", "ppo", *more, "--objective", "ppo")
    assert status == 2 and "--allow_objective_change true" in said
    status, said = run(tmp_path / "run", "ppo", *more, "--objective", "ppo", "--allow_objective_change", "true")
    assert status == 0, said


def test_a_replay_larger_than_the_run_goes_on_in_a_longer_run(tmp_path):
    large = ["--buffer_size", "1000"]
    assert run(tmp_path / "run", "dqn", *large)[0] == 0
    status, said = run(tmp_path / "run", "dqn", *large, "--resume", "--total_timesteps", "704")
    assert status == 0, said
    assert final(tmp_path / "run")[0] == "checkpoint-704"


@pytest.mark.parametrize("name", ["ppo", "a2c", "dqn"])
def test_a_run_that_diverges_ends_with_the_reason_and_keeps_its_checkpoints(tmp_path, name):
    """It ended with `236 of 236 returns are NaN`, or went on and wrote such weights over the good ones."""
    assert run(tmp_path / "run", name)[0] == 0
    kept = final(tmp_path / "run")
    more = ["--resume", "--learning_rate", "1e30", "--total_timesteps", "1280"]
    more += ["--save_total_limit", "1", "--save_steps", "1" if name != "dqn" else "2"]
    status, said = run(tmp_path / "run", name, *more)
    assert status == 2, said
    assert "the run has diverged: " in said
    assert "set a lower --learning_rate" in said
    found = final(tmp_path / "run")
    assert all(bool(weight.isfinite().all()) for weight in found[1][0]["model"].values())
    assert int(found[0][11:]) >= int(kept[0][11:])


def test_a_kill_while_a_checkpoint_takes_the_place_of_another_of_its_step_loses_none(tmp_path):
    """Between removing the old and renaming the new there was no checkpoint that --resume would find."""
    assert run(tmp_path / "run", "ppo", "--save_total_limit", "1")[0] == 0
    (tmp_path / "run" / "checkpoint-640").rename(tmp_path / "run" / ".checkpoint-640.tmp")
    (tmp_path / "run" / ".checkpoint-768.tmp").mkdir()  # an unfinished one
    status, said = run(tmp_path / "run", "ppo", "--resume", "--total_timesteps", "768")
    assert status == 0, said
    assert "set other" not in said
    assert final(tmp_path / "run")[0] == "checkpoint-768"


def test_a_checkpoint_of_another_network_environment_or_critic_is_refused_before_anything_starts(tmp_path):
    assert run(tmp_path / "run", "ppo")[0] == 0
    for flags, message in [
        (["--hidden_sizes", "32"], "network"),
        (["--env", "bandit_environment:ContinuousBandit-v0"], "env"),
        (["--critic", "two_hot", "--critic_kwargs", '{"v_min": 0, "v_max": 1}'], "trained as another kind"),
        (["--objective", "ppo"], "objective"),
        (["--algorithm", "a2c", "--num_mini_batches"], "num_mini_batches"),
    ]:
        status, said = run(tmp_path / "run", "ppo", "--resume", *flags, BANDIT_CRASH="1")
        assert status == 2, (flags, said)
        assert message in said
        assert "lost its mind" not in said
    status, said = run(tmp_path / "run", "ppo")
    assert status == 2
    assert "holds another run" in said
    status, said = run(tmp_path / "none", "ppo", "--resume")
    assert status == 2
    assert "has no checkpoint" in said
