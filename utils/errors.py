"""Exit statuses, and the exceptions that a user can act on.

    0    done
    1    an error of the program, with a traceback
    2    a mistake in what was given (flags, csv, files), or a full disk: one line
    3    another process or a DataLoader worker was lost, or silent for longer than --dist_timeout: restart with --resume
    4    non-finite values (NaN or Inf): the newest checkpoint is from before
    75   stopped on request (SIGTERM, SIGUSR1) after a checkpoint was written: restart with --resume
    130  interrupted (Ctrl-C)
    141  nobody reads what is printed any more, as after `| head`; nothing is said
"""
from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import sys
from collections.abc import Callable, Iterator, Sequence

FAULT, MISTAKE, LOST, NOT_FINITE, STOPPED, INTERRUPTED, UNREAD = 1, 2, 3, 4, 75, 130, 141

# What the system, torch and multiprocessing say of a limit of the machine -> the limit and the remedy. A DataLoader worker
# that could not pass a batch on ends with the error's number.
LIMITS = (
    (re.compile(rf"shared memory.*No space left|exit code {errno.ENOSPC}\b|signal: Bus error", re.DOTALL),
     "/dev/shm, through which DataLoader workers pass batches, is full: make it larger (docker run --shm-size 8g), or use "
     "smaller batches, fewer --workers, or --workers 0"),
    (re.compile(rf"Too many open files|ancdata|exit code {errno.EMFILE}\b"),
     "the limit of open files is too low (ulimit -n): raise it, such as by ulimit -n 4096, or use fewer --workers"),
    (re.compile(r"No working C\+\+ compiler|Failed to find C compiler|InvalidCxxCompiler"),
     "--compile needs a C++ compiler, and none was found: install g++, name one in the environment variable CXX, or leave "
     "--compile out"))


class InputError(ValueError):
    """A user's mistake, in one line: what was given, what is accepted, and where (flag, path, csv line).

    Programs print it without a traceback and exit with `exit_status`. Every other exception keeps its traceback.
    """

    exit_status = MISTAKE


class PeerError(InputError):
    """Other processes did not join within the timeout."""

    exit_status = LOST


class AgreedError(InputError):
    """An InputError that every process raises alike; the main process alone prints it."""


class NonFiniteError(AgreedError):
    """A loss term, a gradient or a weight is NaN or infinite; training cannot continue."""

    exit_status = NOT_FINITE


@contextlib.contextmanager
def os_error_as_input(what: str) -> Iterator[None]:
    """Raises InputError for an OSError: `what`, such as "a.csv: cannot read the csv file", and the reason."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{what}: {error.strerror}") from error


def one_line(error: InputError) -> str:
    """Returns the error's message as one line, also where it was raised in a DataLoader worker.

    torch re-raises it with the worker's traceback as its message, whose last line is the class name and the message proper.
    """
    lines = str(error).strip().splitlines()
    return lines[-1].removeprefix(f"{InputError.__module__}.{InputError.__qualname__}: ") if lines else ""


def name_some(names: Sequence[str], most: int = 3) -> str:
    """Returns the first names, and how many more there are, for an error about all of them."""
    return "; ".join(names[:most]) + (f"; and {len(names) - most:,} more" if len(names) > most else "")


def describe_limit(error: Exception) -> str | None:
    """Returns which limit of the machine `error` is about, and the remedy, or None."""
    text = f"{error}\n{error.__cause__}"  # of a worker that ended, torch may keep the status in the cause alone
    return next((remedy for pattern, remedy in LIMITS if pattern.search(text)), None)


def report(error: InputError, program: str) -> int:
    """Prints a user's mistake in one line on stderr; returns the exit status."""
    sys.stderr.write(f"{program}: error: {one_line(error)}\n")  # in one piece, as other processes may write too
    sys.stderr.flush()
    return error.exit_status


def output_is_closed() -> bool:
    """Returns whether nobody reads stdout any more; then nothing more is printed, at exit neither."""
    pipe = select.poll()
    pipe.register(sys.stdout.fileno(), 0)  # reports POLLERR in any case
    if pipe.poll(0):
        discard_output()
        return True
    return False


def discard_output() -> None:
    """Discards what is still to be printed on stdout."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_status_of(work: Callable[[], int | None], program: str) -> int:
    """Returns the exit status of `work()`: its own, or 0 for None; after an InputError or Ctrl-C one line on stderr."""
    try:
        status = work() or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        if not output_is_closed():
            raise
        return UNREAD
    except InputError as error:
        return report(error, program)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (OSError, RuntimeError) as error:
        if not (limit := describe_limit(error)):
            raise
        return report(InputError(limit), program)
