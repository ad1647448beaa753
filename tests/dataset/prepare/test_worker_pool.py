"""Every result arrives once, a crash costs one job, and no worker process outlives its caller."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dataset.prepare.worker_pool import Crash, run_jobs
from utils.errors import InputError

ROOT = Path(__file__).resolve().parents[3]


def work(job):
    if job == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job == "blocked signals":
        return signal.pthread_sigmask(signal.SIG_BLOCK, [])
    if job == "input error":
        raise InputError("wrong input")
    if job == "bug":
        raise KeyError("a bug")
    if isinstance(job, Path):
        job.write_text(str(os.getpid()))
        time.sleep(60)
    return job, os.getpid()


def test_a_crash_costs_one_job():
    jobs = [*range(10), "crash", *range(10, 20), "crash"]
    results = list(run_jobs(work, jobs, 2))
    assert sorted(job for job, _ in results if job != "crash") == list(range(20))
    assert all(result[0] == job for job, result in results if job != "crash")
    assert os.getpid() not in {result[1] for job, result in results if job != "crash"}
    assert [result for job, result in results if job == "crash"] == [Crash("its process was killed by signal 11")] * 2


def test_errors_are_raised_in_the_caller():
    with pytest.raises(InputError, match="^wrong input$"):
        list(run_jobs(work, [1, "input error"], 1))
    with pytest.raises(RuntimeError, match="KeyError: 'a bug'"):
        list(run_jobs(work, [1, "bug"], 1))


def test_signals_to_all_processes_reach_the_caller_alone():
    """Also from the first worker, with which Python starts a process that changes the blocked signals."""
    results = [blocked for _, blocked in run_jobs(work, ["blocked signals"] * 4, 2)]
    assert results == [{signal.SIGINT, signal.SIGTERM}] * 4


def test_no_jobs():
    assert list(run_jobs(work, [], 4)) == []


def gone(pid: int) -> bool:
    """Whether the process has ended within some seconds (a zombie has)."""
    for _ in range(100):
        try:
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def wait_for(path: Path) -> int:
    for _ in range(400):
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.05)
    raise AssertionError(f"{path} was never written")


def test_workers_exit_with_a_killed_caller_and_with_a_caller_that_stops(tmp_path):
    module = "import sys; from pathlib import Path; from tests.dataset.prepare.test_worker_pool import *\n"
    line = module + f"list(run_jobs(work, [Path({str(tmp_path / 'pid')!r})], 1))"
    caller = subprocess.Popen([sys.executable, "-c", line], cwd=ROOT)
    worker = wait_for(tmp_path / "pid")
    caller.kill()
    caller.wait()
    assert gone(worker)

    jobs = run_jobs(work, [1, tmp_path / "second"], 2)
    next(jobs)
    worker = wait_for(tmp_path / "second")
    jobs.close()
    assert gone(worker)
