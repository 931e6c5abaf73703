"""Checkpoint directories that are either complete or ignored, and what has to be in one to resume from it."""

import shutil
from pathlib import Path

from ..errors import ConfigError
from ..files import read_json

COMPLETE_MARK = "complete"  # written last into a checkpoint directory
TRAINER_STATE = "trainer_state.json"


def is_complete(checkpoint: Path) -> bool:
    return (checkpoint / COMPLETE_MARK).is_file()


def last_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest checkpoint below `output_dir` that was written to its end, or None."""
    found = [path for path in checkpoints(output_dir) if is_complete(path)]
    return found[-1] if found else None


def checkpoints(output_dir: str | Path) -> list[Path]:
    """All checkpoint directories below `output_dir`, complete or not, the oldest step first."""
    found = [p for p in Path(output_dir).glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=step_of)


def step_of(checkpoint: str | Path) -> int:
    """The step after which a checkpoint directory was written."""
    return int(Path(checkpoint).name.removeprefix("checkpoint-"))


def check_optimizer_state(checkpoint: Path) -> None:
    """Raise ConfigError if `checkpoint` has no state of the optimizer or the learning rate schedule.

    Without them transformers goes on with new ones and says nothing: other steps than those of the uninterrupted run.
    """
    deepspeed = any(checkpoint.glob("global_step*"))
    optimizer = deepspeed or any(checkpoint.glob("optimizer*"))
    schedule = deepspeed or (checkpoint / "scheduler.pt").is_file()
    if not (optimizer and schedule):
        missing = " and ".join(
            name for name, there in (("optimizer", optimizer), ("learning rate schedule", schedule)) if not there
        )
        raise ConfigError(
            f"{checkpoint} has no state of the {missing} (was it written with --save_only_model?), so training cannot go "
            "on from there as if nothing had happened. `lmm-ecr predict` takes it; to train, start anew"
        )


def best_checkpoint(checkpoint: Path) -> Path | None:
    """Where the best model is that the training had found up to `checkpoint`; None if none was saved.

    The path in the trainer's state is relative to where the run was started, and wrong after the run was moved: the
    neighbour of `checkpoint` with that name counts. A checkpoint that was resumed into another output directory has its
    best one where it was. Raises ConfigError if it is gone.
    """
    recorded = read_json(checkpoint / TRAINER_STATE)["best_model_checkpoint"]
    if recorded is None:
        return None
    for candidate in (checkpoint.parent / Path(recorded).name, Path(recorded)):
        if is_complete(candidate):
            return candidate
    raise ConfigError(
        f"{checkpoint.parent / Path(recorded).name}, the best model so far, is gone or incomplete: put it back beside "
        f"{checkpoint.name}, or resume with --load_best_model_at_end false and end with the last model"
    )


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
