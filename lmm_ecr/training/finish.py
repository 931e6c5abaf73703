"""What a recipe writes when training has ended: the best model, predictions, metrics, plot, and the record of the run."""

import importlib.metadata
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..arguments import RecipeArguments
from ..data.dataset import ClipDataset
from ..data.manifest import Rejection, write_rejections
from ..files import write_json
from ..metrics import evaluate_predictions
from ..models.regression import unwrap_regressor
from ..plots import scatter_plot
from ..predictions import write_predictions
from .meter import peak_memory_gb
from .trainer import EcrTrainer

PACKAGES = ("lmm_ecr", "torch", "transformers", "accelerate", "deepspeed", "peft", "av", "numpy")


def save_model(trainer: EcrTrainer, output: Path) -> None:
    """Write model, processor and preprocessing into `output`, each file whole, `config.json` last.

    Every process must call it (sharded weights are collected from all).
    """
    staging = output / ".model.tmp"
    trainer.save_model(str(staging))
    if trainer.is_world_process_zero():
        for stale in (*output.glob("model*.safetensors*"), *output.glob("adapter_*")):
            stale.unlink()
        files = sorted(staging.iterdir(), key=lambda path: path.name == "config.json")
        for path in files:
            os.replace(path, output / path.name)
        shutil.rmtree(staging)
    trainer.accelerator.wait_for_everyone()


def finish_run(trainer: EcrTrainer, args: RecipeArguments, train_metrics: dict[str, float], backbone: str) -> dict:
    """Score the evaluation clips with the best model and write everything of the run directory.

    Returns the content of metrics.json. Every process must call it; the first one writes.
    """
    output = Path(args.training.output_dir)
    dataset: ClipDataset = trainer.eval_dataset
    save_model(trainer, output)
    predictions, readable = trainer.score(dataset)
    ablations = {}
    for name in args.training.eval_ablations:
        values, ok = trainer.score(ClipDataset(dataset.manifest, dataset.processor, dataset.reader, (name,)))
        ablations[name] = _metrics(values, ok, dataset, 0)
    trainer.notes.collect()
    rejections = _all_rejections(trainer, dataset)
    if not trainer.is_world_process_zero():
        return {}
    targets = dataset.manifest.targets
    metrics: dict[str, Any] = {
        "eval": _metrics(predictions, readable, dataset, args.training.bootstrap_resamples),
        "train": _train_numbers(trainer, train_metrics),
    }
    if len(targets) > 1:
        metrics["eval_targets"] = {
            name: _metrics(predictions, readable, dataset, args.training.bootstrap_resamples, column)
            for column, name in enumerate(targets)
        }
    if ablations:
        metrics["eval_ablations"] = ablations
    metrics["alarms"] = trainer.notes.alarms
    ids = [row.id for row, ok in zip(dataset.manifest, readable, strict=True) if ok]
    columns = {name: predictions[readable, column] for column, name in enumerate(targets)}
    write_predictions(output / "predictions" / "eval.csv", ids, columns)
    if rejections:
        write_rejections(output / "rejected.csv", rejections)
    known = readable & ~np.isnan(dataset.manifest.labels[:, 0])
    scatter_plot(
        predictions[known, 0],
        dataset.manifest.labels[known, 0],
        output / "plots" / "eval_scatter.png",
        title=f"{targets[0]} of held-out clips",
        metrics=metrics["eval"],
    )
    write_json(output / "metrics.json", metrics)
    write_json(output / "run.json", run_record(args, trainer, backbone))
    return metrics


def _metrics(predictions, readable, dataset: ClipDataset, resamples: int, column: int = 0) -> dict:
    labels = dataset.manifest.labels[:, column]
    known = readable & ~np.isnan(labels)
    return evaluate_predictions(predictions[known, column], labels[known], resamples=resamples)


def _all_rejections(trainer: EcrTrainer, dataset: ClipDataset) -> list[Rejection]:
    """Rejected rows of both tables: noted while training (on the first process: of all), and while reading the tables."""
    found: dict[str, Rejection] = dict(trainer.notes.rejections)
    for manifest in (trainer.train_dataset.manifest, dataset.manifest):
        for rejection in manifest.rejections:
            found.setdefault(rejection.id, rejection)
    return list(found.values())


def _train_numbers(trainer: EcrTrainer, train_metrics: dict[str, float]) -> dict[str, Any]:
    return {
        "n": len(trainer.train_dataset),
        "runtime_s": train_metrics["train_runtime"],
        "clips_per_s": train_metrics["train_samples_per_second"],
        "loss": train_metrics["train_loss"],
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step,
        "peak_memory_gb": peak_memory_gb(),
        "rejected": len(trainer.notes.rejections),
        "damaged": len(trainer.notes.damaged),
        "truncated_texts": trainer.notes.num_truncated,
    }


def run_record(args: RecipeArguments, trainer: EcrTrainer, backbone: str) -> dict[str, Any]:
    """Everything needed to run the same again."""
    return {
        "command": [sys.executable, *sys.argv],
        "arguments": args.to_dict(),
        "backbone": backbone,
        "preprocessing": trainer.train_dataset.processor.spec.to_dict(),
        "model": json.loads(unwrap_regressor(trainer.model).config.to_json_string()),
        "data": {
            "train": trainer.train_dataset.manifest.fingerprint(),
            "eval": trainer.eval_dataset.manifest.fingerprint(),
        },
        "seed": args.training.seed,
        "processes": trainer.accelerator.num_processes,
        "distributed": str(trainer.accelerator.distributed_type),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def print_summary(metrics: dict, trainer: EcrTrainer, args: RecipeArguments, notes: list[str]) -> None:
    """What ran, how good it is, and where everything is: the last thing a recipe prints."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True)
    output, train, result = Path(args.training.output_dir), metrics["train"], metrics["eval"]
    console.rule("[bold]Done")
    for note in notes:
        console.print(note)
    console.print(
        f"Trained on {train['n']:,} clips for {train['steps']:,} steps in {train['runtime_s']:.0f} s "
        f"({train['clips_per_s']:.1f} clips/s, peak memory {train['peak_memory_gb']:.2f} GB); "
        f"best model from step {train['best_step'] or train['steps']}."
    )
    table = Table(title=f"{result['n']} held-out clips", title_justify="left")
    names = ("srocc", "plcc", "krcc", "rmse", "final_score")
    table.add_column("input")
    for name in names:
        table.add_column({"final_score": "final"}.get(name, name.upper()), justify="right")
    rows = {"everything": result, **metrics.get("eval_ablations", {})}
    for name, values in rows.items():
        table.add_row(name, *("-" if values[k] is None else f"{values[k]:.4f}" for k in names))
    console.print(table)
    low, high = result["ci95"]["final_score"]
    if low is not None:
        console.print(f"Final score = 0.6 SROCC + 0.4 PLCC; 95 % interval {low:.4f} to {high:.4f} (bootstrap).")
    for count, what in (
        (train["rejected"], f"clips could not be read: {output / 'rejected.csv'}"),
        (train["damaged"], "clips are damaged and were read in part"),
        (train["truncated_texts"], "times a title or description was cut to its token limit"),
    ):
        if count:
            console.print(f"[yellow]{count:,} {what}")
    for alarm in metrics["alarms"]:
        console.print(f"[bold red]ALARM[/] {alarm}")
    console.print(f"\nModel        {output}  (lmm-ecr predict --model {output} ...)")
    for label, name in (
        ("Predictions", "predictions/eval.csv"),
        ("Metrics", "metrics.json"),
        ("Plot", "plots/eval_scatter.png"),
        ("Record", "run.json"),
    ):
        console.print(f"{label:<12} {output / name}")
