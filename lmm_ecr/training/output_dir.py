"""The output directory of a run: what an earlier run left there, where to resume, and the record at the start."""

import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ..arguments import RecipeArguments
from ..errors import ConfigError
from ..files import read_json, write_json
from .checkpoints import is_complete, last_complete_checkpoint
from .checks import check_batch_and_checkpoints
from .launch import check_launch

logger = logging.getLogger(__name__)

RECORD = "run.json"
# What a finished run says about itself. Its model stays until the new one is whole (see `finish.save_model`).
OUTPUTS = ("metrics.json", "rejected.csv", "predictions/eval.csv", "plots/eval_scatter.png", RECORD)


def prepare_output_dir(args: RecipeArguments, recipe: str) -> Path | None:
    """Check and make the output directory (`runs/<recipe>` by default); returns the checkpoint to resume from, if any.

    Checks the launch and the training arguments first. Raises ConfigError if the directory holds an earlier run and neither
    resuming nor overwriting was asked for, or if a named checkpoint is incomplete. A run on generated clips replaces an
    earlier one of its kind without asking, never a run on real clips. A run that starts deletes the checkpoints and results
    of the earlier one, and writes `run.json`; one that resumes keeps the `run.json` that is there until it has finished,
    because only then it is known to be the same training.
    """
    training = args.training
    check_launch(training)
    check_batch_and_checkpoints(training)
    if "output_dir" not in args.explicit:
        training.output_dir = f"runs/{recipe}"
    output = Path(training.output_dir)
    checkpoint = _checkpoint_to_resume(training.resume_from_checkpoint, output)
    if checkpoint is None:
        _check_earlier_run(args, output)
    with training.main_process_first(local=False):
        if training.process_index == 0:
            if checkpoint is None:
                _clear(output)
            if not (output / RECORD).is_file():
                write_json(output / RECORD, {"command": command_line(sys.argv), "arguments": args.to_dict()})
    return checkpoint


def _checkpoint_to_resume(wish: str | None, output: Path) -> Path | None:
    if wish in ("auto", "true", "True"):
        found = last_complete_checkpoint(output)
        logger.info("resuming from %s", found or "the start: no complete checkpoint yet")
        return found
    if not wish:
        return None
    checkpoint = Path(wish)
    if not is_complete(checkpoint):
        raise ConfigError(
            f"--resume_from_checkpoint {checkpoint}: no complete checkpoint is there (a killed run leaves half a "
            "one); use --resume_from_checkpoint auto for the last complete one"
        )
    return checkpoint


def _check_earlier_run(args: RecipeArguments, output: Path) -> None:
    """Raise ConfigError unless a run may start in `output`. With --resume_from_checkpoint half a checkpoint is no obstacle
    (a run that was killed early starts again), but a finished run without checkpoints is."""
    resuming = args.training.resume_from_checkpoint
    halves = [] if resuming else [*output.glob("checkpoint-*")]
    earlier = [path for path in (*halves, output / "config.json") if path.exists()]
    if not earlier or args.training.overwrite_output_dir or (args.generated_clips and _used_generated_clips(output)):
        return
    way = "it has no checkpoint to go on from" if resuming else "go on with --resume_from_checkpoint"
    raise ConfigError(
        f"{output} holds an earlier run ({earlier[0].name}, ...): {way}, replace it "
        "with --overwrite_output_dir, or choose another --output_dir"
    )


def _used_generated_clips(output: Path) -> bool:
    """Whether the earlier run in `output` was a demonstration on generated clips, finished or not."""
    path = output / RECORD
    return path.is_file() and read_json(path)["arguments"]["data"]["train_data"] is None


def _clear(output: Path) -> None:
    """Delete what an earlier run left in `output`, but its model."""
    for path in output.glob("checkpoint-*"):
        shutil.rmtree(path)
    for name in OUTPUTS:
        (output / name).unlink(missing_ok=True)


def command_line(argv: Sequence[str]) -> list[str]:
    """The command that runs this program, without the values of options that are tokens (--hub_token and the like)."""
    words: list[str] = []
    hide_next = False
    for word in argv:
        name, equals, _ = word.partition("=")
        secret = name.startswith("--") and name.replace("-", "_").endswith("token")
        if hide_next and not name.startswith("--"):
            word = "<hidden>"
        elif secret and equals:
            word = f"{name}=<hidden>"
        words.append(word)
        hide_next = secret and not equals
    return [sys.executable, *words]
