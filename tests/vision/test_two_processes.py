"""Two processes, each with every second image of a batch, train as one process does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    found = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"processes{processes}")
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        command += ["--master_port", "0", "--standalone", "-m", "tests.vision.two_process_script", str(folder)]
        variables = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-3000:]
        found[processes] = folder
    return found


@pytest.mark.parametrize("name", ["plain", "ldam"])
def test_two_processes_end_with_the_weights_and_the_metrics_of_one(runs, name):
    weights, lines = [], []
    for processes in (1, 2):
        folder = runs[processes] / name
        newest = max(folder.glob("checkpoint-*"), key=lambda f: int(f.name[11:]))
        weights.append(torch.load(newest / "learner.pt", weights_only=True)["model"])
        lines.append([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()])
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-3, atol=1e-4, msg=lambda m, k=key: f"{k}: {m}")
    assert len(lines[0]) == len(lines[1]) == 2
    for one, two in zip(*lines, strict=True):
        assert one.keys() == two.keys()
        for key in one:
            if key.startswith(("train/", "validation/loss")):
                assert two[key] == pytest.approx(one[key], rel=1e-3, abs=1e-4), key
