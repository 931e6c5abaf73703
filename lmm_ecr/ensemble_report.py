"""The HTML report of an ensemble: its members and its own (for fitted methods cross-validated) scores side by side."""

import os

import numpy as np

from .ensemble_methods import fill_gaps
from .ensemble_options import EnsembleOptions
from .ensemble_result import EnsembleResult
from .ensemble_summary import collapsed_members, combined_name, evidence, identical_members
from .errors import ConfigError, DataError
from .evaluate import evaluate_tables
from .predictions import Predictions, read_labels
from .report import Recipe, write_report


def check_scored(result: EnsembleResult) -> None:
    """Complain before anything is written: DataError where no label is left that the recipe was not fitted to."""
    labels = result.summary["labels"]
    if labels is not None and not labels["rows"]:
        raise DataError(
            f"{labels['file']}: all {labels['rows_of_the_fit']} rows with a label were used for the fit of the recipe "
            f"{result.summary['recipe']}; there is nothing honest to report: give labels of other clips to --report"
        )


def write_ensemble_report(
    result: EnsembleResult,
    options: EnsembleOptions,
    output: str | os.PathLike,
    *,
    video_dir: str | os.PathLike | None = None,
) -> None:
    """Write the report of `lmm_ecr.report` over the labelled rows, with the ensemble as one more prediction file.

    `video_dir`: directory of the clips, for pictures of the largest errors.

    Raises:
        ConfigError: the ensemble was made without labels.
        DataError: see `check_scored`.
    """
    if options.labels is None:
        raise ConfigError("--report shows how good the scores are and needs --labels")
    check_scored(result)
    members, summary = result.members, result.summary
    ids = members.ids.take(result.labelled_rows)
    own = members.values[:, result.labelled_rows]
    gaps = int(np.count_nonzero(np.isnan(own)))
    values = [*np.clip(fill_gaps(own, result.combination), 0.0, 1.0), result.evaluated]
    base = "ensemble (cross-validated)" if summary["fit"] else "ensemble"
    names = [*members.names, combined_name(base, members.names)]
    paths = [*members.paths, names[-1]]
    tables = [Predictions(path, ids, column, summary["target"]) for path, column in zip(paths, values, strict=True)]
    evaluation = evaluate_tables(
        tables,
        names,
        read_labels(options.labels, summary["labels"]["column"]),
        resamples=options.resamples,
        seed=options.seed,
        allow_missing=True,  # counted in the summary
    )
    entries = [(entry["name"], entry["weight"], entry["gain"]) for entry in summary["members"]]
    lines = [*evidence(summary), *collapsed_members(summary), *identical_members(summary)]
    if gaps:
        lines.append(
            f"{gaps:,} values that members lack stand at the mean of the other members, in scores and plots too"
        )
    recipe = Recipe(entries, lines)
    title = f"Ensemble of {len(members)} file{'s' * (len(members) != 1)}, method {summary['method']}"
    write_report(evaluation, output, video_dir=video_dir, title=title, focus=len(members), recipe=recipe)
