"""Engagement labels from watch logs: AWT, ECR with its interval, NAWP and the rank-normalised ECR, one row per video.

- **AWT**, average watch time in seconds: the mean over all views, loops included (a view may be longer than the video).
- **ECR**, engagement continuation rate: the share of views whose watch time *exceeds* 5 seconds (strictly: a view of
  exactly 5 s does not count), after the wording of the challenge, "the probability of watch time exceeding 5 seconds".
- **ECR_lo, ECR_hi**: Wilson score interval of that share, 95 %.
- **NAWP**, normalised average watch percentage (equations 1 and 2 of the challenge report):
  `NAWP = min(AWT / (alpha * d + beta), 1)`, where the line is fitted to the top 3 % average watch times as a function
  of the duration d; see `fit_top_watch_line` for the exact reading.
- **ECR_rank**: average ranks of ECR mapped to [0, 1] by `(rank - 1) / (n - 1)`; the labels of the challenge are of
  this kind.

Videos with fewer than `min_views` views (2,000 in SnapUGC) are left out before the line is fitted and the ranks are
taken.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import ConfigError, DataError
from .files import write_json
from .predictions import write_predictions
from .watch_logs import LogFormat
from .watch_totals import WatchTotals, add_up

COLUMNS = ("views", "AWT", "ECR", "ECR_lo", "ECR_hi", "NAWP", "ECR_rank", "duration")
"""Columns of the table after `Id`, in order."""

TOP_SHARE = 0.03
"""Share of the videos of similar duration, those with the longest average watch times, that the line goes through."""

_Z95 = 1.959963984540054  # the 97.5 % point of the standard normal distribution


@dataclass(frozen=True)
class TopWatchLine:
    """The line `alpha * d + beta` (seconds of watch time for a duration of d seconds) that NAWP divides by.

    `kind` is "line", "proportional" where a line cannot be fitted (beta is 0 then), or "given". `videos` is the number
    of videos it was fitted to and `groups` the number of groups of similar duration they were taken from; 0 if given.
    """

    alpha: float
    beta: float
    kind: str
    videos: int
    groups: int


@dataclass(frozen=True)
class Labels:
    """`columns`: name -> list or array, rows sorted by Id. `summary`: counts, line and settings, as JSON has them."""

    columns: dict
    summary: dict


def compute_labels(
    logs: Sequence[str | os.PathLike],
    *,
    min_views: int = 2000,
    ecr_seconds: float = 5.0,
    chunk_rows: int = 262_144,
    log_format: LogFormat | None = None,
    line: tuple[float, float] | None = None,
) -> Labels:
    """Labels of all videos in `logs` (CSV or Parquet) with at least `min_views` views.

    The result does not depend on the order of rows or files, on the chunk size or on the file format. line: alpha and
    beta of NAWP where they were fitted before, to other logs; without it they are fitted to these.

    Raises:
        DataError: see `watch_totals.add_up`; also when no video has enough views.
        ConfigError: settings out of range; a given line that is not positive at every duration.
    """
    if min_views < 1:
        raise ConfigError(f"--min-views is {min_views}; it must be at least 1")
    if not (np.isfinite(ecr_seconds) and ecr_seconds >= 0):
        raise ConfigError(f"--ecr-seconds is {ecr_seconds}; it must be a finite number of seconds, 0 or more")
    totals = add_up(logs, beyond_seconds=ecr_seconds, chunk_rows=chunk_rows, log_format=log_format)
    keep = totals.views >= min_views
    if not keep.any():
        most = f"; the most watched one has {totals.views.max()}" if len(totals.views) else ""
        raise DataError(
            f"none of the {len(keep)} videos has {min_views} views or more{most}: give more logs or a lower --min-views"
        )
    views, duration = totals.views[keep], totals.duration[keep]
    awt = totals.watch_microseconds[keep] / views / 1e6
    ecr = totals.views_beyond[keep] / views
    lower, upper = wilson_interval(totals.views_beyond[keep], views)
    line = fit_top_watch_line(duration, awt) if line is None else _given_line(*line, duration)
    columns = {
        "Id": [totals.ids[at] for at in np.flatnonzero(keep)],
        "views": views,
        "AWT": awt,
        "ECR": ecr,
        "ECR_lo": lower,
        "ECR_hi": upper,
        "NAWP": normalised_watch(awt, duration, line),
        "ECR_rank": rank_normalise(ecr),
        "duration": duration,
    }
    return Labels(columns, _summary(totals, keep, line, columns, min_views, ecr_seconds))


def wilson_interval(successes: np.ndarray, trials: np.ndarray, z: float = _Z95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson score interval of a share (Wilson 1927), 95 % by default: lower and upper, float64, within [0, 1].

    `successes` and `trials` are arrays of one length with 0 <= successes <= trials and trials >= 1.
    """
    trials = np.asarray(trials, dtype=np.float64)
    share = np.asarray(successes, dtype=np.float64) / trials
    centre = share + z**2 / (2 * trials)
    half = z * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    # At a share of 0 or 1 the bound is exactly the share; rounding must not put the share outside its interval.
    return np.clip((centre - half) / scale, 0, share), np.clip((centre + half) / scale, share, 1)


def fit_top_watch_line(duration: np.ndarray, awt: np.ndarray, top_share: float = TOP_SHARE) -> TopWatchLine:
    """The line through the top `top_share` average watch times as a function of duration (the report's equation 2).

    Our reading: videos are grouped by whole seconds of duration; a group with fewer than 1 / top_share videos (34 for
    3 %) takes in the next longer ones until it has that many (what remains at the end joins the last group). From
    each group come the round(top_share * size) videos, at least one, with the longest average watch time. An ordinary
    least-squares line goes through all these videos, each a point (duration, AWT).

    With fewer than two groups, one single duration, or a line that is not positive at every duration present, the line
    goes through the origin instead (`kind` "proportional"): least squares through the top_share videos with the
    largest AWT / duration.

    `duration` (> 0) and `awt` (>= 0): seconds, float64 [videos], at least one.
    """
    duration, awt = np.asarray(duration, dtype=np.float64), np.asarray(awt, dtype=np.float64)
    groups = _duration_groups(duration, int(np.ceil(1 / top_share)))
    top = np.concatenate([group[_top(awt[group], duration[group], top_share)] for group in groups])
    x, y = duration[top], awt[top]
    spread = np.sum((x - x.mean()) ** 2)
    if len(groups) >= 2 and spread > 0:
        alpha = float(np.sum((x - x.mean()) * (y - y.mean())) / spread)
        beta = float(y.mean() - alpha * x.mean())
        if min(alpha * duration.min() + beta, alpha * duration.max() + beta) > 0:
            return TopWatchLine(alpha, beta, "line", len(top), len(groups))
    top = _top(awt / duration, duration, top_share)
    x, y = duration[top], awt[top]
    return TopWatchLine(float(np.sum(x * y) / np.sum(x * x)), 0.0, "proportional", len(top), 1)


def _given_line(alpha: float, beta: float, duration: np.ndarray) -> TopWatchLine:
    if not np.isfinite([alpha, beta]).all():
        raise ConfigError(f"--alpha {alpha} and --beta {beta} must be finite numbers")
    low = duration[np.argmin(alpha * duration + beta)]
    if not alpha * low + beta > 0:
        raise ConfigError(f"the line {alpha:g} * d + {beta:g} is not positive for a duration of {low:g} s")
    return TopWatchLine(alpha, beta, "given", 0, 0)


def normalised_watch(awt: np.ndarray, duration: np.ndarray, line: TopWatchLine) -> np.ndarray:
    """NAWP = min(AWT / (alpha * d + beta), 1), float64 in [0, 1]; 0 for a video nobody watched at all."""
    reference = line.alpha * duration + line.beta
    return np.minimum(np.divide(awt, reference, out=np.zeros_like(awt), where=awt > 0), 1.0)


def rank_normalise(values: np.ndarray) -> np.ndarray:
    """Average ranks mapped to [0, 1]: (rank - 1) / (n - 1), float64; 0.5 for a single value. Equal values stay
    equal."""
    from scipy.stats import rankdata

    if len(values) == 1:
        return np.array([0.5])
    return (rankdata(values) - 1) / (len(values) - 1)


def write_labels(labels: Labels, output: str | os.PathLike, json_path: str | os.PathLike | None = None) -> None:
    """Write the table (CSV, Parquet by suffix, `-` for CSV on standard output) and the summary as JSON."""
    write_predictions(output, labels.columns["Id"], {name: labels.columns[name] for name in COLUMNS})
    if json_path is not None:
        write_json(json_path, labels.summary)


def describe(labels: Labels, output: str | os.PathLike) -> str:
    """The summary in a few lines of plain text."""
    s = labels.summary
    made = f"fitted to {s['line_videos']:,} videos in {s['line_groups']:,} groups of duration"
    if s["line_kind"] != "line":
        made = "given with --alpha and --beta" if s["line_kind"] == "given" else f"{made} (through the origin)"
    lines = [
        f"{s['rows']:,} views of {s['videos_seen']:,} videos",
        f"{s['videos']:,} videos with at least {s['min_views']:,} views ({s['videos_below_min_views']:,} left out)",
        f"ECR (watch time above {s['ecr_seconds']:g} s): mean {s['ecr_mean']:.4f}, AWT: mean {s['awt_mean']:.3f} s",
        f"NAWP = min(AWT / ({s['alpha']:.6g} * d + {s['beta']:.6g}), 1), {made}",
    ]
    if s["looped_rows"]:
        lines.append(f"{s['looped_rows']:,} views were longer than the video (loops; counted in full)")
    if s["videos_not_longer_than_ecr_seconds"]:
        lines.append(
            f"{s['videos_not_longer_than_ecr_seconds']:,} videos last at most {s['ecr_seconds']:g} s: "
            "only looped views count as continued"
        )
    lines += [f"skipped {count:,} rows: {reason}" for reason, count in s["skipped_rows"].items()]
    if s["videos_with_contradicting_durations"]:
        lines.append(
            f"skipped {s['videos_with_contradicting_durations']:,} videos whose rows disagree about the duration"
        )
    if str(output) != "-":
        lines.append(f"written to {Path(output)}")
    return "\n".join(lines)


def _duration_groups(duration: np.ndarray, smallest: int) -> list[np.ndarray]:
    """Indices of the videos in groups of similar duration, whole seconds joined upwards until `smallest` are
    together."""
    order = np.argsort(duration, kind="stable")
    seconds = np.floor(duration[order])
    ends = np.append(np.flatnonzero(np.diff(seconds)) + 1, len(order))
    groups, start = [], 0
    for end in ends:
        if end - start >= smallest:
            groups.append(order[start:end])
            start = end
    if start < len(order):
        rest = order[start:]
        groups[-1:] = [np.concatenate([groups[-1], rest])] if groups else [rest]
    return groups


def _top(score: np.ndarray, duration: np.ndarray, top_share: float) -> np.ndarray:
    count = max(1, int(np.floor(top_share * len(score) + 0.5)))
    return np.lexsort((duration, -score))[:count]  # equal scores: the shorter video, so that row order cannot matter


def _summary(
    totals: WatchTotals, keep: np.ndarray, line: TopWatchLine, columns: dict, min_views: int, ecr_seconds: float
) -> dict:
    return {
        "rows": totals.rows,
        "skipped_rows": totals.skipped,
        "looped_rows": totals.looped_rows,
        "videos_seen": len(totals.ids) + len(totals.contradicting),
        "videos_with_contradicting_durations": len(totals.contradicting),
        "videos_below_min_views": int(np.count_nonzero(~keep)),
        "videos": int(np.count_nonzero(keep)),
        "videos_not_longer_than_ecr_seconds": int(np.count_nonzero(columns["duration"] <= ecr_seconds)),
        "min_views": min_views,
        "ecr_seconds": ecr_seconds,
        "alpha": line.alpha,
        "beta": line.beta,
        "line_kind": line.kind,
        "line_videos": line.videos,
        "line_groups": line.groups,
        "top_share": TOP_SHARE,
        "ecr_mean": float(np.mean(columns["ECR"])),
        "awt_mean": float(np.mean(columns["AWT"])),
    }
