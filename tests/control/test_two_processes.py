"""Two processes, each with half of the environments, make the update of one process with all."""

import pytest
import torch

from tests.processes import torchrun


@pytest.fixture(scope="module")
def updates(tmp_path_factory):
    """{processes: {algorithm: saved}}."""
    found = {}
    for processes in (1, 2):
        output = tmp_path_factory.mktemp(f"processes{processes}")
        torchrun(processes, "tests.control.two_process_script", output)
        found[processes] = {file.stem: torch.load(file, weights_only=True) for file in output.glob("*.pt")}
    return found


@pytest.mark.parametrize("name", ["ppo", "ppo_rollout", "a2c", "dqn"])
def test_two_processes_make_the_update_of_one_and_log_one_set_of_metrics(updates, name):
    one, two = (updates[processes][name] for processes in (1, 2))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["weights"].keys() == two["weights"].keys()
    for key, weights in one["weights"].items():
        torch.testing.assert_close(two["weights"][key], weights, rtol=1e-4, atol=2e-6, msg=lambda m, k=key: f"{k}: {m}")
    assert one["metrics"].keys() == two["metrics"].keys()
    for key, value in one["metrics"].items():
        assert two["metrics"][key] == pytest.approx(value, rel=1e-3, abs=1e-5), key
