"""Jobs in worker processes, where a crash costs one job: decoders do crash on broken videos.

Not Pebble's `ProcessPool`, which 18 crashes in 600 jobs aborted in 3 of 10 runs, nor that of `concurrent.futures`, whose
error does not distinguish a crash from a process that could not start.
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
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import NamedTuple, TypeVar

import cv2

from utils.errors import InputError

Job = TypeVar("Job")
Result = TypeVar("Result")


class Crash(NamedTuple):
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
    busy: dict[Connection, Job] = {}
    processes: dict[Connection, BaseProcess] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < num_workers:
                connection = next((c for c in processes if c not in busy), None) or _start_worker(work, processes)
                busy[connection] = waiting.popleft()
                with contextlib.suppress(BrokenPipeError):  # the process has died, which `recv` reports below
                    connection.send(busy[connection])
            for connection in wait(list(busy)):
                job = busy.pop(connection)
                try:
                    result = connection.recv()
                except (EOFError, ConnectionResetError):
                    process = processes.pop(connection)
                    process.join()
                    assert process.exitcode < 0, f"a worker process exited with status {process.exitcode}"
                    result = Crash(f"its process was killed by signal {-process.exitcode}")
                if isinstance(result, Exception):
                    raise result
                yield job, result
    finally:
        for process in processes.values():
            process.kill()
        for process in processes.values():
            process.join()


def _start_worker(work: Callable, processes: dict[Connection, BaseProcess]) -> Connection:
    """Returns the connection to a new process, which is added to `processes`."""
    context = multiprocessing.get_context("spawn")  # a fork of a process in which OpenCV runs threads can hang
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, theirs), daemon=True)
    resource_tracker.ensure_running()  # its start, otherwise part of the first process's, unblocks the signals
    # A terminal or cluster signals all processes. Blocked here, which the worker inherits, it reaches the caller alone.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        process.start()
        processes[ours] = process
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return ours


def _serve(work: Callable, connection: Connection) -> None:
    """Runs jobs, with one thread for OpenCV and torch, until the process is killed or the caller has ended."""
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()
    cv2.setNumThreads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    with contextlib.suppress(EOFError):
        while True:
            job = connection.recv()
            try:
                result = work(job)
            except Exception as error:
                known = isinstance(error, (InputError, OSError))
                result = error if known else RuntimeError(f"in a worker process:\n{traceback.format_exc()}")
            connection.send(result)
