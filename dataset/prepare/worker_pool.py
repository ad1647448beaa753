"""Jobs done in worker processes, where a crash costs one job: decoders do crash on broken videos."""
from __future__ import annotations

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


def run_jobs(
    work: Callable[[Job], Result], jobs: Sequence[Job], num_workers: int, held: Connection | None = None
) -> Iterator[tuple[Job, Result | Crash]]:
    """Yields (job, result) of each job as soon as it is done, in whatever order that is.

    ``work`` is a top-level function, run in ``num_workers`` processes, one job at a time. A process that a
    signal kills gives its job a Crash, and another takes its place. What ``work`` raises is raised here. When
    the caller stops iterating, the processes are ended in the middle of their jobs; when the caller is killed,
    they end themselves. ``held`` is a descriptor that each process keeps open as long as it lives.
    """
    waiting = deque(jobs)
    workers: dict[Connection, tuple[BaseProcess, Job]] = {}

    def start() -> None:
        connection, process = _start_worker(work, held)
        give(connection, process)

    def give(connection: Connection, process: BaseProcess) -> None:
        job = waiting.popleft()
        workers[connection] = process, job
        try:
            connection.send(job)
        except BrokenPipeError:
            pass  # it has died: the end of its pipe tells so below, and what of

    try:
        for _ in range(min(num_workers, len(waiting))):
            start()
        while workers:
            for connection in wait(list(workers)):
                process, job = workers.pop(connection)
                try:
                    done, value = connection.recv()
                except (EOFError, ConnectionResetError):
                    connection.close()
                    process.join()
                    assert process.exitcode < 0, f"a worker process ended with status {process.exitcode}"
                    if waiting:
                        start()
                    yield job, Crash(f"its process was killed by signal {-process.exitcode}")
                    continue
                if not done:
                    workers[connection] = process, job
                    raise value
                if waiting:
                    give(connection, process)
                else:
                    connection.close()  # which ends the process
                    process.join()
                yield job, value
    finally:
        for process, _ in workers.values():
            process.kill()
        for connection, (process, _) in workers.items():
            process.join()
            connection.close()


def _start_worker(work: Callable, held: Connection | None) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")  # forking a process in which OpenCV runs threads can hang
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, theirs, held), daemon=True)
    # Ctrl-C goes to every process of a terminal. Blocked here and inherited, it reaches the caller alone.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return ours, process


def _serve(work: Callable, connection: Connection, held: Connection | None) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        try:
            answer = True, work(job)
        except InputError as error:
            answer = False, error
        except Exception:
            answer = False, RuntimeError(f"in a worker process:\n{traceback.format_exc()}")
        connection.send(answer)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
