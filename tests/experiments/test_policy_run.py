"""What surrounds a run of a recipe."""

import os
import subprocess
import sys

import pytest

SCRIPT = "import torch\nfrom scope_rlhf.runtime.threads import set_threads\n"


@pytest.mark.skipif(sys.platform != "linux", reason="counts the cores of this process as Linux has them")
@pytest.mark.parametrize("chosen", [None, "1"])
def test_accelerate_launch_does_not_take_the_cores_away(tmp_path, chosen):
    """Was: the README's command ran on one thread, which the launcher sets where nobody has."""
    script = tmp_path / "script.py"
    script.write_text(f"{SCRIPT}set_threads(None)\nprint('threads', torch.get_num_threads())\n")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if chosen is not None:
        environment["OMP_NUM_THREADS"] = chosen
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", str(script)],
        env={**environment, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"threads {chosen or len(os.sched_getaffinity(0))}\n" in done.stdout
