"""The processes below a process; as a program, `python process_tree.py PID SIGNAL` signals it and all of them."""
from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path


def tree(pid: int) -> Iterator[int]:
    """`pid` and the process ids of all that it and its children started, as far as they live."""
    yield pid
    with contextlib.suppress(OSError):  # it has ended meanwhile
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from tree(int(child))


def arguments(pid: int) -> list[str]:
    """The command line of a process; empty for one that has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[:-1]
    except OSError:
        return []


def send(pid: int, number: int) -> None:
    """Signal `pid` and all below it, whatever their groups and sessions."""
    for process in list(tree(pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


if __name__ == "__main__":
    send(int(sys.argv[1]), getattr(signal, sys.argv[2]))
