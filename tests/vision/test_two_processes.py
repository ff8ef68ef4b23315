"""Two processes, each with every second image of a batch, train as one process does."""

import json

import pytest
import torch

from tests.processes import torchrun


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    found = {}
    for processes in (1, 2):
        folder = tmp_path_factory.mktemp(f"processes{processes}")
        torchrun(processes, "tests.vision.two_process_script", folder)
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


def test_two_processes_without_an_output_dir_have_one_run_folder(runs):
    """Each named it by its own clock: the second one's part of a checkpoint had no folder to go to."""
    for processes in (1, 2):
        (run,) = (runs[processes] / "runs/vision/digits-ppo").iterdir()
        (checkpoint,) = run.glob("checkpoint-*")
        assert sorted(file.name for file in checkpoint.glob("process-*")) == [
            f"process-{r}.pt" for r in range(processes)
        ]
