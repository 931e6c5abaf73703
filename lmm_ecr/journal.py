"""What a long prediction leaves on the disk: the rows scored so far, and the record of a finished table.

A directory `<output>.partial` holds `meta.json` (what is being computed) and one append-only file per process. Each line is one
scored row; a line cut off by a kill is ignored. Rows without a score are not noted: every run tries them again. When the
table is complete the directory goes and `<output>.done.json` says which run it came from.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .errors import ConfigError, DataError
from .files import atomic_write, read_json, write_json


class Journal:
    """Scores by row number. `meta` identifies the computation; results of another one are refused."""

    def __init__(self, output: str | Path, meta: dict[str, Any]):
        self.directory = Path(f"{output}.partial")
        self.meta = meta

    def open(self, num_processes: int = 1) -> None:
        """Begin or continue; called by the first process alone. Raises ConfigError if other results are there.

        The files of all processes are made here: on a shared file system one made by another machine may stay unseen for
        seconds, and the first process would miss its rows at the end.
        """
        self._begin()
        for rank in range(num_processes):
            self._part(rank).touch()

    def _begin(self) -> None:
        path = self.directory / "meta.json"
        if path.is_file() and self.read():
            changed = describe_changes(read_json(path), self.meta)
            if changed:
                raise ConfigError(
                    f"{self.directory} holds unfinished results of another run (different: {changed}). "
                    "Finish that run, choose another --output, or delete the directory."
                )
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        write_json(path, self.meta)

    def is_of_this_run(self) -> bool:
        path = self.directory / "meta.json"
        return path.is_file() and not describe_changes(read_json(path), self.meta)

    def read(self) -> dict[int, dict[str, Any]]:
        """Scored rows: row number -> record, whatever process wrote them."""
        records: dict[int, dict[str, Any]] = {}
        for path in sorted(self.directory.glob("part-*.jsonl")):
            for line in path.read_text(encoding="utf-8").split("\n")[:-1]:  # what follows the last line end is cut off
                record = json.loads(line)
                records[record["row"]] = record
        return records

    def append(self, rank: int, records: Iterable[dict[str, Any]]) -> None:
        """Add scored rows (JSON values with a "row" key) of process `rank`; they survive a kill from here on."""
        path = self._part(rank)
        _repair(path)
        with open(path, "a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps(record) + "\n" for record in records))

    def _part(self, rank: int) -> Path:
        return self.directory / f"part-{rank:05d}.jsonl"

    def remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


class CompletionRecord:
    """`<output>.done.json`: which run wrote the output, so that the same run started again leaves it alone.

    It holds "identity" (everything the output depends on), "sha256" of the output, and the counts given to
    `write_output`.
    """

    def __init__(self, output: str | Path, identity: dict[str, Any]):
        self.output = Path(output)
        self.path = Path(f"{output}.done.json")
        self.identity = identity

    def read(self) -> dict[str, Any] | None:
        """The record that is there, of whatever run; None without one."""
        try:
            record = read_json(self.path)
        except (FileNotFoundError, DataError):  # DataError: no JSON, so not written by this class
            return None
        return record if isinstance(record, dict) and isinstance(record.get("identity"), dict) else None

    def is_of_this_run(self) -> bool:
        record = self.read()
        return record is not None and not describe_changes(record["identity"], self.identity)

    def is_finished(self) -> bool:
        """Whether the output is there and is what this run wrote.

        Raises ConfigError if there is an output of another run, or one that was changed after it was written.
        """
        record = self.read()
        if record is None or not self.output.exists():
            return False
        changed = describe_changes(record["identity"], self.identity)
        if changed:
            raise ConfigError(
                f"{self.output}: exists already, written by another run (different: {changed}); give another --output, or "
                "--force to replace it"
            )
        if file_digest(self.output) != record.get("sha256"):
            raise ConfigError(
                f"{self.output}: exists already and was changed since a run wrote it; give another --output, or --force to "
                "replace it"
            )
        return True

    def write_output(self, journal: Journal, write: Callable[[Path], None], **counts: int) -> None:
        """Have `write` write the output beside the journal, note its digest, and put it into its place.

        In this order a kill at any moment leaves a record that fits its output, or a journal with all scores.
        """
        staged = journal.directory / f"output-{self.output.name}"
        write(staged)
        write_json(self.path, {"identity": self.identity, "sha256": file_digest(staged), **counts})
        with open(staged, "rb") as source, atomic_write(self.output, "wb") as target:
            shutil.copyfileobj(source, target)
        staged.unlink()  # the journal may stay, for rows without a score

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def describe_changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The entries in which two identities differ, with both values; "" if they are equal."""
    changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    return ", ".join(f"{key} ({old.get(key)!r} there, {new.get(key)!r} now)" for key in changed)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _repair(path: Path) -> None:
    """Cut an unfinished last line off, so that the next record starts a line of its own."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    with open(path, "rb+") as stream:
        stream.seek(-1, 2)
        if stream.read(1) == b"\n":
            return
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)
