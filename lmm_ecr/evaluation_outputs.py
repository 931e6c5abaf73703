"""What `lmm-ecr evaluate` writes: the numbers as JSON, a scatter plot, a calibration."""

import os
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from .calibration import Calibration, check_method
from .errors import ConfigError
from .evaluate import Evaluation, FileEvaluation, logistic_scale
from .files import json_text, write_json
from .outputs import check_side_output
from .plots import KINDS, Panel, plot_kind, save_figure, scatter_figure
from .table_files import standard_output


def to_json(evaluation: Evaluation) -> dict:
    """One file: the inside of `metrics.json`'s "eval" with more keys; several: {"files": {name: the same}, ...}.

    Numbers that are not defined are None.
    """
    contents = {file.name: _file_json(evaluation, file) for file in evaluation.files}
    if len(contents) == 1:
        return next(iter(contents.values()))
    return {"best": evaluation.best.name if evaluation.best else None, "files": contents}


def check_outputs(
    inputs: Sequence[str | os.PathLike],
    json: str | os.PathLike | None,
    plot: str | os.PathLike | None,
    calibration_method: str | None,
    calibration_file: str | os.PathLike | None,
    force: bool = False,
) -> None:
    """Complain before the work, not after: options that contradict each other, an output that is also an input or, unless
    `force`, another kind of file than it is named for (see `check_side_output`). `-` is fine for `json` only."""
    if (calibration_method is None) != (calibration_file is None):
        raise ConfigError("--fit-calibration METHOD and --calibration-file FILE belong together; give both or none")
    if calibration_method is not None:
        check_method(calibration_method)
        if len(inputs) != 2:
            raise ConfigError(f"a calibration belongs to one prediction file; {len(inputs) - 1} were given")
    if plot is not None and os.fspath(plot) != "-":
        plot_kind(plot)
    written: list[str | os.PathLike] = []
    for flag, path, kinds in (
        ("--json", json, (".json",)),
        ("--plot", plot, tuple(f".{kind}" for kind in KINDS)),
        ("--calibration-file", calibration_file, (".json",)),
    ):
        check_side_output(path, flag, kinds, inputs=[*inputs, *written], force=force, stdout=flag == "--json")
        written += [] if path is None else [path]


def write_outputs(
    evaluation: Evaluation,
    json: str | os.PathLike | None,
    plot: str | os.PathLike | None,
    calibration_method: str | None,
    calibration_file: str | os.PathLike | None,
) -> list[str]:
    """Write the files that are asked for (None: not this one; `-` for `json`: standard output); one line about each."""
    lines = []
    if json is not None and os.fspath(json) == "-":
        with standard_output() as stream:
            stream.write(json_text(to_json(evaluation)).encode("utf-8"))
    elif json is not None:
        write_json(json, to_json(evaluation))
        lines.append(f"metrics: {json}")
    if plot is not None:
        panels = [Panel(file.values, evaluation.labels, file.name, file.metrics) for file in evaluation.files]
        save_figure(scatter_figure(panels), plot)
        lines.append(f"plot: {plot}")
    if calibration_method is not None:
        calibration = Calibration.fit(
            evaluation.files[0].values,
            evaluation.labels,
            calibration_method,
            target=evaluation.files[0].table.target,
            seed=evaluation.seed,
        )
        calibration.save(calibration_file)
        lines.append(
            f"calibration: {calibration_file} ({calibration_method} map from {calibration.fitted_rows:,} rows, "
            f"intervals from {calibration.conformal_rows:,} others: 80 % within +-{calibration.half_width(0.8):.3f})"
        )
    return lines


def _file_json(evaluation: Evaluation, file: FileEvaluation) -> dict:
    curve = file.reliability
    content = {
        **file.metrics,
        "confidence": evaluation.confidence,
        "resamples": evaluation.resamples,
        "predictions": file.table.path,
        "labels": evaluation.label_table.path,
        "unlabelled_ids": file.match.unlabelled,
        "unpredicted_ids": file.match.unpredicted,
        "logistic": {str(count): asdict(fit) for count, fit in file.logistic.items()},
        "logistic_scale": logistic_scale(evaluation.labels),
        "reliability": {
            "error": curve.error,
            "bias": curve.bias,
            "counts": curve.counts.tolist(),
            "mean_prediction": curve.mean_prediction.tolist(),
            "mean_label": curve.mean_label.tolist(),
            "standard_error": curve.standard_error.tolist(),
        },
    }
    if file.segments:
        content["segments"] = file.segments
    if file.against_best is not None:
        content["against_best"] = asdict(file.against_best)
    return _without_nan(content)


def _without_nan(value):
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
