import multiprocessing
import os
import time

import psutil
import pytest

from scope_rlhf.experiments.jobs import run_jobs


def square(number, place):
    (place / f"{number}").write_text(str(os.getpid()))
    if number == 3:
        raise ValueError("three")
    return number * number


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_in_the_order_of_the_calls_whatever_finishes_first(tmp_path, jobs):
    assert run_jobs(square, [(number, tmp_path) for number in (5, 1, 4)], jobs, quiet=True) == [25, 1, 16]
    processes = {file.read_text() for file in tmp_path.iterdir()}
    assert (processes == {str(os.getpid())}) == (jobs == 1)


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_of_a_run_is_raised_and_the_runs_behind_it_are_left_out(tmp_path, jobs):
    with pytest.raises(ValueError, match="three"):
        run_jobs(square, [(3, tmp_path), *((number, tmp_path) for number in range(10, 40))], jobs, quiet=True)
    assert len(list(tmp_path.iterdir())) < 31


def stay(place):
    (place / f"{os.getpid()}").touch()
    time.sleep(120)


def test_runs_do_not_outlive_a_table_that_is_killed(tmp_path):
    table = multiprocessing.get_context("spawn").Process(target=run_jobs, args=(stay, [(tmp_path,)] * 2, 2, True))
    table.start()
    until = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    workers = [int(file.name) for file in tmp_path.iterdir()]
    assert len(workers) == 2
    table.kill()
    table.join()
    while any(map(psutil.pid_exists, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(psutil.pid_exists, workers))
