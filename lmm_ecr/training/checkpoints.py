"""Checkpoint directories that are either complete or ignored."""

import shutil
from pathlib import Path

COMPLETE_MARK = "complete"  # written last into a checkpoint directory


def is_complete(checkpoint: Path) -> bool:
    return (checkpoint / COMPLETE_MARK).is_file()


def last_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest checkpoint below `output_dir` that was written to its end, or None."""
    found = [path for path in checkpoints(output_dir) if is_complete(path)]
    return found[-1] if found else None


def checkpoints(output_dir: str | Path) -> list[Path]:
    """All checkpoint directories below `output_dir`, complete or not, the oldest step first."""
    found = [p for p in Path(output_dir).glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def delete_checkpoint(directory: Path) -> None:
    """Remove a checkpoint, its mark first: a deletion that is cut off leaves nothing that looks complete."""
    (directory / COMPLETE_MARK).unlink(missing_ok=True)
    shutil.rmtree(directory)


def delete_old_checkpoints(output_dir: str | Path, limit: int | None, best: str | None) -> None:
    """Keep the newest `limit` checkpoints, with `best` always among them; None or 0 keeps all. The newest always stays."""
    if not limit:
        return
    found = checkpoints(output_dir)
    kept = {found[-1]} if found else set()
    if best is not None:
        kept |= {path for path in found if path.name == Path(best).name}
    for path in reversed(found):
        if len(kept) >= limit:
            break
        kept.add(path)
    for path in found:
        if path not in kept:
            delete_checkpoint(path)
