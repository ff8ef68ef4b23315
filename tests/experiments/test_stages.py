"""A stage is made once for its inputs, whole or not at all."""

import json

import pytest
from rich.console import Console

from scope_rlhf.experiments import stages
from scope_rlhf.experiments.stages import (
    STAGE_FILE,
    model_identity,
    read_stage,
    run_stage,
    stage_folder,
    stage_inputs,
)

QUIET = Console(quiet=True)


def test_a_done_stage_is_read_and_other_inputs_make_another(tmp_path):
    calls = []

    def work(folder):
        calls.append(folder)
        return {"score": 0.1 + 0.2, "nothing": float("nan")}

    first = run_stage(tmp_path, "sft", {"rate": 1e-3}, work, QUIET)
    again = run_stage(tmp_path, "sft", {"rate": 1e-3}, work, QUIET)
    assert len(calls) == 1 and (first.cached, again.cached) == (False, True)
    assert again.results == first.results == {"score": 0.1 + 0.2, "nothing": None}
    other = run_stage(tmp_path, "sft", {"rate": 1e-4}, work, QUIET)
    assert len(calls) == 2 and other.folder != first.folder


def test_a_stage_that_failed_is_not_done_and_finds_what_it_left(tmp_path):
    def fail(folder):
        (folder / "checkpoint").write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        run_stage(tmp_path, "rl", {}, fail, QUIET)
    folder = stage_folder(tmp_path, "rl", {})
    assert read_stage(folder) is None
    stage = run_stage(tmp_path, "rl", {}, lambda f: {"found": (f / "checkpoint").read_text()}, QUIET)
    assert stage.results == {"found": "half"} and stage.folder == folder


@pytest.mark.parametrize("content", ["", '{"name": "sft"', '{"name": "sft"}', "[]"])
def test_a_damaged_record_is_made_again(tmp_path, content):
    folder = stage_folder(tmp_path, "sft", {})
    folder.mkdir()
    (folder / STAGE_FILE).write_text(content)
    assert run_stage(tmp_path, "sft", {}, lambda f: {"made": True}, QUIET).results == {"made": True}
    assert json.loads((folder / STAGE_FILE).read_text())["results"] == {"made": True}


def test_where_it_is_written_and_how_often_it_logs_are_no_inputs_but_the_rate_and_the_seed_are():
    base = {"learning_rate": 1e-3, "seed": 0, "output_dir": "a", "logging_steps": 1}
    moved = {**base, "output_dir": "b", "logging_steps": 7}
    assert stage_inputs(base) == stage_inputs(moved)
    for change in ({"learning_rate": 2e-3}, {"seed": 1}):
        assert stage_inputs(base) != stage_inputs({**base, **change})
    assert stage_inputs(base, data="x") != stage_inputs(base, data="y")


def test_a_local_model_is_known_by_its_content_wherever_it_lies_and_a_hub_name_by_itself(tmp_path):
    assert model_identity("gpt2") == "gpt2"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{}")
    before = model_identity(str(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b")
    assert model_identity(str(tmp_path / "b")) == before
    (tmp_path / "b" / "config.json").write_text('{"n_layer": 2}')
    assert model_identity(str(tmp_path / "b")) != before


def test_a_stage_that_other_code_has_recorded_is_not_taken_for_a_finished_one(monkeypatch):
    """Was: KeyError of a figure that the earlier code did not record."""
    before = stage_inputs({"seed": 1})
    monkeypatch.setattr(stages, "STAGE_VERSION", stages.STAGE_VERSION + 1)
    assert stage_folder("out", "reward", stage_inputs({"seed": 1})) != stage_folder("out", "reward", before)
