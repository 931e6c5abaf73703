"""Signals that ask a long run to stop in time, as SLURM sends them."""

import signal
import threading

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """While the block runs, a stop signal sets `received` instead of ending the process; then the old handlers return.

    Outside the main thread no handler can be set and signals keep their meaning.
    """

    def __init__(self):
        self.received: str | None = None
        self._old: dict[int, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._old[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, _frame) -> None:
        self.received = signal.Signals(number).name

    def __exit__(self, *_exc) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()
