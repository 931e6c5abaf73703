"""Trains the same small models in one process, two, and two with DeepSpeed: one launch for all of them.

    torchrun --nproc_per_node 2 -m tests.distributed.driver JOB.json        (or python -m ... for one process)

JOB.json: backbones (family -> directory), train, eval (tables), videos, broken and silent (clips), output, processes, runs
(name -> strategy, loss, ...). Writes <output>/<name>.<rank>.json with what the tests compare; the imports cost more than all
the training.
"""

import json
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from lmm_ecr.arguments import TuningArguments
from lmm_ecr.data.manifest import read_manifest
from lmm_ecr.errors import Preempted
from lmm_ecr.files import read_json
from lmm_ecr.models.qwen2_5_vl import Qwen25VLProcessor, Qwen25VLSpec
from lmm_ecr.models.regression import unwrap_regressor
from lmm_ecr.models.videollama2.processing import VideoLlama2Processor
from lmm_ecr.processes import run_and_exit
from lmm_ecr.training.checkpoints import last_complete_checkpoint
from lmm_ecr.training.finish import save_model
from tests.training.runs import Interruption, make_trainer, step_losses

CONFIGS = Path(__file__).resolve().parents[2] / "deepspeed_configs"
LORA = {"vision": "freeze", "projector": "freeze", "language_model": "lora", "lora_rank": 4, "lora_dropout": 0.0}


def forget_launch_state() -> None:
    """Let the next run choose its strategy anew; accelerate keeps one per process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


def gathered(parameters: list[torch.nn.Parameter]):
    """The whole parameters inside the block, also under ZeRO-3."""
    if not hasattr(parameters[0], "ds_id"):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters)


def head_state(trainer) -> dict:
    """The weights of the new head as this process sees them."""
    head = unwrap_regressor(trainer.model).regression_head
    with gathered(list(head.parameters())):
        weight, bias = head.fc1.weight.detach().float().clone(), head.fc1.bias.detach().float().clone()
    return {
        "std": float(weight.std()),
        "first": weight.flatten()[:8].tolist(),
        "bias": float(bias.abs().max()),
    }


def run(job: dict, name: str, options: dict) -> None:
    output = Path(job["output"]) / options.get("directory", name)
    processes = job["processes"]
    family = options.get("family", "qwen2_5_vl")
    backbone = job["backbones"][family]
    if family == "qwen2_5_vl":
        processor = Qwen25VLProcessor.from_backbone(backbone, Qwen25VLSpec(max_pixels=6 * 784, min_pixels=784))
    else:
        processor = VideoLlama2Processor.from_backbone(backbone)
    train = read_manifest(job["train"], job["videos"], targets=["ECR"])
    train = replace(train, rows=train.rows[: options.get("rows", 11)])
    for kind in ("broken", "silent"):
        rows = [
            replace(row, video=Path(job[kind])) if i in options.get(kind, ()) else row
            for i, row in enumerate(train.rows)
        ]
        train = replace(train, rows=rows)
    evaluation = read_manifest(job["eval"], job["videos"], targets=["ECR"])
    evaluation = replace(evaluation, rows=evaluation.rows[:5])
    strategy = options["strategy"]
    arguments = {}
    if strategy != "plain":
        config = read_json(CONFIGS / f"{strategy}.json")
        # The weights of a tiny model would all be small enough to stay whole, and nothing would be gathered in a step.
        config["zero_optimization"] |= {
            "stage3_param_persistence_threshold": 0,
            "stage3_model_persistence_threshold": 0,
        }
        arguments["deepspeed"] = config
    accumulation = options.get("accumulation", 1)
    trainer = make_trainer(
        backbone,
        processor,
        train,
        evaluation,
        output,
        tuning=TuningArguments(**(LORA if options.get("lora") else options.get("tuning", {}))),
        loss=options["loss"],
        per_device_train_batch_size=8 // processes // accumulation,
        per_device_eval_batch_size=2,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=2,
        learning_rate=2e-4,
        eval_strategy="epoch",
        bf16=options.get("bf16", False),
        dtype="bfloat16" if options.get("bf16") else "float32",
        save_strategy="epoch" if options.get("save") else "no",
        on_error="skip" if "broken" in options else "fail",
        **arguments,
    )
    rank = trainer.accelerator.process_index
    stop = options.get("stop")
    if stop and rank == processes - 1:  # only one process gets the signal
        trainer.add_callback(Interruption(stop, signal.SIGUSR1))
    head = head_state(trainer)
    world = (trainer.accelerator.num_processes, str(trainer.accelerator.distributed_type))
    resume_from = last_complete_checkpoint(output) if options.get("resume") else None
    try:
        trainer.train(resume_from and str(resume_from))
    except Preempted as error:
        Path(job["output"], f"{name}.{rank}.json").write_text(json.dumps({"stopped": str(error)}))
        return
    predictions, readable = trainer.score(trainer.eval_dataset)
    if options.get("save"):
        save_model(trainer, output)
    result = {
        "world": world,
        "losses": step_losses(trainer).tolist(),
        "predictions": predictions[:, 0].tolist(),
        "readable": readable.tolist(),
        "eval": [e["eval_rmse"] for e in trainer.state.log_history if "eval_rmse" in e],
        "rejected": sorted(trainer.notes.rejections),
        "head": head,
        "sharded": hasattr(next(unwrap_regressor(trainer.model).backbone.parameters()), "ds_id"),
        "distinct_scores": _distinct_scores(trainer),
    }
    Path(job["output"], f"{name}.{rank}.json").write_text(json.dumps(result))


def _distinct_scores(trainer) -> int:
    """How many different values the head gives for 256 random features: a bfloat16 head would tie many of them."""
    model = unwrap_regressor(trainer.model).eval()
    parameters = list(model.regression_head.parameters())
    features = torch.randn(256, model.config.get_text_config().hidden_size, generator=torch.Generator().manual_seed(0))
    with gathered(parameters), torch.no_grad():
        return len(model.regression_head(features.to(parameters[0].dtype)).unique())


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    for name, options in job["runs"].items():
        start = time.perf_counter()
        run(job, name, options)
        print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)
        forget_launch_state()


if __name__ == "__main__":
    run_and_exit("driver.py", main)
