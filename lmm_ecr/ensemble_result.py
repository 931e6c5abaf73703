"""What an ensemble comes to: its scores and the summary that is printed and written as JSON."""

import os
from dataclasses import dataclass

import numpy as np

from .ensemble_evidence import member_correlations
from .ensemble_members import Members
from .ensemble_methods import Combination
from .ensemble_options import EnsembleOptions
from .ensemble_recipe import SavedRecipe, scale_json
from .ensemble_statistics import MemberStatistics


@dataclass
class EnsembleResult:
    """scores: float64 [rows], in [0, 1], in the order of members.ids. summary: what `--json` writes. labelled_rows:
    int64 [labelled] rows of `scores` with a label, in an order fixed by the ids; labels and evaluated: float64
    [labelled], the label and the ensemble's score there (cross-validated for fitted methods); None without labels, and
    where all labels were used for the fit of the recipe. fit: what a recipe saved of this says about the fit, None for
    rules that are not fitted."""

    members: Members
    combination: Combination
    scores: np.ndarray
    summary: dict
    labelled_rows: np.ndarray | None = None
    labels: np.ndarray | None = None
    evaluated: np.ndarray | None = None
    fit: dict | None = None


def new_summary(
    members: Members,
    combination: Combination,
    options: EnsembleOptions,
    target: str,
    recipe: SavedRecipe | None,
    statistics: MemberStatistics | None = None,
) -> dict:
    """The summary before anything is scored. `statistics`: of the members, where their values are not at hand any more."""
    if statistics is None:
        statistics = MemberStatistics(members.ids)
        for values in members.values:
            statistics.add(values)
    weights = combination.weights
    filled = sum(members.missing_ids.values()) if options.missing == "mean" else 0
    entries = [
        {
            "name": name,
            "file": path,
            "weight": None if weights is None else float(weights[at]),
            "mean": statistics.means[at],
            "std": statistics.stds[at],
            "missing_ids": members.missing_ids.get(name, 0),
        }
        for at, (name, path) in enumerate(zip(members.names, members.paths, strict=True))
    ]
    return {
        "method": combination.method,
        "scale": scale_json(combination.scale),
        "target": target,
        "n": len(members.ids),
        "missing": {"rule": options.missing, "dropped_rows": members.dropped, "filled_values": filled},
        "members": entries,
        "ensemble": None,
        "correlations": member_correlations(statistics.sample, ranks=options.labels is not None),
        "identical_members": [[members.names[at] for at in group] for group in statistics.copies()],
        "gain_over_best": None,
        "labels": None,
        "fit": None,
        "recipe": None if options.apply is None else os.fspath(options.apply),
        "recipe_fit": None if recipe is None else recipe.public_fit(),
    }
