"""What a recipe writes when training has ended: the best model, predictions, metrics, plot, and the record of the run."""

import csv
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
from ..data.manifest import Rejection
from ..errors import TrainingError
from ..files import atomic_write, write_json
from ..metrics import evaluate_predictions
from ..models.regression import unwrap_regressor
from ..plots import scatter_plot
from ..predictions import write_predictions
from .evaluation import prediction_alarm
from .hub import push_run
from .meter import peak_memory_gb
from .output_dir import RECORD, command_line
from .trainer import EcrTrainer

PACKAGES = ("lmm_ecr", "torch", "transformers", "accelerate", "deepspeed", "peft", "av", "numpy")


def save_model(trainer: EcrTrainer, output: Path) -> list[str]:
    """Write model, processor and preprocessing into `output`, each file whole, `config.json` last.

    Every process must call it (sharded weights are collected from all). Returns the names of the files on the first one.
    """
    staging = output / ".model.tmp"
    names: list[str] = []
    if trainer.is_world_process_zero() and staging.exists():
        shutil.rmtree(staging)  # of a run that was killed here
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(staging), _internal_call=True)  # else it goes to the hub before the run is complete
    if trainer.is_world_process_zero():
        for stale in (*output.glob("model*.safetensors*"), *output.glob("adapter_*")):
            stale.unlink()
        files = sorted(staging.iterdir(), key=lambda path: path.name == "config.json")
        for path in files:
            os.replace(path, output / path.name)
            names.append(path.name)
        shutil.rmtree(staging)
    trainer.accelerator.wait_for_everyone()
    return names


def finish_run(trainer: EcrTrainer, args: RecipeArguments, train_metrics: dict[str, float], backbone: str) -> dict:
    """Score the evaluation clips with the best model and write everything of the run directory, and the hub if asked for.

    Returns the content of metrics.json. Every process must call it; the first one writes. Raises TrainingError, before
    anything is written, if a prediction is not finite.
    """
    output = Path(args.training.output_dir)
    dataset: ClipDataset = trainer.eval_dataset
    predictions, readable = trainer.score(dataset)
    _check_finite(predictions[readable])
    ablations = {}
    for name in args.training.eval_ablations:
        values, ok = trainer.score(ClipDataset(dataset.manifest, dataset.processor, dataset.reader, (name,)))
        ablations[name] = _metrics(values, ok, dataset, 0)
    model_files = save_model(trainer, output)
    trainer.notes.collect()
    rejections = _all_rejections(trainer)
    if not trainer.is_world_process_zero():
        return {}
    targets = dataset.manifest.targets
    metrics: dict[str, Any] = {
        "eval": _metrics(predictions, readable, dataset, args.training.bootstrap_resamples),
        "train": _train_numbers(trainer, train_metrics, len(rejections)),
    }
    if len(targets) > 1:
        metrics["eval_targets"] = {
            name: _metrics(predictions, readable, dataset, args.training.bootstrap_resamples, column)
            for column, name in enumerate(targets)
        }
    if ablations:
        metrics["eval_ablations"] = ablations
    metrics["alarms"] = _alarms(trainer, predictions, readable, metrics["train"]["model_step"])
    ids = [row.id for row, ok in zip(dataset.manifest, readable, strict=True) if ok]
    columns = {name: predictions[readable, column] for column, name in enumerate(targets)}
    write_predictions(output / "predictions" / "eval.csv", ids, columns)
    _write_rejections(output / "rejected.csv", rejections)
    known = readable & ~np.isnan(dataset.manifest.labels[:, 0])
    scatter_plot(
        predictions[known, 0],
        dataset.manifest.labels[known, 0],
        output / "plots" / "eval_scatter.png",
        title=f"{targets[0]} of held-out clips",
        metrics=metrics["eval"],
    )
    write_json(output / "metrics.json", metrics)
    write_json(output / RECORD, run_record(args, trainer, backbone))
    if args.training.push_to_hub:
        push_run(trainer, output, model_files, metrics)
    return metrics


def _check_finite(predictions: np.ndarray) -> None:
    """predictions: [readable clips, targets], the same on every process."""
    broken = np.count_nonzero(~np.isfinite(predictions).all(axis=1))
    if broken:
        raise TrainingError(
            f"the model gives NaN or infinite predictions for {broken} of {len(predictions)} evaluation clips; it was not "
            "saved. Usual causes: a learning rate that is too high, --max_grad_norm 0, or fp16 (use bf16). Lower the rates "
            "or raise --warmup_steps, and start anew"
        )


def _alarms(trainer: EcrTrainer, predictions: np.ndarray, readable: np.ndarray, step: int) -> list[str]:
    """The alarms of the training, and those about the final predictions that its evaluations have not raised."""
    alarms = list(trainer.notes.alarms)
    manifest = trainer.eval_dataset.manifest
    for column, name in enumerate(manifest.targets):
        labels = manifest.labels[:, column]
        known = readable & ~np.isnan(labels)
        alarm = prediction_alarm(predictions[known, column], labels[known])
        if alarm and f"step {step}: {name}: {alarm}" not in alarms:
            alarms.append(f"step {step}: {name}: {alarm}")
    return alarms


def _metrics(predictions, readable, dataset: ClipDataset, resamples: int, column: int = 0) -> dict:
    labels = dataset.manifest.labels[:, column]
    known = readable & ~np.isnan(labels)
    return evaluate_predictions(predictions[known, column], labels[known], resamples=resamples)


def _all_rejections(trainer: EcrTrainer) -> list[tuple[str, Rejection]]:
    """(table, rejected row) of both tables by row: noted while training and scoring (on the first process: by all), and
    while reading the tables."""
    train, evaluation = trainer.train_dataset.manifest, trainer.eval_dataset.manifest
    trained = {row.id for row in train}
    found = {("train" if r.id in trained else "eval", r.row): r for r in trainer.notes.rejections.values()}
    for table, manifest in (("train", train), ("eval", evaluation)):
        found |= {(table, rejection.row): rejection for rejection in manifest.rejections}
    order = {"train": 0, "eval": 1}
    return [(table, found[table, row]) for table, row in sorted(found, key=lambda key: (order[key[0]], key[1]))]


def _write_rejections(path: Path, rejections: list[tuple[str, Rejection]]) -> None:
    """Write `table,row,Id,reason,detail` as CSV, or remove the file of an earlier attempt if there are none."""
    if not rejections:
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["table", "row", "Id", "reason", "detail"])
        writer.writerows([table, r.row, r.id, r.reason, r.detail] for table, r in rejections)


def _train_numbers(trainer: EcrTrainer, train_metrics: dict[str, float], rejected: int) -> dict[str, Any]:
    """best_step: of the best model, None if the run ended with the last one. model_step: of the model that was saved."""
    best = trainer.loaded_best_step
    return {
        "n": len(trainer.train_dataset),
        "runtime_s": train_metrics["train_runtime"],
        "clips_per_s": train_metrics["train_samples_per_second"],
        "loss": train_metrics["train_loss"],
        "steps": trainer.state.global_step,
        "best_step": best,
        "model_step": trainer.state.global_step if best is None else best,
        "peak_memory_gb": peak_memory_gb(),
        "rejected": rejected,
        "damaged": len(trainer.notes.damaged),
        "truncated_texts": trainer.notes.num_truncated,
    }


def run_record(args: RecipeArguments, trainer: EcrTrainer, backbone: str) -> dict[str, Any]:
    """Everything needed to run the same again."""
    return {
        "command": command_line(sys.argv),
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
        f"{'last model,' if train['best_step'] is None else 'best model from'} step {train['model_step']}."
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
