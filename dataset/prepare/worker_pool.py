"""Jobs in worker processes, where a crash costs one job: decoders do crash on broken videos.

Not Pebble's `ProcessPool`: its workers share one pipe, so that killing them at random (18 times in 600 jobs of 20 ms)
aborted the whole pool in 3 of 10 runs, and this one in none, at equal speed.
"""
from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TypeVar

import cv2

from utils.errors import InputError

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Crash:
    """Result of a job whose process was killed by a signal."""

    reason: str


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(work: Callable[[Job], Result], jobs: Sequence[Job], num_workers: int) -> Iterator[tuple[Job, Result | Crash]]:
    """Yields (job, result) of each job as soon as it is done, in any order.

    `work` is a top-level function, run by `num_workers` processes, one job at a time each. When a signal kills a process,
    its job's result is a Crash and a new process replaces it. What `work` raises is raised here. When the caller stops
    iterating, the processes are killed in the middle of their jobs; when the caller is killed, they exit by themselves.
    """
    waiting = deque(jobs)
    busy: dict[Connection, tuple[BaseProcess, Job]] = {}

    def assign(connection: Connection, process: BaseProcess) -> None:
        busy[connection] = process, waiting.popleft()
        with contextlib.suppress(BrokenPipeError):  # the process has died, which `recv` reports below
            connection.send(busy[connection][1])

    try:
        for _ in range(min(num_workers, len(waiting))):
            assign(*_start_worker(work))
        while busy:
            for connection in wait(list(busy)):
                process, job = busy[connection]
                try:
                    result = connection.recv()
                except (EOFError, ConnectionResetError):
                    process.join()
                    assert process.exitcode < 0, f"a worker process exited with status {process.exitcode}"
                    result = Crash(f"its process was killed by signal {-process.exitcode}")
                if isinstance(result, Exception):
                    raise result
                del busy[connection]
                if waiting:
                    assign(*(_start_worker(work) if isinstance(result, Crash) else (connection, process)))
                else:
                    connection.close()  # which ends the process
                    process.join()
                yield job, result
    finally:
        for process, _ in busy.values():
            process.kill()
        for process, _ in busy.values():
            process.join()


def _start_worker(work: Callable) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")  # a fork of a process in which OpenCV runs threads can hang
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, theirs), daemon=True)
    # A terminal sends Ctrl-C to all its processes. Blocked here, which the worker inherits, it reaches the caller alone.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return ours, process


def _serve(work: Callable, connection: Connection) -> None:
    """Runs jobs until the caller closes its end of the pipe."""
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()
    cv2.setNumThreads(1)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        try:
            result = work(job)
        except (InputError, OSError) as error:
            result = error
        except Exception:
            result = RuntimeError(f"in a worker process:\n{traceback.format_exc()}")
        connection.send(result)
