"""Scoring a table with a trained model: what `lmm-ecr predict` does.

Under a launcher (`accelerate launch -m lmm_ecr.predict`, torchrun, srun) the rows are shared out among the processes; results
are the same for any number of processes and any batch size.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .data.ablation import check_ablations
from .data.cache import PreparedReader, is_prepared, read_prepared_manifest
from .data.dataset import ClipDataset, FileReader
from .data.lengths import shared_lengths
from .data.manifest import Rejection, read_manifest, write_rejections
from .data.processor import ClipProcessor, resolve_directory
from .data.workers import default_num_workers
from .errors import ConfigError, Preempted
from .journal import Journal
from .predictions import write_predictions
from .predictor import Predictor, check_dtype, length_ordered_batches
from .signals import StopSignals


@dataclass
class PredictionReport:
    """What a prediction run did. `rejections`: rows without a score, with reasons; rates count this run's rows only."""

    num_rows: int = 0
    num_scored: int = 0
    num_resumed: int = 0
    num_truncated: int = 0
    num_limited: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)
    seconds: float = 0.0
    written: bool = False
    is_main_process: bool = True

    @property
    def clips_per_s(self) -> float:
        return (self.num_rows - self.num_resumed) / self.seconds if self.seconds else 0.0

    def describe(self, output: str | Path) -> str:
        """The summary for the terminal."""
        resumed = f", {self.num_resumed:,} of them by an earlier run" if self.num_resumed else ""
        lines = [f"{self.num_scored:,} of {self.num_rows:,} rows scored{resumed} ({self.clips_per_s:.1f} clips/s)"]
        if self.damaged:
            lines.append(f"{len(self.damaged):,} clips are damaged and were read in part: {_some(self.damaged)}")
        if self.num_limited:
            lines.append(f"{self.num_limited:,} scores reached the limits 0 or 1; such ties cost rank correlation")
        if self.num_truncated:
            lines.append(f"{self.num_truncated:,} titles or descriptions were cut to their token limit")
        if self.rejections:
            lines.append(f"{len(self.rejections):,} rows have no score, see {output}.rejected.csv:")
            lines += [f"  {r.id}: {r.reason} {r.detail}".rstrip() for r in self.rejections[:5]]
        if self.written:
            lines.append(f"wrote {output}")
        else:
            lines.append(
                f"{output} was not written because rows are missing. The scores are kept: repair the clips and run the "
                "same command again, or add --on-error skip to write the others."
            )
        return "\n".join(lines)


def _some(items: dict[str, str]) -> str:
    shown = [f"{key} ({reason})" for key, reason in list(items.items())[:3]]
    return ", ".join(shown) + (", ..." if len(items) > 3 else "")


def load_table(data: str, video_dir: str | None, processor: ClipProcessor, decoder: str, ablations) -> ClipDataset:
    """The clips of a table with a video folder, or of a directory made by `lmm-ecr prepare`; missing files are rejections."""
    if is_prepared(data):
        manifest = read_prepared_manifest(data)
        return ClipDataset(manifest, processor, PreparedReader(data, processor.clip_spec()), ablations)
    manifest = read_manifest(data, video_dir, missing_files="reject")
    return ClipDataset(manifest, processor, FileReader(processor, decoder), ablations)


def predict_table(
    model: str | Path,
    data: str,
    output: str | Path,
    *,
    video_dir: str | None = None,
    batch_size: int = 8,
    num_workers: int | None = None,
    on_error: str = "fail",
    ablations: Sequence[str] = (),
    decoder: str = "pyav",
    device: str = "auto",
    dtype: str = "auto",
    attn_implementation: str = "sdpa",
    calibration_file: str | None = None,
    interval: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PredictionReport:
    """Score every row of a table and write `Id,ECR[,...]` in its order; see `lmm-ecr predict --help`.

    A killed run, or one stopped by SIGTERM or SIGUSR1 (Preempted), goes on with the rows that are missing. With on_error
    "fail" the table is written only if every row has a score; the scores found are kept for the next run either way.
    Rejected rows go to `<output>.rejected.csv`.
    """
    from accelerate import PartialState

    num_workers = default_num_workers() if num_workers is None else num_workers
    if on_error not in ("fail", "skip"):
        raise ConfigError(f"--on-error must be fail or skip, got {on_error!r}")
    if batch_size < 1 or num_workers < 0:
        raise ConfigError(
            f"--batch-size must be at least 1 and --num-workers at least 0, got {batch_size}, {num_workers}"
        )
    check_ablations(ablations)
    check_dtype(dtype)
    calibration = load_calibration(calibration_file, interval)
    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    if device == "auto":
        device = str(state.device)
    directory = resolve_directory(model)
    dataset = load_table(data, video_dir, ClipProcessor.from_pretrained(directory), decoder, ablations)
    journal = Journal(output, run_identity(directory, dataset, ablations, dtype))
    if state.is_main_process:
        journal.open(state.num_processes)
    state.wait_for_everyone()
    finished = journal.read()
    state.wait_for_everyone()  # nobody appends before everybody has read
    todo = [i for i in range(len(dataset)) if i not in finished]
    report = PredictionReport(num_rows=len(dataset), num_resumed=len(finished), is_main_process=state.is_main_process)
    start = time.perf_counter()
    if todo:
        predictor = Predictor.from_pretrained(
            directory, device=device, dtype=dtype, attn_implementation=attn_implementation, num_workers=num_workers
        )
        batches = length_ordered_batches(dataset, todo, batch_size, shared_lengths)
        with StopSignals() as signals:
            share = batches[state.process_index :: state.num_processes]
            _run(predictor, dataset, share, journal, state, len(finished), progress, signals)
    state.wait_for_everyone()
    report.seconds = time.perf_counter() - start
    if state.is_main_process:
        _write_results(output, dataset, journal, on_error, report, calibration, interval, _targets(directory))
    state.wait_for_everyone()
    return report


def _run(predictor: Predictor, dataset, batches, journal: Journal, state, done: int, progress, signals) -> None:
    for values, indices, notes in predictor.score_batches(dataset, batches):
        damaged = dict(notes["damaged"])
        records = [
            {"row": index, "scores": row.tolist(), "damaged": damaged.get(index)}
            for index, row in zip(indices, values, strict=True)
        ]
        records += [{"row": index, "rejection": vars(rejection)} for index, rejection in notes["rejections"]]
        if records:
            records[0]["num_truncated"] = notes["num_truncated"]
        journal.append(state.process_index, records)
        if signals.received:
            raise Preempted(
                f"stopped by {signals.received}; finished rows are kept in {journal.directory}, the same command goes on "
                "from there"
            )
        done += len(records) * state.num_processes
        if progress and state.is_main_process:
            progress(min(done, len(dataset)), len(dataset))


def _write_results(
    output, dataset, journal, on_error, report: PredictionReport, calibration, interval, targets
) -> None:
    records = journal.read()
    missing = len(dataset) - len(records)
    if missing:
        raise AssertionError(f"{missing} rows have neither a score nor a reason")
    manifest = dataset.manifest
    report.rejections = list(manifest.rejections)
    report.rejections += [Rejection(**r["rejection"]) for _, r in sorted(records.items()) if "rejection" in r]
    report.num_truncated = sum(r.get("num_truncated", 0) for r in records.values())
    report.damaged = {manifest[i].id: r["damaged"] for i, r in sorted(records.items()) if r.get("damaged")}
    scored = [i for i in range(len(manifest)) if "scores" in records[i]]
    report.num_scored = len(scored)
    report.num_rows += len(manifest.rejections)
    rejected_path = Path(f"{output}.rejected.csv")
    if report.rejections:
        write_rejections(rejected_path, sorted(report.rejections, key=lambda r: r.row))
        if on_error == "fail":
            return
    else:
        rejected_path.unlink(missing_ok=True)
    values = np.array([records[i]["scores"] for i in scored], dtype=np.float64).reshape(len(scored), len(targets))
    report.num_limited = int(np.count_nonzero((values[:, 0] <= 0) | (values[:, 0] >= 1)))
    columns = {name: values[:, column] for column, name in enumerate(targets)}
    if calibration is not None:
        raw = columns[targets[0]]
        columns[targets[0]] = calibration.apply(raw)
        if interval is not None:
            low, high = calibration.interval(raw, interval)
            columns |= {f"{targets[0]}_lo": low, f"{targets[0]}_hi": high}
    write_predictions(output, [manifest[i].id for i in scored], columns)
    report.written = True
    journal.remove()


def load_calibration(path: str | None, interval: float | None):
    """The calibration to apply, or None. Raises ConfigError for an interval without one."""
    if path is None:
        if interval is not None:
            raise ConfigError("--interval needs --calibrate FILE, made by `lmm-ecr evaluate ... --fit-calibration`")
        return None
    from .calibration import Calibration

    return Calibration.load(path)


def run_identity(directory: Path, dataset: ClipDataset, ablations: Sequence[str], dtype: str) -> dict[str, Any]:
    """What a result depends on: model files, table, ablations, precision. Weights are told apart by name, size and time."""
    digest = hashlib.sha256()
    for path in sorted(p for p in directory.iterdir() if p.suffix in (".json", ".safetensors", ".bin", ".jinja")):
        if path.name in ("metrics.json", "run.json"):
            continue
        stat = path.stat()
        digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return {
        "model": f"{directory} {digest.hexdigest()[:16]}",
        "table": f"{dataset.manifest.path} {dataset.manifest.fingerprint()}",
        "ablations": sorted(ablations),
        "dtype": dtype,
    }


def _targets(directory: Path) -> list[str]:
    from .models.regression import LmmRegressorConfig

    return LmmRegressorConfig.from_pretrained(directory).targets


if __name__ == "__main__":
    import sys

    from .cli import main

    sys.argv.insert(1, "predict")
    main()
