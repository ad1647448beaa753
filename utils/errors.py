"""The one exception for what a user can mend."""
from __future__ import annotations


class InputError(ValueError):
    """A user's mistake, in one line: what was given, what is accepted, and where (flag, path, csv line).

    Entry points print it without a traceback and exit with status 2. Everything else that is raised is a
    fault of this project and keeps its traceback.
    """


def one_line(error: InputError) -> str:
    """Returns the error's message as one line, also where it was raised in a data loader's worker process.

    torch raises a worker's error anew in the main process, with the worker's traceback for a message, of
    which the last line is the class name and the message proper.
    """
    lines = str(error).strip().splitlines()
    return lines[-1].removeprefix(f"{InputError.__module__}.{InputError.__qualname__}: ") if lines else ""
