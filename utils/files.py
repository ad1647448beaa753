"""Files: written whole or not at all, hashed, locked against other processes; and the progress of work on many of them."""
from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

import filelock
from tqdm import tqdm

from utils.errors import InputError, os_error_as_input

Item = TypeVar("Item")
Result = TypeVar("Result")

NUM_THREADS = 32  # they wait for the file system
LOCK_WAIT_S = 150  # longer than file servers keep the locks of a machine that is lost
SECONDS_BETWEEN_LINES = 30


def write_atomically(path: str | os.PathLike[str], content: bytes | str | Callable[[BinaryIO], object]) -> None:
    """Replaces a file so that, whatever happens meanwhile, it holds its old content or all of the new.

    `content`: what to write, or a function that writes it into an open file. An OSError has `path` as its filename.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            if isinstance(content, str):
                content = content.encode()
            content(file) if callable(content) else file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = str(path)
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_text(path: str | os.PathLike[str]) -> str:
    """Returns the text of a list that a user gives. InputError, with the line, if it cannot be read or is not UTF-8."""
    with os_error_as_input(f"{path}: cannot read the list"):
        data = Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8 text") from error


def read_lines(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Returns (`file:line`, stripped text) of the list's lines that are not blank. InputError as in `read_text`, and
    for other line breaks within a line."""
    lines = [(f"{path}:{number}", line.strip()) for number, line in enumerate(read_text(path).split("\n"), start=1)]
    for where, line in lines:
        if len(line.splitlines()) > 1:  # by other characters, such as a vertical tab
            raise InputError(f"{where}: {line!r}, expected one line of text")
    return [(where, line) for where, line in lines if line]


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file atomically, and makes its folder where it is missing. InputError if it cannot be written."""
    try:
        with os_error_as_input(f"{path}: cannot write"):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text)
    except UnicodeEncodeError as error:  # a file name holds bytes that are not UTF-8
        start = text.rfind("\n", 0, error.start) + 1
        raise InputError(f"{path}: cannot write {text[start:].partition(chr(10))[0]!r}: a name in it is not UTF-8; "
                         "rename that file or folder") from error


def file_sha256(path: str | os.PathLike[str]) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def hold_lock(path: str | os.PathLike[str], busy: str, wait_s: float = 0,
              waiting: str | None = None) -> contextlib.AbstractContextManager:
    """Returns the lock of the file `path`: held to the end of a `with` statement, or for as long as it is referenced.

    Waits `wait_s` for another process that holds it, after printing the line `waiting`; then raises InputError(`busy`).
    A process that ends, however it ends, frees its locks. On a file system without locks that is reported, and nothing is
    held.
    """
    lock = filelock.FileLock(path)
    try:
        try:
            return lock.acquire(timeout=0)
        except filelock.Timeout:
            if waiting:
                print(waiting, flush=True)
            return lock.acquire(timeout=wait_s)
    except filelock.Timeout as error:
        raise InputError(busy) from error
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.ENOENT):
            raise
        print(f"{path}: cannot be locked ({error}): make sure that no other process writes there", file=sys.stderr)
        return contextlib.nullcontext()


def hold_directory(folder: Path, longest_s: float) -> contextlib.AbstractContextManager:
    """Returns the lock that keeps every other run out of the run directory `folder`, which is made where it is missing.

    Waits up to LOCK_WAIT_S, and not longer than `longest_s`, for another run to end; then raises InputError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wait_s = min(LOCK_WAIT_S, longest_s)
    return hold_lock(folder / ".lock", f"--out {folder}: another process writes there; wait for its end, or name another "
                     "directory", wait_s, f"{folder}: another process writes there; waiting {wait_s:g} s for its end")


def map_in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Returns `work` of each item, in order, by threads: for work that waits for the file system."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(pool.map(work, items))


def show_progress(items: Iterable[Item], total: int, doing: str, unit: str) -> Iterator[Item]:
    """Yields the items, with a progress bar on a terminal, and else with a line on stderr every half minute."""
    if sys.stderr.isatty():
        yield from tqdm(items, doing, total, unit=f" {unit}", smoothing=0.05)
        return
    start = last = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        if (now := time.monotonic()) - last >= SECONDS_BETWEEN_LINES:
            last = now
            print(f"{doing}: {number:,} of {total:,} {unit}, {number / (now - start):.1f}/s", file=sys.stderr, flush=True)
