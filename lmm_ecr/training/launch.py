"""Checks of how a run was started, before anything large is loaded: processes, GPUs, DeepSpeed.

The numbers that a launcher (accelerate, torchrun, srun) gives its processes are compared with what the process counts: a
mistake here otherwise shows as an error deep inside a library, or as several processes that each train alone.
"""

import importlib.util
import os
from datetime import timedelta
from pathlib import Path

import torch
from transformers import TrainingArguments

from ..errors import ConfigError


def check_requirements(deepspeed: str | dict | None, use_cpu: bool) -> None:
    """What has to be true before TrainingArguments choose a device.

    deepspeed: its configuration file, as in `--deepspeed`. Raises ConfigError if the package or the file is missing, or if
    there are fewer GPUs than processes on this machine.
    """
    if deepspeed:
        if importlib.util.find_spec("deepspeed") is None:
            raise ConfigError(
                "--deepspeed: the deepspeed package is not installed (`pip install deepspeed`, Linux only)"
            )
        if isinstance(deepspeed, str) and not deepspeed.lstrip().startswith("{") and not Path(deepspeed).is_file():
            raise ConfigError(f"--deepspeed {deepspeed}: no such file; see deepspeed_configs/")
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    gpus = torch.cuda.device_count()
    if not use_cpu and 0 < gpus < local:
        raise ConfigError(
            f"{local} processes were started on this machine, but {gpus} GPUs are visible: lower --num_processes (the "
            "total of all machines), or ask for more GPUs (--gpus-per-node)"
        )


def join_processes_on_cpu(timeout_seconds: float) -> None:
    """Join the processes that the launcher started, with Gloo, if there are several and it has not been done.

    transformers does it for GPUs with `--ddp_timeout`, but for CPUs with PyTorch's default. Must run before
    TrainingArguments choose a device.
    """
    started = int(os.environ.get("WORLD_SIZE", 1)) > 1 and "MASTER_ADDR" in os.environ
    if started and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=timeout_seconds))


def uses_deepspeed(training: TrainingArguments) -> bool:
    """Whether DeepSpeed trains, asked for by `--deepspeed FILE` or by the launcher's configuration."""
    return training.deepspeed_plugin is not None


def check_launch(training: TrainingArguments) -> None:
    """Refuse a launch in which processes would train alone, and join the processes of a DeepSpeed run on CPUs.

    Must run before a model is loaded: under ZeRO-3 loading is a joint operation.
    """
    if training.n_gpu > 1:
        raise ConfigError(
            f"{training.n_gpu} GPUs are visible to one process: start with `accelerate launch` (one process per GPU), "
            "or show it a single one with CUDA_VISIBLE_DEVICES"
        )
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != training.world_size:
        raise ConfigError(
            f"the launcher started {started} processes, but this one counts {training.world_size}, so each would train "
            "alone. Without GPUs add --use_cpu true; with GPUs check that this process sees one (nvidia-smi)"
        )
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks > 1 and training.world_size == 1:
        raise ConfigError(
            f"srun started {tasks} tasks, but each would train alone: inside srun use `accelerate launch --multi_gpu "
            '--num_machines "$SLURM_NNODES" --machine_rank "$SLURM_NODEID" ...` as launch/slurm/train.sbatch does'
        )
    if uses_deepspeed(training) and training.use_cpu and started > 1:
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo")  # on GPUs accelerate has done it


def cast_unsharded_weights(model: torch.nn.Module, training: TrainingArguments) -> None:
    """Under ZeRO-3 with bf16 or fp16: give the weights made after loading (head, adapters) the backbone's dtype.

    DeepSpeed keeps all trained weights of a group in one buffer of one dtype, beside the float32 master weights of its
    optimizer; other stages cast the whole model themselves. The head still computes in float32.
    """
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    if not (uses_deepspeed(training) and is_deepspeed_zero3_enabled() and (training.bf16 or training.fp16)):
        return
    dtype = torch.bfloat16 if training.bf16 else torch.float16
    for parameter in model.parameters():
        if not hasattr(parameter, "ds_id") and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
