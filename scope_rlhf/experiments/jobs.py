"""Runs of a table, several at a time, each in a process of its own; light to import."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any


def run_jobs(function: Callable[..., Any], calls: Sequence[tuple], jobs: int, quiet: bool = False) -> list[Any]:
    """[function(*call) for call in calls], `jobs` at a time, with a progress bar. With one job in this process.

    After an error the calls that have not begun are left out, and the error is raised.
    """
    from tqdm import tqdm

    found: dict[int, Any] = {}
    with tqdm(total=len(calls), unit="run", disable=quiet, desc="table") as bar:
        if jobs == 1:
            for number, call in enumerate(calls):
                found[number] = function(*call)
                bar.update()
        else:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(jobs, context, _end_with, (os.getpid(),)) as pool:
                futures = {pool.submit(function, *call): number for number, call in enumerate(calls)}
                try:
                    for future in as_completed(futures):
                        found[futures[future]] = future.result()
                        bar.update()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
    return [found[number] for number in range(len(calls))]


def _end_with(parent: int) -> None:
    """End this process soon after its parent, also where that is killed: it would go on writing to the run folder."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
