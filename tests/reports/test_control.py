import json

import numpy as np
import pytest

from scope_rlhf.reports.control import (
    is_control_run,
    learning_curve,
    plot_control_curves,
    plot_learning_curves,
    result_table,
    write_control_report,
)
from scope_rlhf.runtime import RunFolder

ENVIRONMENT = {"suite": "classic", "name": "CartPole-v1", "backend": "gymnasium", "protocol": None}
OBJECTIVE = {"name": "scope", "class": "scope_rlhf.objectives.scope.Scope", "parameters": {"alpha": 0.3}}


def make_run(path, slope=1.0, updates=40):
    run = RunFolder(path)
    run.write_config(
        {"learning_rate": 1e-3, "suite": "classic", "critic_kwargs": None},
        OBJECTIVE,
        7,
        algorithm="ppo",
        environment=ENVIRONMENT,
        critic={"name": "hl_gauss", "parameters": {}},
    )
    for update in range(1, updates + 1):
        row = {"charts/episodic_return": slope * update, "losses/entropy": 0.6, "charts/SPS": 1000.0 + update}
        run.append_metrics(update * 256, row | {"time/environment": 1.0, "time/rollout": 1.0, "time/update": 2.0})
    run.write_evaluation({"step": updates * 256, "returns": [10.0, 12.0, 14.0], "lengths": [1, 1, 1]})
    return path


def test_the_report_says_environment_objective_critic_returns_and_where_the_time_went(tmp_path, markdown_tables):
    path = make_run(tmp_path / "run")
    assert is_control_run(path)
    plot_control_curves(path)
    text = write_control_report(path).read_text()
    assert "CartPole-v1, ppo, scope(alpha=0.3), hl\\_gauss critic, seed 7" in text or "hl_gauss critic, seed 7" in text
    results = dict(markdown_tables(text)[0][1:])
    assert results["evaluation, 3 episodes"].startswith("12.00 [")
    assert results["training return, first tenth"] == "2.500"
    assert results["training return, last tenth"] == "38.50"
    assert results["time"] == "environment 25%, rollout 25%, update 50%"
    assert "![" in text
    assert "critic_kwargs" not in text


def test_an_evaluation_of_an_earlier_step_is_named_with_it(tmp_path, markdown_tables):
    """A longer run without an evaluation showed the one before as its own."""
    path = make_run(tmp_path / "run", updates=40)
    RunFolder(path).write_evaluation({"step": 2560, "returns": [23.0], "lengths": [1]})
    results = dict(markdown_tables(write_control_report(path).read_text())[0][1:])
    assert results["evaluation at step 2,560, 1 episodes"] == "23.00"


def test_the_printed_table_holds_what_the_report_holds(tmp_path):
    table = result_table(make_run(tmp_path / "run"))
    assert table.row_count == 6
    assert "scope" in str(table.title)


def test_learning_curves_are_averaged_over_the_steps_that_all_seeds_have(tmp_path):
    short, long = make_run(tmp_path / "a", 1.0, 30), make_run(tmp_path / "b", 3.0, 40)
    steps, values = learning_curve(long)
    np.testing.assert_array_equal(values, 3 * steps / 256)
    path = plot_learning_curves(
        {"CartPole": {"scope": [learning_curve(short), (steps, values)]}}, tmp_path / "curves.png"
    )
    assert path.stat().st_size > 10_000


def test_a_run_without_numbers_is_told(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.write_config({}, OBJECTIVE, 1, algorithm="ppo", environment=ENVIRONMENT, critic=None)
    with pytest.raises(ValueError, match="holds no logged numbers"):
        plot_control_curves(run.path)
    assert "steps" not in write_control_report(run.path).read_text().partition("## Settings")[0]


def test_a_language_model_run_is_not_taken_for_one_of_control(tmp_path):
    run = RunFolder(tmp_path)
    run.write_config({"model_name_or_path": "gpt2"}, OBJECTIVE, 1)
    assert not is_control_run(tmp_path)
    assert json.loads(run.config_file.read_text())["seed"] == 1
