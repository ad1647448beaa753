"""Requests to stop: SIGTERM and SIGUSR1, as batch systems send them before they take a machine away."""
from __future__ import annotations

import signal

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether this process has been asked to stop since this was made; the step at hand is always finished."""

    def __init__(self) -> None:
        self.requested = False
        for number in STOP_SIGNALS:
            signal.signal(number, self._take)

    def release(self) -> None:
        """From here on a request ends the process at once again."""
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    def close(self) -> None:
        """From here on requests mean nothing: this process is about to end by itself."""
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _take(self, _number: int, _frame: object) -> None:
        self.requested = True


def leave_signals_to_parent() -> None:
    """For loader processes: signals reach all of a job's processes, and the training process decides what they mean."""
    for number in (*STOP_SIGNALS, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
