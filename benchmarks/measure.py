"""Timing and memory side by side, and what the figures were measured on.

Jobs are run in turns, so that changes of the machine's speed affect all of them alike; ratios are taken per turn.
"""
from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def quick_flag(description: str) -> bool:
    """Returns whether `--quick` was given: a short run that only checks that everything works."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer repeats and smaller sizes")
    return parser.parse_args().quick


def time_in_turns(jobs: dict[str, Callable[[], object]], turns: int,
                  clock: Callable[[], float] = time.process_time) -> dict[str, list[float]]:
    """Returns the seconds of each job in each turn, after a warm-up turn that is not counted.

    The default clock is this process's CPU time: wall time on a free core, for work in one thread.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(turns + 1):
        for name, job in jobs.items():
            begin = clock()
            job()
            if turn:
                seconds[name].append(clock() - begin)
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


def format_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns a Markdown table, its first column left-aligned and the others right-aligned."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def describe_machine() -> str:
    """Returns one line with the processor, its cores, the GPU if any, the threads used here, and versions."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines()
             if line.startswith("model name")] if info.exists() else []
    parts = [f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join([*parts, f"torch {torch.__version__}", f"{torch.get_num_threads()} thread(s) per process"])


def memory_mib(field: str, file: str = "/proc/self/status") -> float:
    """Returns a figure in MiB of a process, such as "VmRSS" or "VmHWM" (the peak), or of its smaps_rollup; on Linux."""
    for line in Path(file).read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(f"{file} has no {field}")


def raised_mib(job: Callable[[], object]) -> float:
    """Returns by how many MiB a job raises this process's peak memory; only meaningful in a new process.

    Memory that earlier jobs freed may still belong to the process, and would be used again unnoticed.
    """
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = memory_mib("VmRSS")
    job()
    return memory_mib("VmHWM") - before


def peak_mib(setup: str, job: str) -> float:
    """Returns by how many MiB the expression `job` raises the memory of a new process with one thread, after `setup`."""
    code = f"import torch; torch.set_num_threads(1); {setup}\nfrom benchmarks.measure import raised_mib\n" \
           f"print(raised_mib(lambda: {job}))"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


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
