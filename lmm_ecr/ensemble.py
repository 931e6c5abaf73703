"""`lmm-ecr ensemble`: from prediction files of the same clips to one better file, with the evidence that it is better.

Rows are matched by id and come out in the order of the first file given. Rules and fits are in `ensemble_methods`.
Fitted methods (`weighted` with labels, `greedy`, `stack`) are scored by cross-validation over 5 folds that depend on
the ids alone, never on the rows they were fitted on; the weights written to the output and the recipe are fitted to
all of them.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .ensemble_evidence import gain_over_best, leave_one_out, member_correlations, score_columns
from .ensemble_fit import cross_validate, fit
from .ensemble_folds import FOLDS, fold_of, hash_order, id_hashes
from .ensemble_members import Members, read_members
from .ensemble_methods import FITTED, METHODS, Combination, combine, spread, without_member
from .ensemble_recipe import load_recipe, reorder, save_recipe, scale_json
from .errors import ConfigError, DataError
from .files import write_json
from .outputs import check_output
from .predictions import Predictions, match_ids, read_labels, write_predictions

LEAST_LABELLED = 20
"""Fitting weights to fewer labelled rows than this is refused."""


@dataclass
class EnsembleResult:
    """scores: float64 [rows], in [0, 1], in the order of members.ids. summary: what `--json` writes. labelled_rows:
    int64 [labelled] rows of `scores` with a label, in an order fixed by the ids; labels and evaluated: float64
    [labelled], the label and the ensemble's score there (cross-validated for fitted methods); None without labels."""

    members: Members
    combination: Combination
    scores: np.ndarray
    summary: dict
    labelled_rows: np.ndarray | None = None
    labels: np.ndarray | None = None
    evaluated: np.ndarray | None = None


@dataclass(frozen=True)
class EnsembleOptions:
    """What to do; see `lmm-ecr ensemble --help`. Contradictions are a ConfigError at construction."""

    method: str | None = None
    weights: Sequence[float] | None = None
    labels: str | os.PathLike | None = None
    target: str | None = None
    label_column: str | None = None
    missing: str = "error"
    apply: str | os.PathLike | None = None
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self):
        if self.method is not None and self.method not in METHODS:
            raise ConfigError(f"--method is {self.method!r}; choose {', '.join(METHODS)}")
        if self.resamples < 0:
            raise ConfigError(f"--resamples is {self.resamples}; give 0 (no intervals) or more")
        if self.label_column is not None and self.labels is None:
            raise ConfigError("--label-column names a column of --labels, which is not given")
        if self.apply is not None:
            for flag, value in (("--method", self.method), ("--weights", self.weights)):
                if value is not None:
                    raise ConfigError(f"{flag} contradicts --apply: the recipe has method and weights already")
            return
        if self.weights is not None:
            self._check_weights()
        elif self.method in FITTED and self.labels is None:
            given = "--weights 0.3,0.7 or --labels FILE" if self.method == "weighted" else "--labels FILE"
            raise ConfigError(f"--method {self.method} needs {given}")

    def _check_weights(self):
        if self.method not in (None, "weighted"):
            raise ConfigError(f"--weights contradicts --method {self.method}; weights are for --method weighted")
        if self.labels is not None:
            raise ConfigError(
                "--weights gives the weights and --labels would fit them: leave out one of the two; "
                "`lmm-ecr evaluate` scores a file made with given weights"
            )
        for weight in self.weights:
            if not np.isfinite(weight) or weight < 0:
                raise ConfigError(f"--weights has {weight}; weights are finite and not negative")
        if not sum(self.weights) > 0:
            raise ConfigError("--weights are all zero; at least one must be positive")


def ensemble(paths: Sequence[str | os.PathLike], options: EnsembleOptions | None = None) -> EnsembleResult:
    """Combine the prediction files `paths`. Without labels no more is done than reading, combining and correlations.

    Raises:
        DataError: see `read_members` and `read_labels`; a recipe of other members; labels that match no row, are all
            equal (fitted methods) or too few (`LEAST_LABELLED`).
        ConfigError: as many weights as files are needed.
    """
    options = options or EnsembleOptions()
    combination, saved, target = None, None, options.target or "ECR"
    if options.apply is not None:
        combination, saved, saved_target = load_recipe(options.apply)
        target = options.target or saved_target
    if options.labels is not None and os.path.realpath(options.labels) in map(os.path.realpath, paths):
        raise DataError(f"{options.labels}: the labels are also one of the members; the score would be of the answers")
    members = read_members(paths, target, missing=options.missing)
    if options.apply is not None:
        combination = reorder(combination, saved, members.names, options.apply)
    elif options.weights is not None:
        if len(options.weights) != len(members):
            raise ConfigError(f"--weights has {len(options.weights)} numbers for {len(members)} files")
        weights = np.empty(len(members))
        weights[members.given] = np.asarray(options.weights, np.float64) / sum(options.weights)
        combination = Combination("weighted", weights)
    elif (options.method or "mean") not in FITTED:
        combination = Combination(options.method or "mean")
    if options.labels is None:
        scores = combine(members.values, combination)
        return EnsembleResult(members, combination, scores, _summary(members, combination, options, target))
    return _with_labels(members, combination, options, target)


def parse_weights(text: str | None) -> list[float] | None:
    """Numbers from the text of `--weights`, "0.3,0.7".

    Raises:
        ConfigError: a part that is not a number.
    """
    if text is None:
        return None
    weights = []
    for part in text.split(","):
        try:
            weights.append(float(part))
        except ValueError:
            raise ConfigError(f"--weights {text!r}: {part!r} is not a number; write them as 0.3,0.7") from None
    return weights


def write_ensemble(
    result: EnsembleResult,
    output: str | os.PathLike,
    *,
    with_std: bool = False,
    json_path: str | os.PathLike | None = None,
    save: str | os.PathLike | None = None,
) -> None:
    """Write the predictions (`-` for standard output), and the summary and the recipe where asked for."""
    target = result.summary["target"]
    columns = {target: result.scores}
    if with_std:
        columns[f"{target}_std"] = spread(result.members.values, result.members.filled)
    write_predictions(output, result.members.ids, columns)
    if json_path is not None:
        write_json(json_path, result.summary)
    if save is not None:
        save_recipe(save, result.combination, result.members.names, target, result.summary["fit"])


def check_outputs(
    paths: Sequence[str | os.PathLike], options: EnsembleOptions, output: str | os.PathLike, force: bool, **others
) -> None:
    """Refuse outputs among the inputs, two outputs in one file, and (without `force`) an existing `output`.

    `others`: the further files to be written, by the name of their flag; None for those not asked for.
    """
    if others.get("report") is not None and options.labels is None:
        raise ConfigError("--report shows how good the scores are and needs --labels")
    inputs = [*paths, *(path for path in (options.labels, options.apply) if path is not None)]
    check_output(output, inputs=inputs, force=force)
    written = {} if os.fspath(output) == "-" else {os.path.realpath(output): "--output"}
    for flag, path in others.items():
        if path is None:
            continue
        check_output(path, inputs=inputs, force=True)
        real = os.path.realpath(path)
        if real in written:
            raise ConfigError(f"--{flag} and {written[real]} name the same file, {path}")
        written[real] = f"--{flag}"


def _with_labels(
    members: Members, combination: Combination | None, options: EnsembleOptions, target: str
) -> EnsembleResult:
    table = read_labels(options.labels, options.label_column or target, columns=())
    match = match_ids(Predictions("the members", members.ids, members.values[0], target), table)
    if not len(match):
        raise DataError(
            f"{options.labels}: none of its {len(table)} ids is among the {len(members.ids)} of the predictions "
            f"(for example {table.ids[0].as_py()!r} and {members.ids[0].as_py()!r}); are they of one data set?"
        )
    hashes = id_hashes(table.ids.take(match.label_rows).to_pylist())
    order = hash_order(hashes)
    rows, labels, folds = match.prediction_rows[order], match.labels[order], fold_of(hashes[order])
    values = np.ascontiguousarray(members.values[:, rows])
    fitted = combination is None
    if fitted:
        _enough_to_fit(options, labels, folds)
        combination = fit(options.method, values, labels)
        evaluated = cross_validate(options.method, values, labels, folds)

        def without(member: int) -> np.ndarray:
            return cross_validate(options.method, np.delete(values, member, axis=0), labels, folds)
    else:
        evaluated = combine(members.values, combination)[rows]

        def without(member: int) -> np.ndarray | None:
            smaller = without_member(combination, member)
            return None if smaller is None else combine(np.delete(members.values, member, axis=0), smaller)[rows]

    scored = score_columns([*values, evaluated], labels, resamples=options.resamples, seed=options.seed)
    summary = _summary(members, combination, options, target)
    for entry, score in zip(summary["members"], scored, strict=False):
        entry.update(score)
    summary["ensemble"] = scored[-1]
    gains = leave_one_out(without, len(members), labels, scored[-1]["final_score"])
    for entry, gain in zip(summary["members"], gains, strict=True):
        entry["gain"] = gain
    summary["gain_over_best"] = gain_over_best(
        evaluated, values, members.names, scored[:-1], labels, resamples=options.resamples, seed=options.seed
    )
    summary["labels"] = {
        "file": os.fspath(options.labels),
        "column": table.target,
        "rows": len(match),
        "rows_without_label": match.unlabelled,
        "labels_without_row": match.unpredicted,
    }
    if fitted:
        by_fold = {
            str(fold): score_columns([evaluated[folds == fold]], labels[folds == fold], resamples=0)[0]["final_score"]
            for fold in np.unique(folds)
        }
        summary["fit"] = {
            "labels": Path(options.labels).name,
            "rows": len(match),
            "folds": FOLDS,
            "cv_final_score": scored[-1]["final_score"],
            "cv_final_score_ci95": scored[-1]["ci95"]["final_score"],
            "cv_final_score_by_fold": by_fold,
        }
    return EnsembleResult(members, combination, combine(members.values, combination), summary, rows, labels, evaluated)


def _enough_to_fit(options: EnsembleOptions, labels: np.ndarray, folds: np.ndarray) -> None:
    if len(labels) < LEAST_LABELLED or len(np.unique(folds)) < 2:
        raise DataError(
            f"{options.labels}: only {len(labels)} rows have a label; --method {options.method} fits weights to at least "
            f"{LEAST_LABELLED}; use --method mean"
        )
    if np.ptp(labels) == 0:
        raise DataError(
            f"{options.labels}: all labels are {labels[0]}; there is nothing to fit --method {options.method} to"
        )


def _summary(members: Members, combination: Combination, options: EnsembleOptions, target: str) -> dict:
    weights = combination.weights
    entries = [
        {
            "name": name,
            "file": path,
            "weight": None if weights is None else float(weights[at]),
            "missing_ids": members.missing_ids.get(name, 0),
        }
        for at, (name, path) in enumerate(zip(members.names, members.paths, strict=True))
    ]
    return {
        "method": combination.method,
        "scale": scale_json(combination.scale),
        "target": target,
        "n": len(members.ids),
        "missing": {"rule": options.missing, "dropped_rows": members.dropped, "filled_values": _filled(members)},
        "members": entries,
        "ensemble": None,
        "correlations": member_correlations(members.values, ranks=options.labels is not None),
        "gain_over_best": None,
        "labels": None,
        "fit": None,
        "recipe": None if options.apply is None else os.fspath(options.apply),
    }


def _filled(members: Members) -> int:
    return 0 if members.filled is None else int(np.count_nonzero(members.filled))
