"""The job scripts as text: valid, preemptible, with settings at the top; what they do is shown in tests/distributed."""

import re
import subprocess

import pytest

from tests.distributed.launch import REPO

FOLDER = REPO / "launch" / "slurm"
SCRIPTS = sorted(FOLDER.iterdir())
JOBS = sorted(FOLDER.glob("*.sbatch"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_bash_reads_it(path):
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.name)
def test_jobs_can_be_requeued_and_keep_their_log(path):
    text = path.read_text()
    assert "#SBATCH --requeue" in text
    assert "#SBATCH --open-mode=append" in text
    for name in ("REPO", "VENV", "CONDA_ENV", "MODULES"):
        assert re.search(rf'^{name}="\$\{{{name}:-', text, re.M), f"{name} is no setting of {path.name}"


@pytest.mark.parametrize("name", ["train", "predict"])
def test_the_program_has_less_time_to_stop_than_slurm_gives_notice(name):
    text = (FOLDER / f"{name}.sbatch").read_text()
    notice = int(re.search(r"--signal=B:USR1@(\d+)", text)[1])
    grace = int(re.search(r"GRACE_SECONDS:-(\d+)", text)[1])
    assert notice - 20 < grace < notice


def test_a_step_ends_when_a_task_dies():
    assert "--kill-on-bad-exit=1" in (FOLDER / "common.sh").read_text()


@pytest.mark.parametrize("name", ["train", "predict"])
def test_without_arguments_the_usage_is_shown(name, tmp_path):
    done = subprocess.run(
        ["bash", str(FOLDER / f"{name}.sbatch")],
        env={"SLURM_SUBMIT_DIR": str(REPO), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "usage: sbatch" in done.stderr


def test_the_chain_asks_for_what_it_needs():
    done = subprocess.run(
        ["bash", str(FOLDER / "ecnu_sjtu.sh")],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "TRAIN_DATA" in done.stderr
