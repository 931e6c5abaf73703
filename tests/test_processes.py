"""How a program ends, alone and as one process of several."""

import os
import subprocess
import sys
import textwrap

import pytest

from lmm_ecr.errors import ConfigError, Preempted
from lmm_ecr.processes import end_process, process_label, run_and_exit


def ending_of(main) -> int:
    with pytest.raises(SystemExit) as caught:
        run_and_exit("recipe.py", main)
    return caught.value.code


def raising(error):
    def main():
        raise error

    return main


def test_user_errors_exit_with_2_and_without_a_trace(capsys):
    assert ending_of(raising(ConfigError("the flag is wrong"))) == 2
    assert capsys.readouterr().err == "recipe.py: error: the flag is wrong\n"


def test_a_stopped_program_says_so_and_exits_with_85(capsys):
    assert ending_of(raising(Preempted("stopped by SIGUSR1"))) == 85
    assert capsys.readouterr().err == "recipe.py: stopped: stopped by SIGUSR1\n"


def test_a_program_that_returns_exits_with_0():
    assert ending_of(lambda: None) == 0


@pytest.mark.parametrize(("code", "status", "said"), [(None, 0, ""), (3, 3, ""), ("no such flag", 1, "no such flag\n")])
def test_the_status_of_an_argument_parser_is_kept(code, status, said, capsys):
    assert ending_of(raising(SystemExit(code))) == status
    assert capsys.readouterr().err == said


def test_an_unexpected_error_keeps_its_trace_and_names_the_process(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setattr("socket.gethostname", lambda: "n1")
    assert process_label() == "host n1, rank 2 of 4: "
    assert ending_of(raising(ZeroDivisionError("by zero"))) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.endswith("host n1, rank 2 of 4: recipe.py died of ZeroDivisionError: by zero\n")


def test_a_single_process_has_no_label(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert process_label() == ""
    with pytest.raises(SystemExit):
        end_process(0)


def run_in_a_process_group(body: str, tmp_path) -> subprocess.CompletedProcess:
    """Run `body` as the main function of a program that has joined a process group of its own."""
    program = f"""
import atexit, threading, time
import torch
import torch.distributed as dist
from lmm_ecr.errors import Preempted
from lmm_ecr.processes import run_and_exit

def main():
    dist.init_process_group("gloo", init_method="file://{tmp_path}/store", rank=0, world_size=1)
    atexit.register(print, "exit handler")
{textwrap.indent(textwrap.dedent(body), "    ")}

run_and_exit("recipe.py", main)
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(("last", "status"), [("pass", 0), ("raise Preempted('stopped')", 85)])
def test_threads_of_gloo_cannot_fail_a_process_that_has_done_its_work(last, status, tmp_path):
    body = f"""
        # What Gloo's threads go on releasing while the interpreter would shut down.
        for _ in range(200):
            dist.all_gather([torch.empty(1_000_000)], torch.ones(1_000_000), async_op=True)
        {last}
    """
    done = run_in_a_process_group(body, tmp_path)
    assert done.returncode == status, done.stderr
    assert done.stdout == "exit handler\n"


def test_a_process_of_a_group_waits_for_its_threads(tmp_path):
    done = run_in_a_process_group(
        "threading.Thread(target=lambda: (time.sleep(0.5), print('thread'))).start()", tmp_path
    )
    assert (done.returncode, done.stdout) == (0, "thread\nexit handler\n"), done.stderr


def run_into(device: str, body: str, *flags: str) -> subprocess.CompletedProcess:
    program = (
        f"import typer, rich\nfrom lmm_ecr.processes import run_and_exit\ndef main():\n    {body}\n"
        "run_and_exit('p', main)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with open(device, "w") as stdout:
        return subprocess.run(
            [sys.executable, *flags, "-c", program],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
            env=environment,
        )


@pytest.mark.parametrize("flags", [(), ("-u",)])
@pytest.mark.parametrize("body", ["typer.echo('x')", "typer.echo('x' * 1_000_000)", "rich.print('x')"])
def test_a_full_standard_output_is_an_error_for_the_user(body, flags):
    done = run_into("/dev/full", body, *flags)
    assert (done.returncode, done.stderr) == (
        2,
        "p: error: what is printed cannot be written: No space left on device\n",
    )


def test_what_cannot_be_flushed_at_the_end_is_an_error_for_the_user():
    done = run_into("/dev/full", "print('x')")
    assert (done.returncode, done.stderr) == (
        2,
        "p: error: what is printed cannot be written: No space left on device\n",
    )


def test_another_error_of_the_system_keeps_its_trace():
    done = run_into("/dev/null", "open('/absent')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "/absent" in done.stderr


def test_a_reader_that_went_away_is_met_with_silence():
    program = "from lmm_ecr.processes import run_and_exit\nrun_and_exit('p', lambda: __import__('typer').echo('x' * 1_000_000))"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
