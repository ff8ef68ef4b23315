"""Settings every test shares. Set before torch is imported, and without importing it: fast tests never load it."""

import os
import sys

import pytest

# Tiny models run 10 to 50 times faster on one thread. Subprocesses of tests inherit these.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["MPLBACKEND"] = "Agg"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """torch was told by OMP_NUM_THREADS; a test that raised the count does not slow the next one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)
