"""Each control recipe makes two updates and ends with a report; each of the papers' settings parses and makes one."""

import importlib
import importlib.util
import json
from pathlib import Path

import pytest

from scope_rlhf.experiments.control_arguments import parse_control
from scope_rlhf.runtime import RunFolder, run_main

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--num_envs", "2", "--num_steps", "8", "--num_mini_batches", "2", "--num_ppo_epochs", "1"]
SMALL += ["--total_timesteps", "32"]
FEW = ["--num_eval_episodes", "1", "--seed", "3"]
A2C = ["--num_envs", "2", "--num_steps", "4", "--total_timesteps", "16", "--logging_steps", "1"]
DQN = ["--total_timesteps", "60", "--learning_starts", "40", "--buffer_size", "100", "--batch_size", "4"]
RECIPES = {
    # Boxing: an Atari game that is over after two minutes; the others take an evaluation too long.
    "atari_ppo": [*SMALL, "--env", "Boxing", "--num_eval_episodes", "0"],
    "atari_a2c": [*A2C, "--env", "Boxing", "--num_eval_episodes", "0"],
    "atari_dqn": [*DQN, "--env", "Boxing", "--num_eval_episodes", "0"],
    "procgen_ppo": [*SMALL, "--env", "StarPilot", *FEW],
    "mujoco_ppo": [*SMALL, "--env", "Hopper", *FEW],
    "box2d_ppo": [*SMALL, *FEW],
    "classic_ppo": [*SMALL, *FEW, "--objective", "scope"],
}


def skip_without(name):
    if name.startswith("procgen") and importlib.util.find_spec("envpool") is None:
        pytest.skip("needs the extra procgen")


@pytest.mark.parametrize("name", RECIPES)
def test_two_updates_of_each_recipe_end_with_a_report(tmp_path, name, capsys):
    skip_without(name)
    main = importlib.import_module(f"recipes.{name}").main
    assert run_main(main, [*RECIPES[name], "--output_dir", str(tmp_path)]) == 0, capsys.readouterr().err
    run = RunFolder(tmp_path)
    updates = [row for row in run.read_metrics() if any(key.startswith("losses/") for key in row)]
    assert updates[-1]["step"] == (60 if name == "atari_dqn" else updates[0]["step"] * 2)
    report = (tmp_path / "report.md").read_text()
    assert "curves.png" in report
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert "Run it again" in report
    assert len((run.read_evaluation() or {"returns": []})["returns"]) == (0 if name.startswith("atari") else 1)
    assert str(tmp_path) in capsys.readouterr().out


@pytest.mark.parametrize(
    "file",
    sorted(
        f.name
        for f in (ROOT / "recipes/configs").glob("*.yaml")
        if f.name.startswith(("atari", "procgen", "mujoco", "box2d"))
    ),
)
def test_the_settings_of_the_papers_parse_and_train(tmp_path, file, capsys):
    skip_without(file)
    recipe = "_".join(file.split("_")[:2])
    small = {"ppo": SMALL, "a2c": A2C, "dqn": DQN}[recipe.rpartition("_")[2]]
    path = str(ROOT / "recipes/configs" / file)
    main = importlib.import_module(f"recipes.{recipe}").main
    argv = ["--config", path, *small, "--num_eval_episodes", "0", "--output_dir", str(tmp_path)]
    if "scope" in file:
        argv += ["--num_mini_batches", "1"]  # the residual network is slow
    assert run_main(main, argv) == 0, capsys.readouterr().err
    config = json.loads((tmp_path / "config.json").read_text())
    _, whole = parse_control(["--config", path], algorithm=recipe.rpartition("_")[2])
    assert config["arguments"]["learning_rate"] == whole.learning_rate
    assert config["arguments"]["env"] == whole.env


def test_a_recipe_refuses_another_suite_and_algorithm(capsys):
    main = importlib.import_module("recipes.classic_ppo").main
    assert run_main(main, ["--suite", "atari"]) == 2
    assert "this recipe is for suite classic" in capsys.readouterr().err
    assert run_main(main, ["--algorithm", "dqn"]) == 2
    assert "this recipe is ppo" in capsys.readouterr().err
