"""PPO under ZeRO-2 and ZeRO-3 on two CPU processes against plain data parallel. Needs the deepspeed extra."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.slow,  # DeepSpeed compiles for about a minute at its first start
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs the deepspeed extra"),
]


def launch(folder: Path, stage: int, *words: str) -> Path:
    folder.mkdir()
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--standalone",
        "-m", "tests.trainers.deepspeed_script", str(folder), str(stage), *words,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return folder


def logged(folder: Path, name: str) -> list[float]:
    return [row[name] for row in json.loads((folder / "log.json").read_text()) if name in row]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return launch(tmp_path_factory.mktemp("runs") / "plain", 0)


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_gives_the_losses_of_plain_data_parallel_and_saves_policy_and_critic_apart(tmp_path, plain, stage):
    folder = launch(tmp_path / "zero", stage)
    assert len(logged(plain, "loss")) == 8
    for name in ("loss", "value/loss", "rollout/score", "rollout/kl", "policy/approx_kl"):
        assert logged(folder, name) == pytest.approx(logged(plain, name), abs=2e-4), name
    for file in ("adapter_model.safetensors", "critic.safetensors"):
        ours, expected = load_file(folder / "model" / file), load_file(plain / "model" / file)
        assert ours.keys() == expected.keys() and ours
        for name in ours:
            torch.testing.assert_close(ours[name], expected[name], atol=1e-3, rtol=1e-3)
            assert ours[name].abs().sum() > 0


def test_zero_3_trains_a_sharded_head_that_is_gathered_again_for_the_recomputing_backward(tmp_path):
    plain, folder = (launch(tmp_path / name, stage, "full") for name, stage in (("plain", 0), ("zero", 3)))
    assert len(logged(plain, "loss")) == 8
    for name in ("loss", "value/loss", "rollout/score", "policy/approx_kl", "entropy"):
        assert logged(folder, name) == pytest.approx(logged(plain, name), abs=2e-4), name


def test_zero_2_resumed_inside_a_rollout_goes_on_as_if_it_had_not_stopped(tmp_path):
    whole = launch(tmp_path / "whole", 2)
    again = launch(tmp_path / "again", 2, str(whole / "checkpoint-6"))
    assert logged(again, "value/loss")[-2:] == pytest.approx(logged(whole, "value/loss")[-2:], abs=1e-6)
    ours, expected = (load_file(f / "model" / "critic.safetensors") for f in (again, whole))
    assert all(torch.allclose(ours[name], expected[name], atol=1e-6) for name in ours)
