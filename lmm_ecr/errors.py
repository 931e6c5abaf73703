"""Errors whose message is meant for the user: what is wrong, where, and what to do next.

The command line and the recipes print these without a stack trace; every other exception is a bug.
"""


class LmmEcrError(Exception):
    """Base of every error this package raises on purpose. `exit_status`: what a program that ends with it returns."""

    exit_status = 2


class DataError(LmmEcrError):
    """A table, prediction file or label is not what the contract says (file, row and value are in the message)."""


class ClipError(LmmEcrError):
    """A clip cannot be used. `reason` is a short stable word for reports, the message has the details."""

    def __init__(self, path, reason: str, detail: str = ""):
        self.path = str(path)
        self.reason = reason
        self.detail = detail
        super().__init__(f"{self.path}: {reason}" + (f" ({detail})" if detail else ""))

    def __reduce__(self):  # exceptions with their own signature must say how to cross a worker's process border
        return type(self), (self.path, self.reason, self.detail)


class ConfigError(LmmEcrError):
    """Arguments, configuration files or a checkpoint directory that contradict themselves or each other."""


class TrainingError(LmmEcrError):
    """Training cannot go on (for example a loss that is not finite)."""


class Preempted(LmmEcrError):
    """A run was asked to stop (SIGTERM, SIGUSR1) and did, with everything saved: the same command goes on from there."""

    exit_status = 85  # what HTCondor's self-checkpointing jobs return, too: "not finished, start me again"
