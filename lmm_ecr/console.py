"""What the programs (recipes and the command line) print while they run."""

import logging
import os
import socket
import sys
import warnings
from collections.abc import Callable

from transformers import ProgressCallback

from .errors import LmmEcrError, Preempted

# How numbers of a log line are written; what is not listed is printed with four digits.
_FORMATS = {
    "epoch": "{:.2f}",
    "learning_rate": "{:.2e}",
    "clips_per_s": "{:.1f}",
    "data_wait": "{:.0%}",
    "peak_memory_gb": "{:.2f}",
    "grad_norm": "{:.3g}",
}
_HIDDEN = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "total_flos")


class LogLines(ProgressCallback):
    """The Trainer's progress bar with one readable line per log entry."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or logs is None:
            return
        words = [f"step {state.global_step}"]
        for name, value in logs.items():
            if name.endswith(_HIDDEN) or name == "train_loss":
                continue
            form = _FORMATS.get(name, "{:.4f}")
            words.append(f"{name} {form.format(value) if isinstance(value, float) else value}")
        if len(words) > 1:
            bar = getattr(self, "training_bar", None)
            line = "  ".join(words)
            bar.write(line) if bar is not None else print(line, flush=True)


def quiet_libraries() -> None:
    """Silence what the libraries print while loading: this package checks and reports it itself."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Set by default everywhere, of no effect without an accelerator.
    warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true but no accelerator is found")
    # transformers 5.23 warns about its own use of the name while it is loaded for PEFT.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    # The name all supported versions of transformers know.
    warnings.filterwarnings("ignore", message="`gradient_checkpointing` is deprecated")


def process_label() -> str:
    """"host n1, rank 3 of 8: " for a process of a distributed run (as its launcher numbered it), else nothing."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return ""
    return f"host {socket.gethostname()}, rank {os.environ.get('RANK', '?')} of {os.environ['WORLD_SIZE']}: "


def run_program(name: str, main: Callable[[], None]) -> None:
    """Run a program; errors meant for the user are printed without a stack trace and exit with their status.

    A process of a distributed run says which one it is, for the job's log; so it does when it dies of anything else.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("lmm_ecr").setLevel(logging.INFO)
    for noisy in ("httpx", "datasets", "filelock", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    quiet_libraries()
    try:
        main()
    except LmmEcrError as error:
        kind = "stopped" if isinstance(error, Preempted) else "error"
        print(f"{process_label()}{name}: {kind}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_status)
    except Exception as error:
        if process_label():
            print(f"{process_label()}{name} died of {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise
