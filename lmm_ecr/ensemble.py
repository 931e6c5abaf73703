"""`lmm-ecr ensemble`: from prediction files of the same clips to one better file, with the evidence that it is better.

Rows are matched by id and come out in the order of the first file given. Rules and fits are in `ensemble_methods`.
Fitted methods (`weighted` with labels, `greedy`, `stack`) are scored by cross-validation over 5 folds that depend on
the ids alone, never on the rows they were fitted on; the weights written to the output and the recipe are fitted to
all of them.
"""

import os
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from .calibration import Calibration
from .ensemble_members import read_members, stream_members
from .ensemble_methods import Combination, RunningMean, combine, spread
from .ensemble_options import EnsembleOptions
from .ensemble_recipe import SavedRecipe, load_recipe, reorder, save_recipe
from .ensemble_result import EnsembleResult, new_summary
from .ensemble_scoring import score_with_labels
from .ensemble_statistics import MemberStatistics
from .errors import ConfigError, DataError
from .files import same_file, write_json
from .predictions import TARGET_COLUMN, write_predictions
from .tables import from_numpy


def ensemble(
    paths: Sequence[str | os.PathLike],
    options: EnsembleOptions | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EnsembleResult:
    """Combine the prediction files `paths`. Without labels no more is done than reading, combining and correlations.

    `progress(done, total)` is called after each step of what takes long: fit, cross-validation, scores, every member's
    gain.

    Raises:
        DataError: see `read_members` and `read_labels`; a recipe of other members; labels that match no row, are all
            equal (fitted methods) or too few (`ensemble_scoring.LEAST_LABELLED`).
        ConfigError: as many weights as files are needed.
    """
    options = options or EnsembleOptions()
    recipe = None if options.apply is None else load_recipe(options.apply)
    target = options.target or (TARGET_COLUMN if recipe is None else recipe.target)
    combination = None
    if options.labels is not None and any(same_file(options.labels, path) for path in paths):
        raise DataError(f"{options.labels}: the labels are also one of the members; the score would be of the answers")
    method = recipe.combination.method if recipe else options.method or "mean"
    plain = method == "mean" and options.weights is None
    if plain and not options.keep_members and options.labels is None and options.missing == "error":
        return _streamed_mean(paths, options, recipe, target)
    members = read_members(paths, target, missing=options.missing)
    if recipe is not None:
        combination = reorder(recipe, members.names, options.apply)
    elif options.weights is not None:
        if len(options.weights) != len(members):
            raise ConfigError(f"--weights has {len(options.weights)} numbers for {len(members)} files")
        weights = np.empty(len(members))
        weights[members.given] = np.asarray(options.weights, np.float64) / max(options.weights)
        combination = Combination("weighted", weights / weights.sum())
    elif not options.fits:
        combination = Combination(method)
    if options.labels is None:
        scores = combine(members.values, combination)
        summary = new_summary(members, combination, options, target, recipe)
        return EnsembleResult(members, combination, scores, summary, fit=recipe.fit if recipe else None)
    return score_with_labels(members, combination, options, target, recipe, progress)


def write_ensemble(
    result: EnsembleResult,
    output: str | os.PathLike,
    *,
    with_std: bool = False,
    json_path: str | os.PathLike | None = None,
    save: str | os.PathLike | None = None,
    oof: str | os.PathLike | None = None,
    calibration: Calibration | None = None,
    interval: float | None = None,
) -> None:
    """Write the predictions (`-` for standard output), and the summary and the recipe where asked for.

    oof: prediction file for the out-of-fold scores of a fit, of every labelled row by weights fitted without its fold,
    in the order of the output. A calibration fitted to them is honest; one fitted to the output itself is not, as that
    has seen the labels.
    calibration: is applied to the scores that are written; what the summary says is about the scores before it.
    interval: with a calibration, the coverage of two more columns, the ends of an interval.

    Raises:
        ConfigError: `oof` for a result that was not fitted.
    """
    if oof is not None and result.summary["fit"] is None:
        raise ConfigError("out-of-fold scores exist for weighted, greedy and stack fitted to labels only")
    target = result.summary["target"]
    columns = {target: result.scores}
    if calibration is not None:
        columns[target] = calibration.apply(result.scores)
        if interval is not None:
            columns[f"{target}_lo"], columns[f"{target}_hi"] = calibration.interval(result.scores, interval)
    if with_std:
        columns[f"{target}_std"] = spread(result.members.values)
    write_predictions(output, result.members.ids, columns)
    if json_path is not None:
        write_json(json_path, result.summary)
    if save is not None:
        save_recipe(save, result.combination, result.members.names, target, result.fit)
    if oof is not None:
        order = np.argsort(result.labelled_rows)
        write_predictions(
            oof, result.members.ids.take(from_numpy(result.labelled_rows[order])), {target: result.evaluated[order]}
        )


def _streamed_mean(
    paths: Sequence[str | os.PathLike], options: EnsembleOptions, recipe: SavedRecipe | None, target: str
) -> EnsembleResult:
    combination, mean, statistics = Combination("mean"), RunningMean(), None

    def use(ids: pa.Array, values: np.ndarray) -> None:
        nonlocal statistics
        statistics = statistics or MemberStatistics(ids)
        statistics.add(values)
        mean.add(values)

    members = stream_members(paths, target, use)
    if recipe is not None:
        reorder(recipe, members.names, options.apply)
    summary = new_summary(members, combination, options, target, recipe, statistics)
    return EnsembleResult(members, combination, mean.result(), summary, fit=recipe.fit if recipe else None)
