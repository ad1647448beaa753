"""Where the time of a step goes: `train.py --dry_run N` measures it, in every other run these marks cost nothing."""
from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

PHASES = ("data", "input", "forward", "objective", "backward", "checks", "optimizer")
WARM_UP_STEPS = 2  # not counted: first allocations, choice of kernels, workers that start
WORKER_RESERVE = 1.25  # workers to spare, as videos differ


class Phases:
    """A clock that attributes the time since the last mark to a phase; `steps` 0: no clock."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.steps = steps
        self.device = device
        self.seconds: list[dict[str, float]] = []
        self.last = 0.0

    def begin(self) -> None:
        """Start the clock, before the first step."""
        self.seconds, self.last = [], time.perf_counter()

    def mark(self, phase: str) -> None:
        """The end of `phase`; waits for the device. "data" begins a step."""
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
        """Whether all steps of a dry run, those of its warm-up among them, are done."""
        return self.steps > 0 and len(self.seconds) >= self.steps + WARM_UP_STEPS

    def means(self) -> dict[str, float]:
        """Phase -> mean seconds of a step after the warm-up."""
        counted = self.seconds[WARM_UP_STEPS:]
        return {phase: sum(step[phase] for step in counted) / len(counted) for phase in PHASES}


class Plan(NamedTuple):
    """What a dry run's figures are related to."""

    batch_per_process: int
    processes: int
    steps_per_epoch: int
    epochs: int
    num_workers: int
    sample_s: float                # time that one core needs for one sample
    largest_batch: int | None      # that fits into the GPU's memory; None on the CPU


def describe(means: dict[str, float], plan: Plan, device: torch.device) -> Iterator[str]:
    """The lines that a dry run tells."""
    step_s = sum(means.values())
    work_s = step_s - means["data"]
    videos = plan.batch_per_process * plan.processes
    yield f"{videos / step_s:.1f} videos/s ({videos / work_s:.1f} without waiting for data), {step_s * 1e3:.0f} ms a step of {videos}"
    yield f"waiting for data: {means['data'] / step_s:.0%} of the time"
    yield "ms a step: " + ", ".join(f"{phase} {seconds * 1e3:.1f}" for phase, seconds in means.items())
    if device.type == "cuda":
        yield f"peak memory of the GPU: {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB"
        yield f"largest --train_batch that fits: {plan.largest_batch}"
    yield f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
    epoch_s = step_s * plan.steps_per_epoch
    yield f"projected: {duration(epoch_s)} an epoch, {duration(epoch_s * plan.epochs)} for {plan.epochs} epochs"
    wanted = max(1, math.ceil(WORKER_RESERVE * plan.sample_s * plan.batch_per_process / work_s))
    cores = len(os.sched_getaffinity(0)) // plan.processes
    yield (f"suggested --workers: {wanted} (one core reads a sample in {plan.sample_s * 1e3:.0f} ms, a step works "
           f"{work_s * 1e3:.0f} ms); now {plan.num_workers}")
    if wanted > cores:
        yield f"this machine has {cores} core(s) for each process: the data will be waited for"


def duration(seconds: float) -> str:
    """The time in the unit that suits it."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def largest_fitting(work: Callable[[int], object], start: int, limit: int = 1 << 14) -> int:
    """The largest size, up to `limit`, at which `work(size)` does not run out of the device's memory.

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
