"""A process as one of several that a launcher started: its name in the job's log, how it runs a program, how it ends."""

import atexit
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from .errors import DataError, LmmEcrError, Preempted


def process_label() -> str:
    """ "host n1, rank 3 of 8: " for a process of a distributed run (as its launcher numbered it), else nothing."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return ""
    return f"host {socket.gethostname()}, rank {os.environ.get('RANK', '?')} of {os.environ['WORLD_SIZE']}: "


def run_and_exit(name: str, main: Callable[[], None]) -> NoReturn:
    """Run a program to its end and leave the process.

    Errors meant for the user are printed without a stack trace and give their exit status; any other exception ends with
    its stack trace and status 1. A process of a distributed run says which one it is, for the job's log.
    """
    status = 0
    try:
        main()
    except LmmEcrError as error:
        kind = "stopped" if isinstance(error, Preempted) else "error"
        print(f"{process_label()}{name}: {kind}: {error}", file=sys.stderr, flush=True)
        status = error.exit_status
    except SystemExit as done:  # from the parsers of arguments
        if done.code is not None and not isinstance(done.code, int):
            print(done.code, file=sys.stderr)
        status = done.code if isinstance(done.code, int) else int(done.code is not None)
    except Exception as error:
        if isinstance(error, OSError) and _is_of_printing(error):
            status = _tell_unwritable(name, error)
        else:
            sys.excepthook(*sys.exc_info())  # torch's own, where set, puts the rank before each line
            if process_label():
                print(f"{process_label()}{name} died of {type(error).__name__}: {error}", file=sys.stderr)
            status = 1
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # Without this the interpreter would try once more while it shuts down, and fail with a trace.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = status or _tell_unwritable(name, error)
    end_process(status)


def _is_of_printing(error: OSError) -> bool:
    """Whether the error was raised inside the libraries that print, which open no files of their own."""
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] in ("click", "rich", "typer")


def _tell_unwritable(name: str, error: OSError) -> int:
    """Say why what is printed cannot be written (nothing about a reader that went away); the exit status for it."""
    if isinstance(error, BrokenPipeError):
        return 1
    message = f"what is printed cannot be written: {error.strerror}"
    print(f"{process_label()}{name}: error: {message}", file=sys.stderr, flush=True)
    return DataError.exit_status


def end_process(status: int) -> NoReturn:
    """Exit with `status`; a process that has joined a process group does so without shutting the interpreter down.

    The threads of PyTorch's Gloo backend let go of a collective's tensors a moment after it has completed, and need the
    interpreter for it. Before Python 3.14 one that is shutting down makes them abort the process: a job that has done all
    its work then fails with SIGABRT (pytorch issue 190489; `destroy_process_group` does not stop these threads while
    DistributedDataParallel or DeepSpeed hold the group). So the steps of a normal exit that others rely on are taken here,
    as multiprocessing does for its children: threads joined, exit handlers run, streams flushed.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not (distributed.is_available() and distributed.is_initialized()):
        sys.exit(status)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
