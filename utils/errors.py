"""Exit statuses, and the exceptions that a user can act on.

    0    done
    1    a fault of the program: a traceback tells where
    2    a mistake in what was given (flags, csv, files), or a disk that is full: one line
    3    another process was lost (also one that loads data), or silent for longer than --dist_timeout: start again with
         --resume
    4    numbers that are not finite: the newest checkpoint is from before
    75   stopped on request (SIGTERM, SIGUSR1) after a checkpoint was written: start again with --resume
    130  interrupted (Ctrl-C)
"""
from __future__ import annotations

import sys

FAULT, MISTAKE, LOST, NOT_FINITE, STOPPED, INTERRUPTED = 1, 2, 3, 4, 75, 130


class InputError(ValueError):
    """A user's mistake, in one line: what was given, what is accepted, and where (flag, path, csv line).

    Entry points print it without a traceback and exit with `exit_status`. Everything else that is raised is a
    fault of this project and keeps its traceback.
    """

    exit_status = MISTAKE


class PeerError(InputError):
    """Other processes were not found in time: too late, gone, or somewhere else."""

    exit_status = LOST


class AgreedError(InputError):
    """An InputError that every process raises alike; the main one alone tells it."""


class NonFiniteError(AgreedError):
    """A loss term, a gradient or a weight is NaN or infinite; the run cannot go on."""

    exit_status = NOT_FINITE


def one_line(error: InputError) -> str:
    """Returns the error's message as one line, also where it was raised in a data loader's worker process.

    torch raises a worker's error anew in the main process, with the worker's traceback for a message, of
    which the last line is the class name and the message proper.
    """
    lines = str(error).strip().splitlines()
    return lines[-1].removeprefix(f"{InputError.__module__}.{InputError.__qualname__}: ") if lines else ""


def report(error: InputError, program: str) -> int:
    """Tell a user's mistake in one line; returns the exit status."""
    sys.stderr.write(f"{program}: error: {one_line(error)}\n")  # in one piece, as other processes may write too
    sys.stderr.flush()
    return error.exit_status
