"""How a command starts and ends: a user's mistake is one paragraph, a bug is a traceback.

The lower layers raise ValueError for a setting, ImportError for a missing extra and OSError for a file or the Hub.
run_main prints these as `error: <one paragraph>` and exits with 2. A RunFailure, whose traceback is kept in the run
folder, is printed so too, and exits with 1; every other exception is a bug and keeps its traceback. `--traceback`, or
SCOPE_RLHF_TRACEBACK=1, shows the traceback of the first kinds too; a run folder that is already open keeps it in
error.txt in any case, so that a failure after hours of training can be read without a rerun.
"""

import gc
import os
import sys
import time
from collections.abc import Callable, Sequence

TRACEBACK_FLAG = "--traceback"
TRACEBACK_VARIABLE = "SCOPE_RLHF_TRACEBACK"
TRACEBACK_KEPT = "The traceback is in "

# Rank 0 speaks for all. Another rank that fails alone still has to say so: it waits, and where rank 0 failed as well
# the launcher has ended it by then.
_OTHER_RANK_WAITS = 3.0


class RunFailure(RuntimeError):
    """A run ended by what is not of this package, such as an environment that raises."""


def is_main_process() -> bool:
    """Whether this process prints and writes: rank 0 of a launcher's processes, or the only one."""
    return _rank() == 0


def run_main(function: Callable[[list[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Call function(argv) and return the exit status: its own (None is 0), 1 for a RunFailure, 2 for a user's mistake,
    130 for Ctrl-C.

    `argv` defaults to the command line without the program; the traceback flag is taken out of it. The working
    directory is searched last for modules, so that `--objective my_module:MyObjective` is found from a console script
    and from a recipe alike.

        if __name__ == "__main__":
            sys.exit(run_main(main))
    """
    status = _run(function, argv)
    leave_process_group(failed=status != 0)
    return status


def leave_process_group(failed: bool = False) -> None:
    """Destroy torch.distributed's process group, if this process has one. Call it where no frame holds a DDP model.

    A gloo group that lives until the interpreter ends aborts the process now and then ("terminate called without an
    active exception", exit by SIGABRT after a finished run): its threads release tensors while Python is taken down.
    What still refers to the group keeps its threads, so unreachable trainers are collected first, and
    torch.distributed.nn.functional, whose functions keep the group of the time of their import as a default, is to be
    imported before there is one. Another backend than gloo may wait for the other processes, which a failed one must
    not: it is left alone then.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or "WORLD_SIZE" not in os.environ:
        return
    gc.collect()
    if distributed.is_initialized() and (not failed or distributed.get_backend() == "gloo"):
        distributed.destroy_process_group()


def _run(function: Callable[[list[str]], int | None], argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    show = TRACEBACK_FLAG in arguments or os.environ.get(TRACEBACK_VARIABLE, "") not in ("", "0")
    arguments = [argument for argument in arguments if argument != TRACEBACK_FLAG]
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        status = function(arguments) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # `scope-rlhf objectives | head`: the reader has gone. The interpreter flushes stdout once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as error:
        if is_main_process():
            print(" ".join(["interrupted.", *getattr(error, "__notes__", [])]).removesuffix("."), file=sys.stderr)
        return 130
    except (ValueError, ImportError, OSError) as error:
        if show:
            raise
        _print_error(error)
        return 2
    except RunFailure as error:
        if show or not any(TRACEBACK_KEPT in note for note in getattr(error, "__notes__", [])):
            raise
        _print_error(error)
        return 1


def describe_error(error: BaseException) -> str:
    """The message and its notes as one paragraph; the class name where the message says nothing."""
    parts = [str(error).strip() or type(error).__name__, *getattr(error, "__notes__", [])]
    ended = [part if part.endswith((".", "!", "?", ":")) else f"{part}." for part in parts[:-1]]
    return " ".join(" ".join([*ended, parts[-1]]).split())


def _print_error(error: BaseException) -> None:
    rank = _rank()
    if rank:
        time.sleep(_OTHER_RANK_WAITS)
    where = f" (process {rank})" if rank else ""
    print(f"error{where}: {describe_error(error)}", file=sys.stderr, flush=True)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))
