"""CPU threads of torch, and the memory that they free."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch


def available_cores() -> int:
    """CPU cores that this process may use; at least 1."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(number: int | None) -> None:
    """torch's CPU threads. None leaves them as they are, unless `accelerate launch` has started one process on CPUs and
    has itself taken one thread for it, which it does where OMP_NUM_THREADS is not set: then all cores.
    """
    if number is None and not torch.accelerator.is_available() and _launcher_took_one_thread():
        number = available_cores()
    if number is not None:
        torch.set_num_threads(number)


def _launcher_took_one_thread() -> bool:
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) == 1
    if not launched or os.environ.get("OMP_NUM_THREADS") != "1":
        return False
    try:
        return "OMP_NUM_THREADS" not in psutil.Process(os.getppid()).environ()
    except psutil.Error:
        return True


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """torch's CPU threads inside, and what they were afterwards; None changes nothing."""
    before = torch.get_num_threads()
    if number is not None and number != before:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if number is not None and number != before:
            torch.set_num_threads(before)


def keep_freed_memory() -> bool:
    """Let glibc keep freed blocks of up to 32 MB for the next step, in place of giving their pages back and faulting
    them in again; whether it did (not on other systems). For loops whose steps allocate the same sizes again and again.
    """
    mmap_threshold, trim_threshold = -3, -1  # malloc.h
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(mmap_threshold, 32 * 2**20) and mallopt(trim_threshold, 2**30))
