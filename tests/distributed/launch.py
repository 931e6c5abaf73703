"""Starting the programs under test as users do, in processes of their own."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sys.executable).parent  # where torchrun, accelerate and lmm-ecr of this environment are


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**extra: str) -> dict[str, str]:
    """This process's environment with one thread per process, the scripts of its Python first and the repository importable."""
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")},
        "OMP_NUM_THREADS": "1",
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{REPO}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "HF_HUB_OFFLINE": "1",
        **extra,
    }


def torchrun(*command: str, processes: int = 2) -> list[str]:
    return [
        str(SCRIPTS / "torchrun"),
        f"--nproc_per_node={processes}",
        f"--master_port={free_port()}",
        *command,
    ]


def run(command: list[str], timeout: float = 300, check: bool = True, cwd=None, **extra: str):
    """Run to the end; a failure shows the output's end. After `timeout` seconds the program and all it started are killed."""
    with subprocess.Popen(
        command,
        env=environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise AssertionError(f"{command[:4]} was killed after {timeout} s:\n{(out + err)[-6000:]}") from None
    if check and process.returncode != 0:
        raise AssertionError(f"{command[:4]} ended with {process.returncode}:\n{(out + err)[-6000:]}")
    return subprocess.CompletedProcess(command, process.returncode, out, err)
