"""How a run was started is checked before anything is loaded."""

from types import SimpleNamespace

import pytest
import torch

from lmm_ecr.arguments import EcrTrainingArguments
from lmm_ecr.errors import ConfigError
from lmm_ecr.training.launch import check_launch, check_requirements


def started(monkeypatch, **environment):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))


def training(**values):
    return SimpleNamespace(**{"n_gpu": 1, "world_size": 1, "use_cpu": True, "deepspeed_plugin": None, **values})


def test_missing_deepspeed_or_configuration_is_said(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="no such file; see deepspeed_configs/"):
        EcrTrainingArguments(output_dir=str(tmp_path), deepspeed="nowhere.json", use_cpu=True)
    monkeypatch.setitem(__import__("sys").modules, "deepspeed", None)
    with pytest.raises(ConfigError, match="pip install deepspeed"):
        EcrTrainingArguments(output_dir=str(tmp_path), deepspeed="deepspeed_configs/zero2.json", use_cpu=True)


def test_fewer_gpus_than_processes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    started(monkeypatch, LOCAL_WORLD_SIZE=4)
    with pytest.raises(ConfigError, match="4 processes were started on this machine, but 2 GPUs are visible"):
        check_requirements(None, use_cpu=False)
    check_requirements(None, use_cpu=True)
    started(monkeypatch, LOCAL_WORLD_SIZE=2)
    check_requirements(None, use_cpu=False)


def test_processes_that_would_train_alone(monkeypatch):
    started(monkeypatch, WORLD_SIZE=2)
    with pytest.raises(ConfigError, match=r"launcher started 2 processes, but this one counts 1.*--use_cpu true"):
        check_launch(training())
    check_launch(training(world_size=2))
    started(monkeypatch, SLURM_STEP_NUM_TASKS=2)
    with pytest.raises(ConfigError, match="srun started 2 tasks, but each would train alone"):
        check_launch(training())
    started(monkeypatch)
    check_launch(training())
    with pytest.raises(ConfigError, match="4 GPUs are visible to one process"):
        check_launch(training(n_gpu=4))
