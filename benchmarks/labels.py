"""Time and peak memory of `lmm-ecr labels` on a made-up watch log of 1 and of 10 million rows.

    python benchmarks/labels.py [--rows 1000000 10000000] [--videos 20000]

Each log is read in a process of its own, once as CSV and once as Parquet; the peak is its maximum resident set.
The number of videos is the same for all logs, so that the memory should be, too.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from peak_memory import run_measured
from rich.console import Console
from rich.table import Table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--videos", type=int, default=20_000)
    arguments = parser.parse_args()
    results = Table("rows", "format", "file MB", "seconds", "rows/s", "peak MB")
    with tempfile.TemporaryDirectory() as folder:
        for rows in arguments.rows:
            for suffix in ("csv", "parquet"):
                log = Path(folder) / f"log_{rows}.{suffix}"
                write_log(log, rows, arguments.videos)
                output = Path(folder) / f"labels_{rows}_{suffix}.csv"
                command = [sys.executable, "-m", "lmm_ecr.cli", "labels", str(log), "--output", str(output)]
                seconds, peak = run_measured([*command, "--min-views", "10"])
                size = log.stat().st_size / 1e6
                results.add_row(
                    f"{rows:,}", suffix, f"{size:.0f}", f"{seconds:.2f}", f"{rows / seconds:,.0f}", f"{peak:.0f}"
                )
                log.unlink()
            same = [(Path(folder) / f"labels_{rows}_{suffix}.csv").read_bytes() for suffix in ("csv", "parquet")]
            assert same[0] == same[1], "CSV and Parquet must give the same labels"
        seconds, peak = run_measured([sys.executable, "-m", "lmm_ecr.cli", "--help"])
        results.add_row("-", "(--help)", "-", f"{seconds:.2f}", "-", f"{peak:.0f}")
    Console().print(results)


def write_log(path: Path, rows: int, videos: int, piece: int = 1_000_000) -> None:
    """Views of videos of 5 to 60 s, written in pieces; watch times are exponential with a mean of the video's own."""
    rng = np.random.default_rng(7)
    ids = pa.array([f"{rng.bytes(16).hex()}" for _ in range(videos)])
    duration = rng.uniform(5, 60, videos).round(2)
    taste = duration * rng.beta(2, 3, videos)
    schema = pa.schema([("Id", pa.string()), ("watch_seconds", pa.float64()), ("duration", pa.float64())])
    kind = pyarrow.csv.CSVWriter if path.suffix == ".csv" else pyarrow.parquet.ParquetWriter
    with kind(path, schema) as writer:
        for start in range(0, rows, piece):
            video = rng.integers(0, videos, min(piece, rows - start))
            watch = rng.exponential(taste[video]).round(3)
            writer.write_table(pa.table([ids.take(pa.array(video)), watch, duration[video]], schema=schema))


if __name__ == "__main__":
    main()
