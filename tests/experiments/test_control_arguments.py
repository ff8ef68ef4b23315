"""What a suite and a settings file give, beside what the command line names."""

import re
from pathlib import Path

import pytest

from scope_rlhf.experiments.control_arguments import parse_control

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def own(tmp_path):
    """An objective without clips, in a file of the user's."""
    readme = (ROOT / "README.md").read_text()
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", readme, re.S) if "class QuadraticPenalty" in block
    )
    path = tmp_path / "my_objective.py"
    path.write_text(code)
    return f"{path}:QuadraticPenalty"


@pytest.mark.parametrize("suite", ["atari", "classic", "mujoco", "box2d", "procgen"])
def test_an_objective_without_clips_trains_by_ppo_in_every_suite(suite, own):
    argv = ["--suite", suite, "--objective", own]
    _, config = parse_control(argv)
    assert not hasattr(config.make_objective(), "clip_low")
    assert config.cliprange is None and config.clip_scheduler_type == "constant"


def test_a_clip_that_the_user_sets_for_an_objective_without_one_is_refused(own):
    with pytest.raises(ValueError, match="cliprange=0.2 given, but objective .* has no clip_low"):
        parse_control(["--objective", own, "--cliprange", "0.2"])


def test_the_clips_of_a_suite_stay_for_an_objective_that_has_them():
    assert parse_control(["--suite", "atari", "--objective", "scope"])[1].cliprange == 0.1
    assert parse_control(["--objective", "scope"])[1].clip_scheduler_type == "linear"


@pytest.mark.parametrize("suite", ["atari", "classic", "mujoco", "box2d", "procgen"])
@pytest.mark.parametrize("algorithm", ["ppo", "a2c"])
def test_policy_entropy_trains_in_every_suite_without_the_bonus_that_the_suite_has(suite, algorithm):
    """It was refused for an ent_coef that nobody had given."""
    argv = ["--suite", suite, "--algorithm", algorithm, "--objective", "policy_entropy"]
    assert parse_control(argv)[1].ent_coef == 0
    with pytest.raises(ValueError, match="ent_coef=0.01 with objective policy_entropy counts the entropy twice"):
        parse_control([*argv, "--ent_coef", "0.01"])


FILES = sorted(
    path.name for path in (ROOT / "recipes/configs").glob("*.yaml") if re.match("atari|procgen|mu|box", path.name)
)


@pytest.mark.parametrize("name", [name for name in sorted(FILES) if "dqn" not in name])
def test_the_file_of_a_paper_runs_its_baseline_by_objective_ppo(name, own):
    algorithm = "a2c" if "a2c" in name else "ppo"
    argv = ["--config", str(ROOT / "recipes/configs" / name), "--algorithm", algorithm]
    _, config = parse_control([*argv, "--objective", "ppo"])
    assert config.objective == "ppo" and not config.objective_kwargs
    _, config = parse_control([*argv, "--objective", own])
    assert config.objective == own and not config.objective_kwargs
    _, whole = parse_control(argv)
    _, again = parse_control([*argv, "--objective", whole.objective])
    assert whole.objective_kwargs == again.objective_kwargs
