"""Scoring a table with a trained model: what `lmm-ecr predict` does.

Under a launcher (`accelerate launch -m lmm_ecr.predict`, torchrun, srun) the rows are shared out among the processes; results
are the same for any number of processes and any batch size.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .data.ablation import check_ablations
from .data.cache import PreparedReader, is_prepared, read_prepared_manifest
from .data.dataset import ClipDataset, FileReader, check_on_error
from .data.decode import check_decoder
from .data.lengths import shared_lengths
from .data.manifest import Rejection, read_manifest, write_rejections
from .data.processor import ClipProcessor, resolve_directory
from .data.workers import default_num_workers
from .errors import ConfigError, Preempted
from .files import is_special
from .journal import CompletionRecord, Journal, file_digest
from .outputs import check_output
from .predictions import write_predictions
from .predictor import Predictor, check_dtype, length_ordered_batches, resolve_dtype
from .run_identity import run_identity
from .signals import StopSignals


@dataclass
class PredictionReport:
    """What a prediction run did.

    num_scored: rows with a score, num_resumed of them from an earlier run. rejections: rows without one, with reasons.
    complete: the output was there already, nothing was done. seconds: of this run.
    """

    num_rows: int = 0
    num_scored: int = 0
    num_resumed: int = 0
    num_truncated: int = 0
    num_limited: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)
    seconds: float = 0.0
    written: bool = False
    complete: bool = False
    is_main_process: bool = True

    @property
    def clips_per_s(self) -> float:
        return (self.num_scored - self.num_resumed) / self.seconds if self.seconds else 0.0

    def describe(self, output: str | Path) -> str:
        """The summary for the terminal."""
        if self.complete:
            return (
                f"{output} is already complete: {self.num_scored:,} of {self.num_rows:,} rows were scored by the same model, "
                "on the same table and clips, with the same settings. Add --force to score them again."
            )
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
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> PredictionReport:
    """Score every row of a table and write `Id,ECR[,...]` in its order; see `lmm-ecr predict --help`.

    A killed run, or one stopped by SIGTERM or SIGUSR1 (Preempted), goes on with the rows that have no score, rejected ones
    included. With on_error "fail" the table is written only if every row has a score; the scores found are kept for the
    next run as long as one is missing. Rejected rows go to `<output>.rejected.csv`.

    A complete output of this very run (same model, table, clips, ablations, precision, calibration) is left as it is;
    any other existing output is replaced only with `force`, which also scores a complete one again. Raises DataError or
    ConfigError before anything is loaded if the output cannot be written.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list, gather_object

    _check_output(output, [data, *([calibration_file] if calibration_file else [])], force)
    num_workers = default_num_workers() if num_workers is None else num_workers
    check_on_error(on_error)
    check_decoder(decoder)
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
    dtype = resolve_dtype(dtype, device)
    directory = resolve_directory(model)
    dataset = load_table(data, video_dir, ClipProcessor.from_pretrained(directory), decoder, ablations)
    num_rows = len(dataset) + len(dataset.manifest.missing)
    plan: list = [None]
    if state.is_main_process:
        identity = run_identity(directory, dataset, ablations, dtype)
        journal = Journal(output, identity)
        digest = file_digest(calibration_file) if calibration_file else None
        record = CompletionRecord(output, {**identity, "calibration": digest, "interval": interval})
        plan = [_begin(record, journal, num_rows, force, state.num_processes)]
    else:
        journal = Journal(output, {})
    broadcast_object_list(plan)  # one process reads the journal: on a shared file system others may see it differently
    finished = plan[0]
    report = PredictionReport(num_rows=num_rows, is_main_process=state.is_main_process)
    if finished is None:
        report.num_scored = report.num_resumed = num_rows
        report.complete = report.written = True
        return report
    report.num_resumed = len(finished)
    todo = [i for i in range(len(dataset)) if dataset.manifest[i].row not in finished]
    start = time.perf_counter()
    rejections: list[Rejection] = []
    if todo:
        predictor = Predictor.from_pretrained(
            directory, device=device, dtype=dtype, attn_implementation=attn_implementation, num_workers=num_workers
        )
        batches = length_ordered_batches(dataset, todo, batch_size, shared_lengths)
        with StopSignals() as signals:
            share = batches[state.process_index :: state.num_processes]
            rejections = _run(predictor, dataset, share, journal, state, len(todo), progress, signals)
    rejections = gather_object(rejections)
    report.seconds = time.perf_counter() - start
    if state.is_main_process:
        rejections += [r for r in dataset.manifest.rejections if r.row not in finished]
        report.rejections = sorted(rejections, key=lambda r: r.row)
        _write_results(record, dataset, journal, on_error, report, calibration, interval, _targets(directory))
    state.wait_for_everyone()
    return report


def _check_output(output: str | Path, inputs: list[str], force: bool) -> None:
    """Refuse an output that cannot be written or must not be replaced. One that a run has written is looked at later."""
    if str(output) == "-" or is_special(output):
        raise ConfigError(f"--output {output}: give the name of a file; finished rows are kept beside it")
    known = CompletionRecord(output, {}).read() is not None
    check_output(output, inputs=inputs, force=force or known)
    for side in (f"{output}.rejected.csv", f"{output}.done.json"):
        check_output(side, inputs=inputs, force=True)


def _begin(
    record: CompletionRecord, journal: Journal, num_rows: int, force: bool, num_processes: int
) -> set[int] | None:
    """Open the journal and return the numbers of the rows that have a score; None if there is nothing to do.

    Raises ConfigError if output or journal are of another run.
    """
    if not force and record.is_finished() and record.read()["num_scored"] == num_rows:
        if journal.is_of_this_run():  # what a kill between the last two steps left
            journal.remove()
        return None
    again = force and record.is_of_this_run()
    if again and journal.is_of_this_run():
        journal.remove()
    journal.open(num_processes)
    if again:  # only now and only once: the same command, started again after a kill, goes on from the journal
        record.remove()
    return set(journal.read())


def _run(predictor: Predictor, dataset, batches, journal: Journal, state, total: int, progress, signals) -> list:
    """Score this process's batches into the journal; returns the rows that could not be read."""
    rejections: list[Rejection] = []
    done = 0
    for values, indices, notes in predictor.score_batches(dataset, batches):
        damaged = dict(notes["damaged"])
        records = [
            {"row": dataset.manifest[index].row, "scores": row.tolist(), "damaged": damaged.get(index)}
            for index, row in zip(indices, values, strict=True)
        ]
        if records:
            records[0]["num_truncated"] = notes["num_truncated"]
        journal.append(state.process_index, records)
        rejections += [rejection for _, rejection in notes["rejections"]]
        if signals.received:
            raise Preempted(
                f"stopped by {signals.received}; finished rows are kept in {journal.directory}, the same command goes on "
                "from there"
            )
        done += (len(records) + len(notes["rejections"])) * state.num_processes
        if progress and state.is_main_process:
            progress(min(done, total), total)
    return rejections


def _write_results(
    record: CompletionRecord, dataset, journal, on_error, report: PredictionReport, calibration, interval, targets
) -> None:
    records = journal.read()
    missing = report.num_rows - len(records) - len(report.rejections)
    if missing:
        raise AssertionError(f"{missing} rows have neither a score nor a reason")
    rows = sorted((*dataset.manifest.rows, *dataset.manifest.missing), key=lambda row: row.row)
    scored = [row for row in rows if row.row in records]
    report.num_truncated = sum(r.get("num_truncated", 0) for r in records.values())
    report.damaged = {row.id: records[row.row]["damaged"] for row in scored if records[row.row].get("damaged")}
    report.num_scored = len(scored)
    rejected_path = Path(f"{record.output}.rejected.csv")
    if report.rejections:
        write_rejections(rejected_path, report.rejections)
        if on_error == "fail":
            return
    else:
        rejected_path.unlink(missing_ok=True)
    values = np.array([records[row.row]["scores"] for row in scored], dtype=np.float64)
    values = values.reshape(len(scored), len(targets))
    report.num_limited = int(np.count_nonzero((values[:, 0] <= 0) | (values[:, 0] >= 1)))
    columns = {name: values[:, column] for column, name in enumerate(targets)}
    if calibration is not None:
        raw = columns[targets[0]]
        columns[targets[0]] = calibration.apply(raw)
        if interval is not None:
            low, high = calibration.interval(raw, interval)
            columns |= {f"{targets[0]}_lo": low, f"{targets[0]}_hi": high}
    record.write_output(
        journal,
        lambda path: write_predictions(path, [row.id for row in scored], columns),
        num_rows=report.num_rows,
        num_scored=report.num_scored,
    )
    report.written = True
    if not report.rejections:  # else the same command, once the clips are repaired, scores only those
        journal.remove()


def load_calibration(path: str | None, interval: float | None):
    """The calibration to apply, or None. Raises ConfigError for an interval without one."""
    if path is None:
        if interval is not None:
            raise ConfigError("--interval needs --calibrate FILE, made by `lmm-ecr evaluate ... --fit-calibration`")
        return None
    from .calibration import Calibration

    return Calibration.load(path)


def _targets(directory: Path) -> list[str]:
    from .models.regression import LmmRegressorConfig

    return LmmRegressorConfig.from_pretrained(directory).targets


if __name__ == "__main__":
    import sys

    from .cli import main

    sys.argv.insert(1, "predict")
    main()
