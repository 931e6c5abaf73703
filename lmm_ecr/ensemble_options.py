"""What `lmm-ecr ensemble` is asked to do, checked before anything is read."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .calibration import Calibration
from .ensemble_methods import FITTED, METHODS
from .ensemble_recipe import load_recipe
from .errors import ConfigError
from .files import same_file
from .outputs import check_output, check_side_output
from .predictions import TARGET_COLUMN

SIDE_OUTPUTS = {"json": (".json",), "save": (".json",), "report": (".html", ".htm")}


@dataclass(frozen=True)
class EnsembleOptions:
    """What to do; see `lmm-ecr ensemble --help`. Contradictions are a ConfigError at construction.

    keep_members: False lets a mean without labels be taken while the files are read, in the memory of two of them; the
    result's `members.values` may be None then.
    """

    method: str | None = None
    weights: Sequence[float] | None = None
    labels: str | os.PathLike | None = None
    target: str | None = None
    label_column: str | None = None
    missing: str = "error"
    apply: str | os.PathLike | None = None
    resamples: int = 1000
    seed: int = 0
    keep_members: bool = True

    @property
    def fits(self) -> bool:
        """Whether weights are fitted to the labels."""
        return self.apply is None and self.weights is None and self.method in FITTED

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
        if not max(self.weights, default=0) > 0:
            raise ConfigError("--weights are all zero; at least one must be positive")


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


def target_column(options: EnsembleOptions) -> str:
    """The column that is combined: the one asked for, that of the recipe, or ECR.

    Raises:
        DataError: see `load_recipe`.
    """
    if options.target is not None or options.apply is None:
        return options.target or TARGET_COLUMN
    return load_recipe(options.apply).target


def read_calibration(path: str | os.PathLike | None, interval: float | None, target: str) -> Calibration | None:
    """The calibration for scores of the column `target`, or None.

    Raises:
        ConfigError: an interval without a calibration, or one that it cannot promise; a file that is no calibration or
            one of another column.
    """
    if path is None:
        if interval is not None:
            raise ConfigError("--interval needs --calibrate FILE, made by `lmm-ecr evaluate ... --fit-calibration`")
        return None
    calibration = Calibration.load(path)
    if calibration.target != target:
        raise ConfigError(f"{path}: a calibration of {calibration.target!r}, but the predictions are {target!r}")
    if interval is not None:
        calibration.half_width(interval)
    return calibration


def check_outputs(
    paths: Sequence[str | os.PathLike],
    options: EnsembleOptions,
    output: str | os.PathLike,
    force: bool,
    calibrate: str | os.PathLike | None = None,
    **others,
) -> None:
    """Refuse outputs among the inputs, two outputs in one file, and without `force` an existing prediction file (`output`
    and `oof`) or one of another kind than what would replace it.

    `others`: the further files to be written, by the name of their flag; None for those not asked for.
    """
    if others.get("report") is not None and options.labels is None:
        raise ConfigError("--report shows how good the scores are and needs --labels")
    if others.get("oof") is not None and not options.fits:
        raise ConfigError(
            "--oof writes the out-of-fold scores of a fit and needs --method weighted, greedy or stack with --labels; "
            "other methods have seen no label: calibrate their output itself"
        )
    inputs = [*paths, *(path for path in (options.labels, options.apply, calibrate) if path is not None)]
    check_output(output, inputs=inputs, force=force)
    written = {} if os.fspath(output) == "-" else {output: "--output"}
    for flag, path in others.items():
        if path is None:
            continue
        if flag == "oof" and os.fspath(path) == "-":
            raise ConfigError("--oof needs the name of a file; only --output can be `-`, standard output")
        if flag == "oof":
            check_output(path, inputs=inputs, force=force, flag="--oof")
        else:
            check_side_output(path, f"--{flag}", SIDE_OUTPUTS[flag], inputs=inputs, force=force)
        for other, earlier in written.items():
            if same_file(path, other):
                raise ConfigError(f"--{flag} and {earlier} name the same file, {path}")
        written[path] = f"--{flag}"
