"""What the scores of a prediction run depend on: two runs with equal identities may share results, others never do."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .data.cache import PreparedReader, read_prepared_info
from .data.dataset import ClipDataset
from .data.manifest import ManifestRow
from .journal import file_digest

MODEL_SUFFIXES = (".json", ".safetensors", ".bin", ".jinja", ".model", ".txt")
NOT_THE_MODEL = ("metrics.json", "run.json", "trainer_state.json", "training_args.bin")  # records of its training


def run_identity(directory: Path, dataset: ClipDataset, ablations: Sequence[str], dtype: str) -> dict[str, Any]:
    """Identity of raw scores: content of the model's files, table, videos, ablations, precision (not "auto").

    Files of a model count by their content, because a training that is started again after its end writes the same model
    once more. Videos count by their real path, because a table may be scored on several versions of its clips; rows whose
    file is missing count as well.
    """
    manifest = dataset.manifest
    rows = sorted((*manifest.rows, *manifest.missing), key=lambda row: row.row)
    if isinstance(dataset.reader, PreparedReader):
        info = read_prepared_info(dataset.reader.directory)
        videos = f"{os.path.realpath(dataset.reader.directory)} {info['image_format']} {info['table']}"
    else:
        videos = _videos(rows)
    return {
        "model": _model_digest(directory),
        "table": f"{len(rows)} rows {manifest.table_fingerprint()}",
        "videos": videos,
        "ablations": sorted(set(ablations)),
        "dtype": dtype,
    }


def _model_digest(directory: Path) -> str:
    files = sorted(p for p in directory.iterdir() if p.suffix in MODEL_SUFFIXES and p.name not in NOT_THE_MODEL)
    with ThreadPoolExecutor(4) as pool:  # hashing lets go of the interpreter: about 1.5 GB/s for each core
        digests = list(pool.map(file_digest, files))
    return _short(f"{path.name} {digest}" for path, digest in zip(files, digests, strict=True))


def _videos(rows: Sequence[ManifestRow]) -> str:
    """The folder of the first clip, to be read by people, and a digest of all paths. Folders are resolved once each."""
    folders: dict[str, str] = {}
    paths = []
    for row in rows:
        folder, name = os.path.split(row.video)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder or ".")
        paths.append(f"{folders[folder]}\0{name}")
    more = f" and {len(set(folders.values())) - 1} more folders" if len(set(folders.values())) > 1 else ""
    return f"{paths[0].split(chr(0))[0]}{more} {_short(paths)}"


def _short(parts) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode(errors="surrogateescape") + b"\n")
    return digest.hexdigest()[:16]
