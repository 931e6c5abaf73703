"""Weak scaling of training: clips per second and process with 1, 2, ... processes on this machine.

    python benchmarks/weak_scaling.py [--processes 1 2] [--steps 30] [--hidden_size 256] [--num_layers 4] [--loss mse]

Every process trains on batches of the same size (random clips, no decoding), so with perfect scaling the rate per process stays
the same. On a CPU the processes share the memory bandwidth and the collectives go over gloo; one thread per process.
Prints a table and, with --json FILE, writes it. Bytes per step: the gradients of all trained parameters in float32; a ring
all-reduce sends 2 (N - 1) / N times that from every process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from lmm_ecr.processes import run_and_exit


def worker(options: argparse.Namespace) -> None:
    """One process: times steps of `EcrTrainer`, with gradients averaged over all processes."""
    from transformers import TrainerCallback

    from lmm_ecr.arguments import EcrTrainingArguments, TuningArguments
    from lmm_ecr.data.dataset import ClipDataset
    from lmm_ecr.data.decode import Clip
    from lmm_ecr.data.manifest import Manifest, ManifestRow
    from lmm_ecr.models.qwen2_5_vl import Qwen25VLProcessor, Qwen25VLSpec
    from lmm_ecr.models.regression import LmmRegressor
    from lmm_ecr.training.trainer import EcrTrainer

    torch.set_num_threads(1)
    seconds: list[float] = []

    class Timer(TrainerCallback):
        start = 0.0

        def on_step_begin(self, args, state, control, **kwargs):
            self.start = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs):
            seconds.append(time.perf_counter() - self.start)

    processor = Qwen25VLProcessor.from_backbone(options.backbone, Qwen25VLSpec(max_pixels=8 * 784, min_pixels=784))
    frames = torch.randint(
        0, 256, (8, 112, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    ).numpy()
    clip = Clip(frames, torch.arange(8).double().numpy(), None, 8.0, None)
    world = int(os.environ.get("WORLD_SIZE", 1))
    count = options.batch_size * world
    rows = [ManifestRow(i + 1, f"clip{i}", Path("-"), "a few words", None, (i / count,)) for i in range(count)]
    dataset = ClipDataset(Manifest("random clips", rows, ("ECR",)), processor, lambda row: clip)
    with tempfile.TemporaryDirectory() as directory:
        args = EcrTrainingArguments(
            output_dir=directory,
            per_device_train_batch_size=options.batch_size,
            max_steps=options.steps + options.warmup,
            loss=options.loss,
            eval_strategy="no",
            save_strategy="no",
            dataloader_num_workers=0,
            disable_tqdm=True,
            logging_steps=10_000,
            use_cpu=not torch.cuda.is_available(),
        )
        model = LmmRegressor.from_backbone(options.backbone, head_hidden_size=64)
        trainer = EcrTrainer(model, args, TuningArguments(), dataset, callbacks=[Timer()])
        trainer.train()
        if trainer.is_world_process_zero():
            step = statistics.median(seconds[options.warmup :])
            parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
            result = {"step_s": step, "parameters": parameters, "clips_per_s_per_process": options.batch_size / step}
            Path(options.result).write_text(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--num_layers", type=int, default=4)
    parser.add_argument("--loss", default="mse")
    parser.add_argument("--json")
    parser.add_argument("--backbone", help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.result:
        worker(options)
        return
    from lmm_ecr.data.prompt import DEFAULT_TEMPLATE
    from lmm_ecr.models.tiny import write_tiny_qwen2_5_vl

    results = []
    with tempfile.TemporaryDirectory() as directory:
        backbone = write_tiny_qwen2_5_vl(
            Path(directory) / "model",
            [DEFAULT_TEMPLATE],
            hidden_size=options.hidden_size,
            num_layers=options.num_layers,
        )
        for count in options.processes:
            result = Path(directory) / f"{count}.json"
            words = ["--result", str(result), "--backbone", str(backbone), "--steps", str(options.steps)]
            words += ["--warmup", str(options.warmup), "--batch_size", str(options.batch_size), "--loss", options.loss]
            launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={count}", "--master_port=29533"]
            subprocess.run([sys.executable, *launcher, __file__, *words], check=True, capture_output=True, text=True)
            results.append({"processes": count, **json.loads(result.read_text())})
    first = results[0]["clips_per_s_per_process"]
    print(
        f"{results[0]['parameters'] / 1e6:.2f} M parameters, {results[0]['parameters'] * 4 / 1e6:.1f} MB of gradients a step"
    )
    print("processes   step      clips/s per process   ratio")
    for row in results:
        row["ratio"] = row["clips_per_s_per_process"] / first
        rate = row["clips_per_s_per_process"]
        print(f"{row['processes']:9d}   {row['step_s'] * 1e3:5.0f} ms   {rate:19.2f}   {row['ratio']:5.2f}")
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    run_and_exit("weak_scaling.py", main)
