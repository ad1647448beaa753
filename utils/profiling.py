"""`train.py --dry_run N`: the time of real steps by phase, and what it means for the whole run."""
from __future__ import annotations

import argparse
import math
import os
import resource
import time
from collections.abc import Callable, Iterator

import torch

from utils.distributed import DistContext, gather_objects
from utils.errors import STOPPED

PHASES = ("data", "input", "forward", "objective", "backward", "checks", "optimizer")
WARM_UP_STEPS = 2      # not counted: first allocations, choice of kernels, start of workers
WORKER_RESERVE = 1.25  # more workers than needed on average, as videos differ
SAMPLES_TIMED = 8      # to measure how long a worker needs for one


class PhaseTimer:
    """A clock that attributes the time since the last mark to a phase; with `steps` 0 it does nothing and costs nothing."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.steps, self.device = steps, device
        self.seconds: list[dict[str, float]] = []
        self.last = time.perf_counter()

    def mark(self, phase: str) -> None:
        """Ends `phase`, after synchronizing with the device. "data" begins a step."""
        if not self.steps:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if phase == "data":
            self.seconds.append(dict.fromkeys(PHASES, 0.0))
        now = time.perf_counter()
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


def dry_run(timer: PhaseTimer, train_some: Callable[[], bool], read_sample: Callable[[int], object],
            try_batch: Callable[[int], object], steps_per_epoch: int, flags: argparse.Namespace, context: DistContext,
            say: Callable[[str], None]) -> int:
    """Times real steps and prints their figures by `say`; returns the exit status.

    `train_some()` trains until the timer has enough steps or the epoch ends, and returns whether a stop was requested.
    `read_sample(i)` reads the i-th video's sample, `try_batch(b)` takes the memory of a step on b videos.
    """
    while not timer.enough:
        if train_some():
            return STOPPED
    num_samples, begin = min(SAMPLES_TIMED, flags.batch_per_gpu * steps_per_epoch), time.perf_counter()
    for index in range(num_samples):
        read_sample(index)
    sample_s = (time.perf_counter() - begin) / num_samples
    alone_on_gpu = context.device.type == "cuda" and context.world_size == 1
    largest = largest_fitting(try_batch, flags.batch_per_gpu) if alone_on_gpu else None
    for line in describe_profile(timer.means(), steps_per_epoch, flags, context, sample_s, largest):
        say(line)
    gather_objects(None)  # ends when every process is here
    return 0


def describe_profile(means: dict[str, float], steps_per_epoch: int, flags: argparse.Namespace, context: DistContext,
                     sample_s: float, largest_batch: int | None) -> Iterator[str]:
    """Yields the lines that a dry run prints.

    `means`: seconds of each phase. `sample_s`: seconds that one core needs for one sample. `largest_batch`: that fits into
    the GPU's memory; None: not measured.
    """
    step_s = sum(means.values())
    work_s = step_s - means["data"]
    videos = flags.batch_per_gpu * context.world_size
    yield (f"{videos / step_s:.1f} videos/s ({videos / work_s:.1f} without waiting for data), {step_s * 1e3:.0f} ms a step "
           f"of {videos}")
    yield f"waiting for data: {means['data'] / step_s:.0%} of the time"
    yield "ms a step: " + ", ".join(f"{phase} {seconds * 1e3:.1f}" for phase, seconds in means.items())
    if context.device.type == "cuda":
        yield f"peak memory of the GPU: {torch.cuda.max_memory_allocated(context.device) / 2**30:.2f} GiB"
        yield f"largest --train_batch that fits: {largest_batch or 'not measured; start one process to measure it'}"
    yield f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
    epoch_s = step_s * steps_per_epoch
    yield f"projected: {duration(epoch_s)} an epoch, {duration(epoch_s * flags.epochs)} for {flags.epochs} epochs"
    wanted = max(1, math.ceil(WORKER_RESERVE * sample_s * flags.batch_per_gpu / work_s))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", context.world_size // flags.num_nodes))
    cores = len(os.sched_getaffinity(0)) // here
    yield (f"suggested --workers: {wanted} (one core reads a sample in {sample_s * 1e3:.0f} ms, a step takes "
           f"{work_s * 1e3:.0f} ms); now {flags.num_workers}")
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

    `start` is known to fit. Sizes are doubled until one does not fit, then bisected down to an eighth of what fits.
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
