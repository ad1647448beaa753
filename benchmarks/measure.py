"""Times and memory side by side, and their tables: python -m benchmarks.NAME [--quick]; run.sh runs all.

Jobs run in turns, so that changes of the machine's speed affect all of them alike; ratios are taken per turn.
"""
from __future__ import annotations

import argparse
import contextlib
import functools
import io
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "performance.md"


def run_benchmark(benchmark: Callable[[bool, Path], None], description: str) -> None:
    """Runs `benchmark(quick, temporary folder)` in one thread; puts what it prints into DOCUMENT if --write is given."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats and smaller sizes")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md (see run.sh)")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    printed = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(printed if flags.write else sys.stdout):
        benchmark(flags.quick, Path(folder))
    if flags.write:
        print(printed.getvalue())
        name = Path(sys.argv[0]).stem
        body = f"`OMP_NUM_THREADS=1 python -m benchmarks.{name}` on {describe_machine()}:\n\n{printed.getvalue()}"
        DOCUMENT.write_text(insert_between_markers(DOCUMENT.read_text(), name, body))


def insert_between_markers(document: str, name: str, body: str) -> str:
    """Returns `document` with `body` between the markers of `name`; ValueError without a single pair of them."""
    document, found = re.subn(f"(<!-- {name} begin -->\n).*?(<!-- {name} end -->)",
                              lambda markers: f"{markers[1]}{body.strip()}\n{markers[2]}", document, flags=re.DOTALL)
    if found != 1:
        raise ValueError(f"the document has {found} pairs of markers <!-- {name} begin --> ... <!-- {name} end -->")
    return document


def describe_machine() -> str:
    """Returns the processor, its cores, the GPU if any, the version of torch, and the threads used here."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    return ", ".join([model[1] if model else platform.machine(), f"{os.cpu_count()} cores", *gpu,
                      f"torch {torch.__version__}", f"{torch.get_num_threads()} thread(s) per process"])


def print_table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> None:
    """Prints a Markdown table and an empty line; the first column is left-aligned, the others right-aligned."""
    print_row(header, is_header=True)
    for row in rows:
        print_row(row)
    print()


def print_row(row: Sequence[object], is_header: bool = False) -> None:
    """Prints a row of such a table at once."""
    for line in (row, ["---"] + ["---:"] * (len(row) - 1))[:1 + is_header]:
        print("| " + " | ".join(map(str, line)) + " |", flush=True)


def print_timed_table(header: Sequence[str], jobs: Mapping[str, Callable[[], object]], turns: int, baseline: str,
                      columns: Callable[[str, list[float], float], Sequence[str]], units: int = 1) -> dict[str, list[float]]:
    """Prints a row for each job, and returns its seconds in each turn of CPU time, each job called `units` times in a row.

    A row is the job's name, median ms, and `columns(name, seconds, ratio)`: how many times faster than `baseline` it is.
    """
    repeated = {name: functools.partial(repeat, job, units) for name, job in jobs.items()}
    seconds = time_in_turns(repeated, turns, units=units)
    print_table(header, [[name, milliseconds(times), *columns(name, times, ratio(seconds[baseline], times))]
                         for name, times in seconds.items()])
    return seconds


def repeat(job: Callable[[], object], times: int) -> None:
    """Calls `job` so many times, keeping no result."""
    for _ in range(times):
        job()


def time_in_turns(jobs: Mapping[str, Callable[[], object]], turns: int,
                  clock: Callable[[], float] = time.process_time, units: int = 1) -> dict[str, list[float]]:
    """Returns the seconds of each job in each turn, per unit of its work, after a warm-up turn that is not counted.

    The default clock is this process's CPU time: wall time on a free core, for work in one thread.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(turns + 1):
        for name, job in jobs.items():
            begin = clock()
            job()
            if turn:
                seconds[name].append((clock() - begin) / units)
    return seconds


def device_clock() -> float:
    """Returns seconds of the wall clock, after all work given to the GPU, if there is one, is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Returns how many times faster `fast` is: the median over the turns."""
    return statistics.median(a / b for a, b in zip(slow, fast))


def milliseconds(seconds: Sequence[float]) -> str:
    """Returns the median of some seconds in milliseconds, with three figures."""
    value = 1000 * statistics.median(seconds)
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def run_python(code: str) -> list[str]:
    """Returns the words that `code` prints in a new process with one thread."""
    code = f"import torch; torch.set_num_threads(1)\n{code}"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()


def memory_mib(field: str, file: str = "/proc/self/status") -> float:
    """Returns a figure of this process in MiB, such as "VmRSS" or "VmHWM" (the peak), or one of its smaps_rollup."""
    return int(re.search(rf"^{field}:\s*(\d+) kB", Path(file).read_text(), re.MULTILINE)[1]) / 1024


def peak_mib(setup: str, job: str) -> float:
    """Returns by how many MiB `job` raises the peak memory of a new process after `setup` (memory freed is reused)."""
    [raised] = run_python(f"from benchmarks.measure import memory_mib\n{setup}\n"
                          "open('/proc/self/clear_refs', 'w').write('5')  # resets the peak\n"
                          f"before = memory_mib('VmRSS')\n{job}\nprint(memory_mib('VmHWM') - before)")
    return float(raised)


class HeldMemory(TorchDispatchMode):
    """Records the storage of every tensor computed inside it, and which of them still exist."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.seen[StorageWeakRef(leaf.untyped_storage())] = leaf.untyped_storage().nbytes()
        return result

    def held_bytes(self) -> int:
        """Returns the bytes of those that still exist."""
        return sum(size for storage, size in self.seen.items() if not storage.expired())
