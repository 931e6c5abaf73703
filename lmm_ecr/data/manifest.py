"""The input table: one row per clip, read once and checked whole before anything slow begins.

Columns (CSV or Parquet): `Id`; optional `Title`, `Description`; target columns such as `ECR` (required for training only);
optional `Video`, a path to the clip, instead of `<video_dir>/<Id>.mp4`. Other columns are ignored.
"""

import difflib
import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from ..errors import DataError
from ..files import atomic_write
from ..tables import is_parquet, text_records

MAX_PROBLEMS_SHOWN = 10
LARGEST_RECORD = 1 << 26  # bytes: pyarrow refuses a record that does not fit into one block


@dataclass(frozen=True)
class ManifestRow:
    """One clip. `row` is its 1-based number among the data rows of the table; labels are NaN where not known."""

    row: int
    id: str
    video: Path
    title: str | None
    description: str | None
    labels: tuple[float, ...] = ()


@dataclass(frozen=True)
class Rejection:
    """A row that cannot be used, with a short stable reason and the details."""

    row: int
    id: str
    reason: str
    detail: str = ""


@dataclass
class Manifest:
    """The usable rows of a table in its order, and those rejected while reading (only for a missing file, on request).

    missing: the rows of `rejections`, for a reader that wants the table as a whole.
    """

    path: str
    rows: list[ManifestRow]
    targets: tuple[str, ...] = ()
    rejections: list[Rejection] = field(default_factory=list)
    missing: list[ManifestRow] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[ManifestRow]:
        return iter(self.rows)

    def __getitem__(self, index: int) -> ManifestRow:
        return self.rows[index]

    @property
    def labels(self) -> np.ndarray:
        """float64 [rows, targets], NaN where not known."""
        return np.array([row.labels for row in self.rows], dtype=np.float64).reshape(len(self.rows), len(self.targets))

    def fingerprint(self) -> str:
        """Hash of ids, texts and labels of the usable rows in order: tells whether two runs worked on the same rows."""
        return _fingerprint(self.rows)

    def table_fingerprint(self) -> str:
        """The same of all rows, with or without a file: does not change when a missing clip is put in its place."""
        return _fingerprint(sorted((*self.rows, *self.missing), key=lambda row: row.row))


def read_manifest(
    path: str | Path,
    video_dir: str | Path | None = None,
    *,
    targets: Sequence[str] = (),
    missing_files: str = "error",
) -> Manifest:
    """Read and check a table of clips.

    targets: label columns that must be there, each value in [0, 1]; with several targets a cell may be empty (NaN), as long
    as one of them is known. missing_files: "error", or "reject" to list rows without a file in `Manifest.rejections`.

    Raises DataError with every problem found (the first ten in full): missing column, empty or duplicate Id, an Id that
    leaves the video directory, a label that is no number or outside [0, 1], a missing file.
    """
    path = Path(path)
    columns, num_rows = _read_columns(path, targets)
    if num_rows == 0:
        raise DataError(f"{path}: the table has no rows")
    problems: list[str] = []
    ids = columns["Id"]
    _check_ids(ids, problems)
    labels = _parse_labels(columns, targets, ids, problems)
    base = Path(video_dir) if video_dir is not None else path.parent
    videos = _video_paths(columns, ids, base, problems)
    missing = _missing(videos)
    where = f"--video_dir / --video-dir ({base}{'' if base.is_dir() else ', which is no folder'}) and the Video column"
    rejections = []
    for index in sorted(missing):
        if missing_files == "reject":
            rejections.append(Rejection(index + 1, ids[index], "missing", str(videos[index])))
        else:
            problems.append(f"row {index + 1} (Id {ids[index]!r}): no file {videos[index]}")
    if problems:
        hint = ""
        if missing and missing_files != "reject":
            hint = f"\nFor missing files check {where}, or skip them on request."
        raise DataError(_list_problems(path, problems) + hint)
    all_rows = [
        ManifestRow(
            row=index + 1,
            id=ids[index],
            video=videos[index],
            title=columns["Title"][index] or None if "Title" in columns else None,
            description=columns["Description"][index] or None if "Description" in columns else None,
            labels=tuple(labels[index]),
        )
        for index in range(num_rows)
    ]
    rows = [row for index, row in enumerate(all_rows) if index not in missing]
    if not rows:
        raise DataError(f"{path}: none of the {num_rows} clips has a file, for example {videos[0]}; check {where}")
    return Manifest(str(path), rows, tuple(targets), rejections, [all_rows[index] for index in sorted(missing)])


def write_rejections(path: str | Path, rejections: Sequence[Rejection]) -> None:
    """Write `row,Id,reason,detail` as CSV."""
    import csv

    with atomic_write(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["row", "Id", "reason", "detail"])
        writer.writerows([r.row, r.id, r.reason, r.detail] for r in rejections)


def _fingerprint(rows: Sequence[ManifestRow]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((row.id, row.title, row.description, row.labels)).encode())
    return digest.hexdigest()[:16]


def _read_columns(path: Path, targets: Sequence[str]) -> tuple[dict[str, list[str]], int]:
    """The columns of the contract as lists of text ("" for nulls)."""
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.csv
    import pyarrow.parquet

    if not path.is_file():
        raise DataError(f"{path}: no such table")
    wanted = ["Id", "Title", "Description", "Video", *targets]
    names: list[str] = []
    try:
        if is_parquet(str(path)):
            names = pyarrow.parquet.read_schema(path).names
            _check_header(path, names, targets)
            table = pyarrow.parquet.read_table(path, columns=[n for n in wanted if n in names])
        else:
            _, names = next(text_records(str(path)), (1, []))
            if not names:
                raise DataError(f"{path}: the file is empty")
            _check_header(path, names, targets)
            table = pyarrow.csv.read_csv(
                path,
                read_options=pyarrow.csv.ReadOptions(block_size=LARGEST_RECORD),
                parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()),
                    strings_can_be_null=False,
                    include_columns=[n for n in wanted if n in names],
                ),
            )
    except (pa.ArrowException, OSError, DataError) as error:
        if not is_parquet(str(path)):
            _explain_csv(path, 0 if isinstance(error, DataError) else len(names))  # 0: the header itself is wrong
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read as a table ({error})") from error
    columns = {}
    for name in table.column_names:
        values = table.column(name)
        try:
            text = values if pa.types.is_string(values.type) else pyarrow.compute.cast(values, pa.string())
        except pa.ArrowException as error:
            raise DataError(f"{path}: column {name!r} of type {values.type} is no text or number ({error})") from error
        columns[name] = ["" if value is None else value for value in text.to_pylist()]
    return columns, table.num_rows


def _explain_csv(path: Path, num_columns: int) -> None:
    """Raise DataError with the place of the first mistake of a CSV file that pyarrow refused, if one can be found."""
    with open(path, "rb") as stream:
        for line, raw in enumerate(stream, start=1):
            try:
                raw.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = raw[error.start]
                raise DataError(
                    f"{path}: line {line}: byte 0x{byte:02x} is not UTF-8; save the table as UTF-8"
                ) from error
    row = -1
    for row, (line, cells) in enumerate(text_records(str(path))):
        if num_columns and len(cells) != num_columns:
            raise DataError(
                f"{path}: row {row} (line {line}) has {len(cells)} cells, the header has {num_columns}; "
                "is a comma or a quotation mark missing or too many?"
            )
    if row == 0:
        raise DataError(f"{path}: the table has no rows")


def _check_header(path: Path, names: list[str], targets: Sequence[str]) -> None:
    repeated = sorted({n for n in names if names.count(n) > 1} & {"Id", "Title", "Description", "Video", *targets})
    if repeated:
        raise DataError(f"{path}: column {repeated[0]!r} appears twice in the header")
    for name in ("Id", *targets):
        if name not in names:
            close = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=1)
            original = next((n for n in names if close and n.lower() == close[0]), None)
            hint = f" (did you mean {original!r}? rename it)" if original else ""
            if len(names) == 1 and (separator := next((mark for mark in ";\t|" if mark in names[0]), None)):
                hint = f" (the fields seem to be separated by {separator!r}: save the table with commas)"
            raise DataError(f"{path}: column {name!r} is missing; the table has {', '.join(map(repr, names))}{hint}")
    for name in (
        "Title",
        "Description",
        "Video",
    ):  # absent ones are left out without a word, so a slip would cost the texts
        meant = next((n for n in names if n.strip().lower() == name.lower()), None)
        if name not in names and meant is not None:
            raise DataError(f"{path}: column {meant!r}: did you mean {name!r}? rename it")


def _check_ids(ids: list[str], problems: list[str]) -> None:
    first_seen: dict[str, int] = {}
    for row, clip_id in enumerate(ids, start=1):
        if not clip_id.strip():
            problems.append(f"row {row}: Id is empty")
        elif clip_id in first_seen:
            problems.append(f"row {row}: Id {clip_id!r} was used in row {first_seen[clip_id]} already")
        else:
            first_seen[clip_id] = row


def _parse_labels(columns, targets: Sequence[str], ids: list[str], problems: list[str]) -> list[list[float]]:
    labels = [[math.nan] * len(targets) for _ in ids]
    for column, name in enumerate(targets):
        for index, text in enumerate(columns[name]):
            where = f"row {index + 1} (Id {ids[index]!r}): {name}"
            if not text.strip():
                if len(targets) == 1:
                    problems.append(f"{where} is empty")
                continue
            try:
                value = float(text if text.isascii() and "_" not in text else "no number")  # "0_5" is no 5.0
            except ValueError:
                problems.append(f"{where} is no number: {text!r}")
                continue
            if not 0 <= value <= 1:
                problems.append(f"{where} must lie in [0, 1], got {text}")
                continue
            labels[index][column] = value
    if len(targets) > 1:
        for index, values in enumerate(labels):
            if all(math.isnan(v) for v in values):
                problems.append(f"row {index + 1} (Id {ids[index]!r}): none of {', '.join(targets)} is known")
    return labels


def _video_paths(columns, ids: list[str], base: Path, problems: list[str]) -> list[Path | None]:
    """The clip of each row; None where the Id gives no path (an entry of `problems` says why)."""
    explicit = columns.get("Video", [""] * len(ids))
    paths = []
    for row, (clip_id, video) in enumerate(zip(ids, explicit, strict=True), start=1):
        if video.strip():
            paths.append(base / video)  # an absolute path stays as it is
            continue
        if not clip_id.strip():
            paths.append(None)
            continue
        parts = PurePosixPath(clip_id.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or "\x00" in clip_id or ":" in clip_id[:3]:
            problems.append(
                f"row {row}: Id {clip_id!r} is no file name inside the video directory; use the Video column for paths"
            )
            paths.append(None)
            continue
        paths.append(base / f"{clip_id}.mp4")
    return paths


def _missing(paths: list[Path | None]) -> set[int]:
    """Indices of paths that are no files; one listing per directory instead of one look-up per file."""
    listings: dict[str, set[str]] = {}
    missing = set()
    for index, path in enumerate(paths):
        if path is None:
            continue
        folder, name = os.path.split(path)
        if folder not in listings:
            try:
                listings[folder] = set(os.listdir(folder or "."))
            except (OSError, ValueError):
                listings[folder] = set()
        if name not in listings[folder]:
            missing.add(index)
    return missing


def _list_problems(path: Path, problems: list[str]) -> str:
    shown = "\n".join(f"  {problem}" for problem in problems[:MAX_PROBLEMS_SHOWN])
    more = f"\n  ... and {len(problems) - MAX_PROBLEMS_SHOWN} more" if len(problems) > MAX_PROBLEMS_SHOWN else ""
    return f"{path}: {len(problems)} problem{'s' * (len(problems) > 1)}\n{shown}{more}"
