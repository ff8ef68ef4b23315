"""What a resumed run goes on from, and what it must keep."""

import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from scope_rlhf.experiments.resume import check_same_run, find_checkpoint

ARGUMENTS = {
    "seed": 42,
    "learning_rate": 0.1,
    "max_steps": 8,
    "lora_alpha": 32,
    "num_generations": 8,
    "logging_steps": 1,
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"arguments": ARGUMENTS}))
    return tmp_path


def training(given, output_dir=None):
    return SimpleNamespace(resume_from_checkpoint=given, output_dir=output_dir)


@pytest.mark.parametrize("change", [{"seed": 7}, {"num_generations": 4}, {"lora_alpha": 16}])
def test_another_seed_or_group_size_is_refused_before_training_and_not_after_it(folder, change):
    (name,) = change
    with pytest.raises(ValueError, match=f"must keep: {name} was {ARGUMENTS[name]}, is {change[name]}"):
        check_same_run(folder, {**ARGUMENTS, **change}, Console(quiet=True))


def test_another_rate_is_named_and_another_logging_interval_is_not(folder, capsys):
    check_same_run(folder, {**ARGUMENTS, "learning_rate": 0.2, "max_steps": 9, "logging_steps": 5}, Console(width=200))
    said = capsys.readouterr().out
    assert "learning_rate was 0.1, is 0.2" in said
    assert "max_steps was 8, is 9" in said  # a rate that falls to 0 falls elsewhere
    assert "logging_steps" not in said


def test_a_checkpoint_that_a_kill_cut_off_is_passed_over_for_the_whole_one_before_it(tmp_path):
    for step, whole in ((2, True), (4, True), (10, False)):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "adapter_model.safetensors").write_bytes(b"cut")
        if whole:
            for name in ("trainer_state.json", "objective.json"):
                (checkpoint / name).write_text("{}")
    assert find_checkpoint(training(str(tmp_path))) == str(tmp_path / "checkpoint-4")
    assert find_checkpoint(training("true", str(tmp_path))) == str(tmp_path / "checkpoint-4")
    assert find_checkpoint(training(None)) is None


def test_a_folder_without_a_whole_checkpoint_and_no_folder_are_errors(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(ValueError, match="holds no complete checkpoint"):
        find_checkpoint(training(str(tmp_path)))
    with pytest.raises(ValueError, match="is not a folder"):
        find_checkpoint(training(str(tmp_path / "nothing")))


def test_a_run_whose_config_is_missing_or_damaged_is_refused_naming_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"config.json.*missing or damaged"):
        check_same_run(tmp_path, ARGUMENTS, Console(quiet=True))
    (tmp_path / "config.json").write_text("{cut")
    with pytest.raises(ValueError, match=r"config.json.*missing or damaged"):
        check_same_run(tmp_path, ARGUMENTS, Console(quiet=True))


def test_a_checkpoint_given_as_the_working_directory_has_its_run_folder_above_it(tmp_path, monkeypatch):
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text("{}")
    monkeypatch.chdir(checkpoint)
    assert find_checkpoint(training(".")) == str(checkpoint)
    (checkpoint / "trainer_state.json").write_text("{cut")
    with pytest.raises(ValueError, match="trainer_state.json is damaged"):
        find_checkpoint(training("."))
