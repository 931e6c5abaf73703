"""Run a command and measure it: wall time and the largest resident set of its process, for the benchmarks beside.

The command is started by a small launcher (this file, run as a script): Linux counts the memory of the process that
forks towards the peak of its child, and a benchmark that has just made its input files is large.
"""

import json
import os
import subprocess
import sys
import time


def run_measured(command: list[str]) -> tuple[float, float]:
    """Run `command` with its output thrown away; return (seconds, peak resident megabytes of 10^6 bytes).

    Raises RuntimeError with the end of its error output when it fails.
    """
    done = subprocess.run([sys.executable, "-S", __file__, *command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    seconds, kibibytes = json.loads(done.stdout)
    return seconds, kibibytes * 1024 / 1e6


def launch(command: list[str]) -> None:
    silent = os.open(os.devnull, os.O_WRONLY)
    start = time.perf_counter()
    child = os.posix_spawn(command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, silent, 1)])
    _, status, usage = os.wait4(child, 0)
    print(json.dumps([time.perf_counter() - start, usage.ru_maxrss]))
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    launch(sys.argv[1:])
