"""Timing and memory side by side, and what the figures were measured on.

Jobs are run in turns, so that a machine's ups and downs meet all of them alike; ratios are taken turn by turn.
"""
from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def quick_flag(description: str) -> bool:
    """Returns whether `--quick` was given: fewer repeats, smaller sizes, for a look at whether all works."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="fewer repeats and smaller sizes")
    return parser.parse_args().quick


def time_in_turns(jobs: dict[str, Callable[[], object]], turns: int,
                  clock: Callable[[], float] = time.process_time) -> dict[str, list[float]]:
    """Returns the seconds of each job in each turn; one more turn before them warms up and is not counted.

    By default these are seconds of this process's CPU time: those of the clock on a free core, for work in one thread.
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
    """Returns seconds of the wall clock, when all that was given to the GPU, if there is one, is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Returns how many times faster `fast` is: the median over the turns."""
    return statistics.median(a / b for a, b in zip(slow, fast))


def milliseconds(seconds: Sequence[float]) -> str:
    """Returns the median of some seconds as milliseconds with three figures."""
    value = 1000 * statistics.median(seconds)
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns a Markdown table, the first column to the left and the others to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def machine() -> str:
    """Returns one line on the processor, its cores, the GPU if any, the threads used here, and versions."""
    parts = [f"{processor()}, {os.cpu_count()} cores"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    parts += [f"torch {torch.__version__}", f"{torch.get_num_threads()} thread(s) a process"]
    return ", ".join(parts)


def processor() -> str:
    """Returns the processor's name."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines()
             if line.startswith("model name")] if info.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def memory_mib(field: str, file: str = "/proc/self/status") -> float:
    """Returns a figure in MiB of a process, such as "VmRSS" or "VmHWM" (the peak), or of its smaps_rollup; on Linux."""
    for line in Path(file).read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(f"{file} has no {field}")


def raised_mib(job: Callable[[], object]) -> float:
    """Returns by how many MiB a job raises this process's memory at most.

    To be called in a new process: what others freed before may still be the process's, and is used again unseen.
    """
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory_mib("VmRSS")
    job()
    return memory_mib("VmHWM") - before


class HeldMemory(TorchDispatchMode):
    """Knows the storage of every tensor that was computed inside it, and which of them are still there."""

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
        """Returns the bytes of those that are still there."""
        return sum(size for storage, size in self.seen.items() if not storage.expired())
