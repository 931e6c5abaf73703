"""The recipe of an ensemble: everything needed to combine new files of the same members in the same way, as JSON.

    {"format": "lmm_ecr ensemble", "format_version": 1, "method": "weighted", "target": "ECR",
     "members": ["llama", "qwen"], "weights": [0.4, 0.6],
     "scale": {"centre": [0.5, 0.4], "width": [0.1, 0.2], "slope": 0.2, "intercept": 0.5},
     "parameters": {...}, "fit": {...} or null, "versions": {...}}

`members` are file names without suffix, as `ensemble_members.member_names` gives them; `weights` (null for rules
without), `centre` and `width` belong to them in this order. With a `scale` (fitted weights) the score is
intercept + slope * (sum of weight * (x - centre) / width), clipped to [0, 1]; where it is null it is the weighted mean.
`parameters` documents constants of the rule. `fit` holds the cross-validated score of a fitted method and, as `id_hashes`,
which rows it was fitted to: the lower 48 bits of each id's hash (`ensemble_folds.id_hashes`), ascending, six bytes each,
little endian, in base64. By them the score of a recipe leaves out rows that it knows.
"""

import base64
import binascii
import math
import os
from dataclasses import dataclass

import numpy as np

from . import __version__
from .ensemble_methods import LOGIT_CLIP, METHODS, Combination, Scale
from .errors import DataError
from .files import read_json, write_json

FORMAT = "lmm_ecr ensemble"
VERSION = 1
WEIGHTED = ("weighted", "greedy", "stack")
HASH_BITS, HASH_BYTES = 48, 6
"""Enough to tell rows apart: of a million new ids and a million fitted ones 0.004 pairs agree by chance."""


@dataclass(frozen=True)
class SavedRecipe:
    """A recipe as read from a file: the combination with its weights in the order of `members`, the target column, and
    what the file says about the fit; None for a rule that was not fitted."""

    combination: Combination
    members: list[str]
    target: str
    fit: dict | None

    def public_fit(self) -> dict | None:
        """`fit` for a summary: without the hashes, with `rows_known`, whether there are any."""
        if self.fit is None:
            return None
        public = {name: value for name, value in self.fit.items() if name != "id_hashes"}
        return public | {"rows_known": "id_hashes" in self.fit}

    def has_seen(self, hashes: np.ndarray) -> np.ndarray:
        """Which rows, by uint64 hashes of their ids [rows], the weights were fitted to; bool [rows]."""
        if self.fit is None or "id_hashes" not in self.fit:
            return np.zeros(len(hashes), dtype=bool)
        return np.isin(hashes & np.uint64(2**HASH_BITS - 1), _unpacked(self.fit["id_hashes"]))


def packed_hashes(hashes: np.ndarray) -> str:
    """uint64 hashes of ids as the text that stands for them in a recipe."""
    short = np.sort(hashes & np.uint64(2**HASH_BITS - 1)).astype("<u8")
    return base64.b64encode(short.view(np.uint8).reshape(-1, 8)[:, :HASH_BYTES].tobytes()).decode("ascii")


def _unpacked(text: str) -> np.ndarray:
    content = np.frombuffer(base64.b64decode(text, validate=True), np.uint8).reshape(-1, HASH_BYTES)
    padded = np.zeros((len(content), 8), np.uint8)
    padded[:, :HASH_BYTES] = content
    return padded.view("<u8")[:, 0].astype(np.uint64)


def save_recipe(
    path: str | os.PathLike, combination: Combination, names: list[str], target: str, fit: dict | None
) -> None:
    import scipy

    weights = combination.weights
    parameters = {"logit": {"clip": LOGIT_CLIP}, "stack": {"ridge": combination.ridge}}.get(combination.method, {})
    recipe = {
        "format": FORMAT,
        "format_version": VERSION,
        "method": combination.method,
        "target": target,
        "members": names,
        "weights": None if weights is None else weights.tolist(),
        "scale": scale_json(combination.scale),
        "parameters": parameters,
        "fit": fit,
        "versions": {"lmm_ecr": __version__, "numpy": np.__version__, "scipy": scipy.__version__},
    }
    write_json(path, recipe)


def load_recipe(path: str | os.PathLike) -> SavedRecipe:
    """Read a recipe.

    Raises:
        DataError: a file that is no recipe of this version, or one whose weights do not fit; names what is wrong.
    """
    try:
        recipe = read_json(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except DataError as error:
        raise DataError(f"{path}: not a recipe of an ensemble (no JSON: {error})") from error
    if not isinstance(recipe, dict) or recipe.get("format") != FORMAT:
        raise DataError(f"{path}: not a recipe of an ensemble; `lmm-ecr ensemble ... --save FILE` writes one")
    if recipe.get("format_version") != VERSION:
        raise DataError(
            f"{path}: format version {recipe.get('format_version')!r}; this program reads version {VERSION}"
        )
    method, members, weights = recipe.get("method"), recipe.get("members"), recipe.get("weights")
    if method not in METHODS:
        raise DataError(f"{path}: unknown method {method!r}; known: {', '.join(METHODS)}")
    if not _list_of(members, str) or not members or len(set(members)) != len(members):
        raise DataError(f"{path}: `members` must be a list of different file names, got {members!r}")
    if (weights is not None) != (method in WEIGHTED):
        raise DataError(f"{path}: {method} has the weights {weights!r}")
    if weights is not None:
        _check_numbers(path, "weights", weights, len(members))
    scale = recipe.get("scale")
    if scale is not None:
        scale = _load_scale(path, scale, method, len(members))
    if weights is not None and (method != "stack" or scale is None) and (min(weights) < 0 or sum(weights) <= 0):
        raise DataError(f"{path}: the weights of {method} must not be negative nor all zero, got {weights!r}")
    if not isinstance(recipe.get("target"), str):
        raise DataError(f"{path}: `target` must be the name of a column, got {recipe.get('target')!r}")
    arrays = None if weights is None else np.array(weights, dtype=np.float64)
    fit = recipe.get("fit")
    _check_fit(path, fit)
    return SavedRecipe(Combination(method, arrays, scale), members, recipe["target"], fit)


def scale_json(scale: Scale | None) -> dict | None:
    if scale is None:
        return None
    return {
        "centre": scale.centre.tolist(),
        "width": scale.width.tolist(),
        "slope": scale.slope,
        "intercept": scale.intercept,
    }


def reorder(recipe: SavedRecipe, names: list[str], path: str | os.PathLike) -> Combination:
    """The combination with its weights in the order of `names`, the members at hand.

    Raises:
        DataError: `names` are not exactly the members of the recipe at `path`.
    """
    combination, saved = recipe.combination, recipe.members
    lacking, more = sorted(set(saved) - set(names)), sorted(set(names) - set(saved))
    if lacking or more:
        parts = [f"{label}: {', '.join(some)}" for label, some in (("missing", lacking), ("unknown", more)) if some]
        raise DataError(
            f"{path}: the recipe is for the members {', '.join(saved)} (file names without suffix); {'; '.join(parts)}"
        )
    if combination.weights is None:
        return combination
    order = np.array([saved.index(name) for name in names])
    scale = None if combination.scale is None else combination.scale.of_members(order)
    return Combination(combination.method, combination.weights[order], scale, combination.ridge)


def _load_scale(path: str | os.PathLike, scale: object, method: str, members: int) -> Scale:
    if method not in WEIGHTED:
        raise DataError(f"{path}: {method} has no `scale`, got {scale!r}")
    if not isinstance(scale, dict):
        raise DataError(f"{path}: `scale` must have centre, width, slope and intercept, got {scale!r}")
    for name in ("centre", "width"):
        _check_numbers(path, name, scale.get(name), members)
    _check_numbers(path, "slope and intercept", [scale.get("slope"), scale.get("intercept")], 2)
    if min(scale["width"]) <= 0:
        raise DataError(f"{path}: every width must be positive, got {scale['width']!r}")
    centre, width = (np.array(scale[name], dtype=np.float64) for name in ("centre", "width"))
    return Scale(centre, width, float(scale["slope"]), float(scale["intercept"]))


def _check_fit(path: str | os.PathLike, fit: object) -> None:
    if fit is None:
        return
    if not isinstance(fit, dict):
        raise DataError(f"{path}: `fit` must be an object or null, got {fit!r}")
    if fit.get("cv_final_score") is not None:
        _check_numbers(path, "cv_final_score", [fit["cv_final_score"]], 1)
    if "id_hashes" in fit:
        try:
            _unpacked(fit["id_hashes"])
        except (TypeError, ValueError, binascii.Error) as error:
            raise DataError(
                f"{path}: `id_hashes` of the fit must be {HASH_BYTES} bytes per row in base64: {error}"
            ) from error


def _check_numbers(path: str | os.PathLike, name: str, values: object, count: int) -> None:
    if not _list_of(values, (int, float)) or not all(math.isfinite(number) for number in values):
        raise DataError(f"{path}: {name} must be finite numbers, got {values!r}")
    if len(values) != count:
        raise DataError(f"{path}: {len(values)} {name} for {count} members")


def _list_of(values: object, kind: type | tuple[type, ...]) -> bool:
    return isinstance(values, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in values)
