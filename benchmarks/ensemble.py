"""`lmm-ecr ensemble` (mean) against the shortest correct pandas scripts for the same job: wall time and peak memory.

    python benchmarks/ensemble.py [--rows 1000000] [--files 10] [--repeats 3]

Two cases: all files in one order of rows, and every file in an order of its own. Each run is a process of its own;
times are the best of the repeats, the peak is the largest resident set. "Correct" for the scripts means: the right
mean per id. They do not look for missing or repeated ids or for values out of range, which `lmm-ecr ensemble` does.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from peak_memory import run_measured
from rich.console import Console
from rich.table import Table

PANDAS = {
    "pandas groupby": """
import sys, pandas as pd
pd.concat(map(pd.read_csv, sys.argv[2:])).groupby("Id", sort=False).ECR.mean().to_csv(sys.argv[1])
""",
    "pandas align": """
import sys, pandas as pd
pd.concat([pd.read_csv(f, index_col="Id") for f in sys.argv[2:]], axis=1).mean(axis=1).to_csv(sys.argv[1])
""",
    "pandas sum": """
import sys, pandas as pd
total = pd.read_csv(sys.argv[2], index_col="Id")
for f in sys.argv[3:]:
    total = total + pd.read_csv(f, index_col="Id").reindex(total.index)
(total / len(sys.argv[2:])).to_csv(sys.argv[1])
""",
    "pandas sum, pyarrow": """
import sys, pandas as pd
total = pd.read_csv(sys.argv[2], index_col="Id", engine="pyarrow")
for f in sys.argv[3:]:
    total = total + pd.read_csv(f, index_col="Id", engine="pyarrow").reindex(total.index)
(total / len(sys.argv[2:])).to_csv(sys.argv[1])
""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    for shuffled in (False, True):
        with tempfile.TemporaryDirectory() as folder:
            files = write_files(Path(folder), arguments.rows, arguments.files, shuffled)
            order = "every file in its own order" if shuffled else "all files in one order"
            compare(
                Path(folder), files, f"{arguments.files} files of {arguments.rows:,} rows, {order}", arguments.repeats
            )


def compare(folder: Path, files: list[str], title: str, repeats: int) -> None:
    """Run ours and each script in turn; print seconds, peak memory, and what ours takes as a share of theirs."""
    output = str(folder / "out.csv")
    commands = {
        "lmm-ecr ensemble": [sys.executable, "-m", "lmm_ecr.cli", "ensemble", *files, "--output", output, "--force"]
    }
    commands |= {name: [sys.executable, "-c", script, output, *files] for name, script in PANDAS.items()}
    runs, means = {name: [] for name in commands}, {}
    for _ in range(repeats):
        for name, command in commands.items():
            runs[name].append(run_measured(command))
            means[name] = pd.read_csv(output, index_col="Id").iloc[:, 0].sort_index().to_numpy()
    table = Table("", "seconds", "peak MB", "time ratio", "memory ratio", title=title)
    ours, our_peak = (min(numbers) for numbers in zip(*runs["lmm-ecr ensemble"], strict=True))
    for name in commands:
        assert np.allclose(means[name], means["lmm-ecr ensemble"], rtol=1e-12, atol=0), f"{name} gives another mean"
        seconds, peak = (min(numbers) for numbers in zip(*runs[name], strict=True))
        table.add_row(name, f"{seconds:.2f}", f"{peak:.0f}", f"{ours / seconds:.2f}", f"{our_peak / peak:.2f}")
    Console().print(table)


def write_files(folder: Path, rows: int, files: int, shuffled: bool) -> list[str]:
    """Prediction files with ids of 32 hexadecimal digits, as in SnapUGC, and full-precision scores."""
    rng = np.random.default_rng(0)
    ids = np.array([rng.bytes(16).hex() for _ in range(rows)])
    truth, paths = rng.random(rows), []
    for number in range(files):
        scores = np.clip(0.25 + 0.5 * truth + rng.normal(0, 0.1, rows), 0, 1)
        order = rng.permutation(rows) if shuffled else slice(None)
        paths.append(str(folder / f"member_{number}.csv"))
        pd.DataFrame({"Id": ids[order], "ECR": scores[order]}).to_csv(paths[-1], index=False)
    return paths


if __name__ == "__main__":
    main()
