"""Two processes under torchrun (gloo) against one on the same batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def launch(folder: Path, processes: int) -> list[dict]:
    folder.mkdir()
    script = ["-m", "tests.trainers.two_process_script", str(folder)]
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "0", "--standalone"]
    command = [sys.executable, *(torchrun if processes > 1 else []), *script]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return launch(folder / "one", 1), launch(folder / "two", 2)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_two_processes_give_the_loss_and_gradient_of_one_on_the_same_batch(runs, loss_type):
    (one,), two = runs
    for rank in two:
        assert rank[loss_type]["loss"] == pytest.approx(one[loss_type]["loss"], abs=1e-6)
        assert rank[loss_type]["gradient"] == pytest.approx(one[loss_type]["gradient"], abs=1e-6)
    assert max(map(abs, one[loss_type]["gradient"])) > 1e-3


def test_stats_are_token_weighted_over_ranks_of_unequal_length(runs):
    (one,), two = runs
    for rank in two:
        for name, value in one["dapo"]["stats"].items():
            assert rank["dapo"]["stats"][name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    assert len(one["dapo"]["stats"]) > 4


def test_two_processes_train_without_a_hang_stay_in_step_and_draw_different_samples(runs):
    _, (first, second) = runs
    assert first["weights"] == second["weights"]
    assert [row["loss"] for row in first["trained"]] == [row["loss"] for row in second["trained"]]
    half = len(first["completions"]) // 2
    assert first["completions"][:half] != first["completions"][half:]
