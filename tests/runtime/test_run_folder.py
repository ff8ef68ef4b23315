import json
from importlib.metadata import version

import pytest

from scope_rlhf.runtime import RunFolder

OBJECTIVE = {"name": "scope", "class": "ScopeObjective", "parameters": {"alpha": 0.3}}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    # Naming the accelerator imports torch, which these tests do without.
    monkeypatch.setattr("scope_rlhf.runtime.run_folder.device_name", lambda: "cpu")
    return RunFolder(tmp_path / "runs" / "one")


def test_config_records_what_a_rerun_needs(run, monkeypatch):
    monkeypatch.setattr("sys.argv", ["recipes/imdb_scope.py", "--seed", "3"])
    written = run.write_config({"beta": 0.05}, OBJECTIVE, 3, accuracy=0.86)
    config = json.loads(run.config_file.read_text())
    assert config == written == run.read_config()
    assert config["command"] == ["recipes/imdb_scope.py", "--seed", "3"]
    assert (config["arguments"], config["objective"], config["seed"]) == ({"beta": 0.05}, OBJECTIVE, 3)
    assert config["versions"]["torch"] == version("torch")
    assert {"python", "transformers", "trl", "peft", "accelerate", "datasets"} <= config["versions"].keys()
    assert config["accuracy"] == 0.86
    assert config["started"].endswith("+00:00")
    assert {"source", "platform", "cpu_count", "device"} <= config.keys()


def test_extra_keys_of_the_config_never_hide_a_recorded_one(run):
    with pytest.raises(ValueError, match="earlier, started"):
        run.write_config({}, OBJECTIVE, 3, started="yesterday", earlier=[])
    assert not run.config_file.exists()


def test_a_resumed_run_keeps_how_it_began_and_a_fresh_one_does_not(run, monkeypatch):
    monkeypatch.setattr("sys.argv", ["first"])
    run.write_config({}, OBJECTIVE, 0)
    monkeypatch.setattr("sys.argv", ["second"])
    run.write_config({}, OBJECTIVE, 0, resumed=True)
    monkeypatch.setattr("sys.argv", ["third"])
    resumed = run.write_config({}, OBJECTIVE, 0, resumed=True)
    assert [start["command"] for start in resumed["earlier"]] == [["first"], ["second"]]
    assert "earlier" not in run.write_config({}, OBJECTIVE, 0)


def test_metrics_come_back_in_order_and_resuming_drops_the_steps_that_run_again(run):
    for step in range(1, 6):
        run.append_metrics(step, {"loss": step / 10})
    assert run.read_metrics()[2] == {"step": 3, "loss": 0.3}
    assert run.truncate_metrics(3) == 2
    run.append_metrics(4, {"loss": -1.0})
    assert [row["step"] for row in run.read_metrics()] == [1, 2, 3, 4]
    assert run.read_metrics()[-1]["loss"] == -1.0
    assert run.truncate_metrics(-1) == 4
    assert run.read_metrics() == []


def test_appending_after_a_crash_replaces_the_line_that_was_cut_off(run):
    run.append_metrics(1, {"loss": 1.0})
    for cut in ('{"step": 2, "lo', '{"step": 2, "loss": 2.0}'):
        with run.metrics_file.open("a") as file:
            file.write(cut)
        run.append_metrics(2, {"loss": 0.5})
        assert run.read_metrics() == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]
        run.truncate_metrics(1)


def test_a_first_line_that_was_cut_off_is_replaced_too(run):
    run.path.mkdir(parents=True)
    run.metrics_file.write_text('{"st')
    run.append_metrics(1, {"loss": 0.5})
    assert run.read_metrics() == [{"step": 1, "loss": 0.5}]


def test_other_ranks_write_nothing(run, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert run.write_config({}, OBJECTIVE, 0)["seed"] == 0
    run.append_metrics(1, {"loss": 1.0})
    run.write_evaluation({})
    run.write_samples([])
    assert not run.path.exists()


def test_reading_what_is_no_run_folder_names_it(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        run.read_config()
    with pytest.raises(FileNotFoundError, match="no config.json"):
        RunFolder(tmp_path).read_config()
    assert run.read_evaluation() is None
    assert run.read_metrics() == run.read_samples() == []


def test_metrics_without_a_step_are_named(run):
    run.path.mkdir(parents=True)
    run.metrics_file.write_text('{"step": 1}\n{"loss": 2.0}\n')
    with pytest.raises(ValueError, match="line 2"):
        run.read_metrics()


def test_a_failing_run_keeps_its_traceback_and_the_next_start_drops_it(run):
    run.write_config({}, OBJECTIVE, 0)

    def fail():
        with run:
            raise RuntimeError("reward function gave NaN")

    with pytest.raises(RuntimeError) as caught:
        fail()
    assert "reward function gave NaN" in run.error_file.read_text()
    assert "in fail" in run.error_file.read_text()
    assert str(run.error_file) in caught.value.__notes__[0]
    with run:
        assert not run.error_file.exists()


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_goes_on_and_not_after(tmp_path):
    refused = pytest.raises(ValueError, match="in use by another run")
    RunFolder(tmp_path / "run").check_free()
    with RunFolder(tmp_path / "run"), refused, RunFolder(tmp_path / "run"):
        pytest.fail("two runs in one folder")
    with RunFolder(tmp_path / "run"), pytest.raises(ValueError, match="in use by another run"):
        RunFolder(tmp_path / "run").check_free()
    RunFolder(tmp_path / "run").check_free()
    with RunFolder(tmp_path / "run"):
        pass
    assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_that_cannot_be_made_names_the_setting(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="output_dir .*file/run cannot be written.*--output_dir"):
        RunFolder(tmp_path / "file" / "run").__enter__()
