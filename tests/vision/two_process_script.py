"""Run under torchrun by test_two_processes.py: a short training whose global batches are those of one process."""

import os
import sys
from pathlib import Path

from scope_rlhf.runtime import leave_process_group
from scope_rlhf.vision.train import train_vision
from tests.processes import gloo_threads
from tests.vision.makers import make_config


def main(folder: Path) -> None:
    processes = int(os.environ["WORLD_SIZE"])
    for name, more in {"plain": {}, "ldam": {"long_tail": "ldam_drw", "long_tail_kwargs": {"drw_start": 0.3}}}.items():
        train_vision(make_config(folder / name, per_device_train_batch_size=32 // processes, objective="scope", **more))
    os.chdir(folder)
    train_vision(make_config(None, per_device_train_batch_size=32 // processes, num_train_epochs=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave_process_group()
    assert not gloo_threads(), "a living gloo group may abort the process at its end"
