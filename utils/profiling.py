"""`train.py --dry_run N`: the time of real steps by phase, and what it means for the whole run."""
from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from utils.distributed import DistContext, wait_for_all
from utils.errors import STOPPED

PHASES = ("data", "input", "forward", "objective", "backward", "checks", "optimizer")
WARM_UP_STEPS = 2      # not counted: first allocations, choice of kernels, start of workers
WORKER_RESERVE = 1.25  # more workers than needed on average, as videos differ
SAMPLES_TIMED = 8      # to measure how long a worker needs for one


class PhaseTimer:
    """A clock that attributes the time since the last mark to a phase; with `steps` 0 it does nothing and costs nothing."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.steps = steps
        self.device = device
        self.seconds: list[dict[str, float]] = []
        self.last = time.perf_counter()

    def begin(self) -> None:
        """Starts the clock, before the first step."""
        self.seconds, self.last = [], time.perf_counter()

    def mark(self, phase: str) -> None:
        """Ends `phase`, after synchronizing with the device. "data" begins a step."""
        if not self.steps:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if phase == "data":
            self.seconds.append(dict.fromkeys(PHASES, 0.0))
        self.seconds[-1][phase] += now - self.last
        self.last = now

    @property
    def enough(self) -> bool:
        """Returns whether all steps of a dry run, warm-up included, are done."""
        return self.steps > 0 and len(self.seconds) >= self.steps + WARM_UP_STEPS

    def means(self) -> dict[str, float]:
        """Returns phase -> mean seconds per step after the warm-up."""
        counted = self.seconds[WARM_UP_STEPS:]
        return {phase: sum(step[phase] for step in counted) / len(counted) for phase in PHASES}


class RunSize(NamedTuple):
    """What the figures of a dry run are extrapolated to."""

    batch_per_process: int
    processes: int
    machines: int
    steps_per_epoch: int
    epochs: int
    num_workers: int


def dry_run(timer: PhaseTimer, train_some: Callable[[], bool], read_sample: Callable[[int], object],
            try_batch: Callable[[int], object], size: RunSize, context: DistContext, say: Callable[[str], None]) -> int:
    """Times real steps and prints their figures by `say`; returns the exit status.

    `train_some()` trains until the timer has enough steps or the epoch ends, and returns whether a stop was requested.
    `read_sample(i)` reads the i-th video's sample, `try_batch(b)` takes the memory of a step on b videos.
    """
    timer.begin()
    while not timer.enough:
        if train_some():
            return STOPPED
    begin = time.perf_counter()
    for index in range(min(SAMPLES_TIMED, size.batch_per_process * size.steps_per_epoch)):
        read_sample(index)
    sample_s = (time.perf_counter() - begin) / (index + 1)
    alone_on_gpu = context.device.type == "cuda" and context.world_size == 1
    largest = largest_fitting(try_batch, size.batch_per_process) if alone_on_gpu else None
    for line in describe_profile(timer.means(), size, sample_s, largest, context.device):
        say(line)
    wait_for_all()
    return 0


def describe_profile(means: dict[str, float], size: RunSize, sample_s: float, largest_batch: int | None,
                     device: torch.device) -> Iterator[str]:
    """Yields the lines that a dry run prints.

    `means`: seconds of each phase. `sample_s`: seconds that one core needs for one sample. `largest_batch`: that fits into
    the GPU's memory; None: not measured.
    """
    step_s = sum(means.values())
    work_s = step_s - means["data"]
    videos = size.batch_per_process * size.processes
    yield (f"{videos / step_s:.1f} videos/s ({videos / work_s:.1f} without waiting for data), {step_s * 1e3:.0f} ms a step "
           f"of {videos}")
    yield f"waiting for data: {means['data'] / step_s:.0%} of the time"
    yield "ms a step: " + ", ".join(f"{phase} {seconds * 1e3:.1f}" for phase, seconds in means.items())
    if device.type == "cuda":
        yield f"peak memory of the GPU: {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB"
        yield f"largest --train_batch that fits: {largest_batch or 'not measured; start one process to measure it'}"
    yield f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
    epoch_s = step_s * size.steps_per_epoch
    yield f"projected: {duration(epoch_s)} an epoch, {duration(epoch_s * size.epochs)} for {size.epochs} epochs"
    wanted = max(1, math.ceil(WORKER_RESERVE * sample_s * size.batch_per_process / work_s))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", size.processes // size.machines))
    cores = len(os.sched_getaffinity(0)) // here
    yield (f"suggested --workers: {wanted} (one core reads a sample in {sample_s * 1e3:.0f} ms, a step takes "
           f"{work_s * 1e3:.0f} ms); now {size.num_workers}")
    if wanted > cores:
        yield f"this machine has {cores} core(s) per process: steps will wait for data"


def duration(seconds: float) -> str:
    """Returns the time in the unit that suits it."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def largest_fitting(work: Callable[[int], object], start: int, limit: int = 1 << 14) -> int:
    """Returns the largest size, up to `limit`, at which `work(size)` does not run out of the device's memory.

    `start` is known to fit. Sizes are doubled until one does not fit, then halved in between, down to a step of an
    eighth of the largest that does.
    """
    fits, fails = start, None
    while fits < limit and (fails is None or fails - fits > max(1, fits // 8)):
        size = min(limit, 2 * fits) if fails is None else (fits + fails) // 2
        try:
            work(size)
            fits = size
        except torch.OutOfMemoryError:
            fails = size
            torch.cuda.empty_cache()
    return fits
