"""Locks by which one process, or one program's processes, write into a folder at a time."""
from __future__ import annotations

import errno
import fcntl
import sys
import time
from pathlib import Path
from typing import TextIO

from utils.errors import InputError

PATIENCE_S = 150  # longer than file servers keep the locks of a machine that is lost
_RETRY_S = 0.1


def hold_directory(folder: Path, longest_s: float) -> TextIO:
    """A file whose lock keeps every other process that asks for this out of `folder` while this process lives.

    Waits up to PATIENCE_S, and not longer than `longest_s`, for another one, as a machine that was lost, or its file
    server, may give a lock back late; then InputError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, patience_s = open(folder / ".lock", "w"), min(PATIENCE_S, longest_s)
    other = f"{folder}: another process writes there"
    take(file.fileno(), file.name, f"--out {other}; wait for its end, or name another directory", patience_s,
         f"{other}; waiting {patience_s:g} s for its end", shared=False)
    return file


def take(descriptor: int, name: str, busy: str, patience_s: float = 0, waiting: str = "", *, shared: bool) -> None:
    """Take the lock of the open file `name`; the InputError `busy` where another process has it for `patience_s`.

    `shared`: processes that get the descriptor from this one, as forked ones do, hold the lock too; otherwise it is of
    this process alone, and free when that ends. The line `waiting` is shown before the first wait. Where the file system
    has no locks, that is said, and all is as if it was taken.
    """
    lock, give_up = (fcntl.flock if shared else fcntl.lockf), time.monotonic() + patience_s
    while True:
        try:
            lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                print(f"{name}: cannot be locked ({error.strerror}): make sure that nobody else writes there",
                      file=sys.stderr, flush=True)
                return
            if time.monotonic() >= give_up:
                raise InputError(busy) from error
        if waiting:
            print(waiting, flush=True)
            waiting = ""
        time.sleep(_RETRY_S)
