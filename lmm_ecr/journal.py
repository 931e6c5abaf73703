"""Finished rows of a long prediction, kept so that a killed run goes on where it was.

A directory `<output>.partial` holds `meta.json` (what is being computed) and one append-only file per process. Each line is one
finished row; a line cut off by a kill is ignored.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import ConfigError
from .files import read_json, write_json


class Journal:
    """Results by row index. `meta` identifies the computation; results of another one are refused."""

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
            old = read_json(path)
            changed = sorted(k for k in {*old, *self.meta} if old.get(k) != self.meta.get(k))
            if changed:
                raise ConfigError(
                    f"{self.directory} holds unfinished results of another run (different: {', '.join(changed)}). "
                    "Finish that run, choose another --output, or delete the directory."
                )
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        write_json(path, self.meta)

    def read(self) -> dict[int, dict[str, Any]]:
        """Finished rows: row index -> record, whatever process wrote them."""
        records: dict[int, dict[str, Any]] = {}
        for path in sorted(self.directory.glob("part-*.jsonl")):
            for line in path.read_text(encoding="utf-8").split("\n")[:-1]:  # what follows the last line end is cut off
                record = json.loads(line)
                records[record["row"]] = record
        return records

    def append(self, rank: int, records: Iterable[dict[str, Any]]) -> None:
        """Add finished rows (JSON values with a "row" key) of process `rank`; they survive a kill from here on."""
        path = self._part(rank)
        _repair(path)
        with open(path, "a", encoding="utf-8") as stream:
            stream.write("".join(json.dumps(record) + "\n" for record in records))

    def _part(self, rank: int) -> Path:
        return self.directory / f"part-{rank:05d}.jsonl"

    def remove(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


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
