import os
import subprocess
import sys

import pytest

from scope_rlhf.runtime import RunFolder, is_main_process, run_main
from scope_rlhf.runtime.launch import RunFailure, describe_error

GLOO = """
import gc, sys
from pathlib import Path
import torch
import torch.distributed.nn.functional
from scope_rlhf.runtime import run_main

def threads():
    return sum("gloo" in (task / "comm").read_text() for task in Path("/proc/self/task").iterdir())

def main(arguments):
    torch.distributed.init_process_group("gloo", init_method=f"file://{arguments[0]}", rank=0, world_size=1)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
    model.trainer = model  # a cycle, as that of a trainer and its callbacks
    model(torch.ones(1, 2)).sum().backward()
    gc.collect()
    gc.disable()
    print(threads() > 0)
    if arguments[1:]:
        raise ValueError("a mistake")

status = run_main(main)
print(torch.distributed.is_initialized(), threads())
sys.exit(status)
"""


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("RANK", "SCOPE_RLHF_TRACEBACK"):
        monkeypatch.delenv(name, raising=False)


def failing(error):
    def main(_):
        raise error

    return main


@pytest.mark.parametrize(
    "error", [ValueError("alpha must be\n  positive,\n got -1"), ImportError("x"), FileNotFoundError("no such dataset")]
)
def test_a_users_mistake_is_one_paragraph_and_status_2(error, capsys):
    assert run_main(failing(error), []) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: {' '.join(str(error).split())}\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError):
        run_main(failing(KeyError("x")), [])


def test_the_flag_and_the_variable_show_the_traceback_and_the_command_never_sees_the_flag(monkeypatch):
    seen = []

    def main(argv):
        seen.append(argv)
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        run_main(main, ["--beta", "1", "--traceback"])
    assert seen == [["--beta", "1"]]
    monkeypatch.setenv("SCOPE_RLHF_TRACEBACK", "1")
    with pytest.raises(ValueError, match="wrong"):
        run_main(main, [])
    monkeypatch.setenv("SCOPE_RLHF_TRACEBACK", "0")
    assert run_main(main, []) == 2


def test_status_is_the_commands_own_and_none_means_success():
    assert run_main(lambda _: None, []) == 0
    assert run_main(lambda _: 1, []) == 1


def test_arguments_default_to_the_command_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["program", "a", "b"])
    assert run_main(lambda argv: len(argv), None) == 2


def test_an_error_without_a_message_is_named_by_its_class():
    assert describe_error(ValueError()) == "ValueError"


def test_a_note_begins_a_sentence_of_its_own():
    error = ValueError("no space left ")
    error.add_note("The traceback is in x.")
    assert describe_error(error) == "no space left. The traceback is in x."


def test_an_error_inside_a_run_says_where_its_traceback_is(tmp_path, capsys):
    def main(_):
        with RunFolder(tmp_path) as run:
            run.append_metrics(1, {})
            raise ValueError("reward row 3 is NaN")

    assert run_main(main, []) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: reward row 3 is NaN. The traceback is in ")
    assert error.count("\n") == 1
    assert "Traceback" in (tmp_path / "error.txt").read_text()


def test_another_rank_waits_for_rank_0_and_names_itself(monkeypatch, capsys):
    waits = []
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr("time.sleep", waits.append)
    assert not is_main_process()
    assert run_main(failing(ValueError("bad row")), []) == 2
    assert capsys.readouterr().err == "error (process 3): bad row\n"
    assert waits == [3.0]


def test_a_failed_run_is_one_paragraph_where_its_traceback_is_kept(capsys, tmp_path):
    """An environment that raised printed two tracebacks of seventy lines, which error.txt has as well."""

    def run(arguments):
        with RunFolder(tmp_path / "run"):
            raise RunFailure("the robot fell apart")

    assert run_main(run, []) == 1
    file = tmp_path / "run" / "error.txt"
    assert capsys.readouterr().err == f"error: the robot fell apart. The traceback is in {file}.\n"
    assert "RunFailure: the robot fell apart" in file.read_text()
    with pytest.raises(RunFailure):
        run_main(run, ["--traceback"])
    with pytest.raises(RunFailure):
        run_main(failing(RunFailure("kept nowhere")), [])


def test_interrupting_is_quiet(capsys):
    assert run_main(failing(KeyboardInterrupt()), []) == 130
    assert capsys.readouterr().err == "interrupted\n"
    noted = KeyboardInterrupt()
    noted.add_note("The learner is saved in runs/a.")
    assert run_main(failing(noted), []) == 130
    assert capsys.readouterr().err == "interrupted. The learner is saved in runs/a\n"


def test_a_reader_that_leaves_early_is_no_error():
    code = (
        "import sys; from scope_rlhf.runtime import run_main\n"
        "def main(_):\n    for i in range(200000): print(i)\n"
        "sys.exit(run_main(main, []))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait() == 1
    process.stderr.close()


@pytest.mark.parametrize("mistake", [[], ["mistake"]])
def test_a_run_on_several_processes_is_not_aborted_at_its_end_by_the_threads_of_gloo(tmp_path, mistake):
    """ "terminate called without an active exception" and SIGABRT, after two of ten runs that had finished."""
    command = [sys.executable, "-c", GLOO, str(tmp_path / "store"), *mistake]
    done = subprocess.run(command, env=os.environ | {"RANK": "0", "WORLD_SIZE": "1"}, capture_output=True, text=True)
    assert (done.stdout.split(), done.returncode) == (["True", "False", "0"], 2 if mistake else 0), done.stderr
