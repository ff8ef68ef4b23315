"""Distillation on two processes under torchrun (gloo) against one: groups of completions lie on both."""

import json

import pytest

from tests.processes import torchrun
from tests.trainers.distillation_script import CASES


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The results of each process: of the run on one, and of the run on two."""
    folders = []
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"on_{processes}")
        torchrun(processes, "tests.trainers.distillation_script", folder)
        folders.append([json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)])
    return folders


@pytest.mark.parametrize("case", CASES)
def test_the_weights_of_a_group_are_those_of_all_its_completions_wherever_they_lie(runs, case):
    (one,), two = runs
    together = [row for rank in two for row in rank[case]["advantages"]]
    assert len(together) == len(CASES[case]["completions"])
    for found, expected in zip(together, one[case]["advantages"], strict=True):
        assert found == pytest.approx(expected, abs=1e-5)
    assert max(abs(x) for row in together for x in row) > 1e-2


@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_the_loss_and_the_gradient_of_one(runs, case):
    (one,), two = runs
    for rank in two:
        assert rank[case]["loss"] == pytest.approx(one[case]["loss"], abs=1e-5)
        assert rank[case]["gradient"] == pytest.approx(one[case]["gradient"], abs=1e-5)
    assert max(map(abs, one[case]["gradient"])) > 1e-2


@pytest.mark.parametrize("case", CASES)
def test_every_process_logs_the_metrics_of_all_completions(runs, case):
    (one,), two = runs
    for rank in two:
        assert rank[case]["metrics"] == pytest.approx(one[case]["metrics"], rel=1e-4)
    assert len(one[case]["metrics"]) >= 8


@pytest.mark.parametrize("case", ["trained", "adapter"])
def test_a_training_on_two_processes_stays_in_step_and_evaluates(runs, case):
    """Also where the teacher's pass switches adapters, and with them what takes a gradient, under DDP."""
    _, (first, second) = runs
    assert first[case]["weights"] == second[case]["weights"]
    assert first[case]["log"] == second[case]["log"]
    found = {name for row in first[case]["log"] for name in row}
    assert {"distillation/correct", "distillation/log_ratio", "eval_distillation/correct", "eval_loss"} == found
    half = len(first[case]["completions"]) // 2
    assert first[case]["completions"][:half] != first[case]["completions"][half:]
