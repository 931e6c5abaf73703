"""What the programs (recipes and the command line) print while they run."""

import logging
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

from transformers import ProgressCallback, TrainerCallback

from .processes import run_and_exit

# How numbers of a log line are written; what is not listed is printed with four digits.
_FORMATS = {
    "learning_rate": "{:.2e}",
    "clips_per_s": "{:.1f}",
    "data_wait": "{:.0%}",
    "peak_memory_gb": "{:.2f}",
    "grad_norm": "{:.3g}",
}
_HIDDEN = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time", "total_flos")


class LogLines(TrainerCallback):
    """One readable line per log entry of the Trainer."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs and (line := log_line(state.global_step, logs)):
            self.write(line)

    def write(self, line: str) -> None:
        print(line, flush=True)


class ProgressLogLines(LogLines, ProgressCallback):
    """The same above the Trainer's progress bar, for a terminal."""

    def write(self, line: str) -> None:
        bar = getattr(self, "training_bar", None)
        if bar is None:
            super().write(line)
        else:
            bar.write(line)


def log_lines(disable_bar: bool) -> LogLines:
    """The callback that prints log entries: with a progress bar on a terminal, plain lines elsewhere or on request."""
    return LogLines() if disable_bar or not sys.stderr.isatty() else ProgressLogLines()


def log_line(step: int, logs: dict) -> str | None:
    """A log entry as text, or None if it says nothing but the time."""
    words = []
    for name, value in logs.items():
        if name.endswith(_HIDDEN) or name in ("train_loss", "epoch"):
            continue
        form = _FORMATS.get(name, "{:.4f}")
        words.append(f"{name} {form.format(value) if isinstance(value, float) else value}")
    if not words:
        return None
    when = [f"step {step}"] + ([f"epoch {logs['epoch']:.2f}"] if "epoch" in logs else [])
    return "  ".join(when + words)


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


def run_program(name: str, main: Callable[[], None]) -> NoReturn:
    """Run a recipe to its end and leave the process, as `processes.run_and_exit`, with this package's way of printing."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("lmm_ecr").setLevel(logging.INFO)
    for noisy in ("httpx", "datasets", "filelock", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    quiet_libraries()
    run_and_exit(name, main)
