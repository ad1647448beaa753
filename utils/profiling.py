"""`train.py --dry_run N`: time real steps, and tell what they say of the whole run."""
from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from utils.distributed import wait_for_all
from utils.errors import STOPPED

WORKER_RESERVE = 1.25  # workers to spare, as videos differ
SAMPLES_TIMED = 8  # to tell how many loader processes are needed


def dry_run(run: Any, train_some: Callable[[], bool]) -> int:
    """Exit status of a run that does its steps, tells their figures, and leaves nothing behind.

    `run` is train.py's. `train_some()` trains until the phases' clock has enough steps or the epoch ends, and returns
    whether it was asked to stop.
    """
    flags, context = run.flags, run.context
    run.phases.begin()
    while not run.phases.enough:
        run.batches.set_epoch(run.progress.epoch, 0)
        run.progress.step = 0
        if train_some():
            return STOPPED

    dataset, begin = run.loader.dataset, time.perf_counter()
    for index in range(SAMPLES_TIMED):
        dataset[run.progress.epoch, index % len(dataset)]
    sample_s = (time.perf_counter() - begin) / SAMPLES_TIMED

    alone_on_gpu = context.device.type == "cuda" and context.world_size == 1
    largest = largest_fitting(partial(step_on_blank_videos, run), flags.batch_per_gpu) if alone_on_gpu else None
    here = int(os.environ.get("LOCAL_WORLD_SIZE", context.world_size // flags.num_nodes))
    plan = Plan(flags.batch_per_gpu, context.world_size, here, run.batches.steps_per_epoch, flags.epochs, flags.num_workers,
                sample_s, largest)
    for line in describe(run.phases.means(), plan, context.device):
        run.log.say(line)
    wait_for_all()
    return 0


class Plan(NamedTuple):
    """What a dry run's figures are related to."""

    batch_per_process: int
    processes: int
    processes_here: int            # on this machine
    steps_per_epoch: int
    epochs: int
    num_workers: int
    sample_s: float                # time that one core needs for one sample
    largest_batch: int | None      # that fits into the GPU's memory; None where it was not looked for


def describe(means: dict[str, float], plan: Plan, device: torch.device) -> Iterator[str]:
    """The lines that a dry run tells."""
    step_s = sum(means.values())
    work_s = step_s - means["data"]
    videos = plan.batch_per_process * plan.processes
    yield (f"{videos / step_s:.1f} videos/s ({videos / work_s:.1f} without waiting for data), {step_s * 1e3:.0f} ms a step "
           f"of {videos}")
    yield f"waiting for data: {means['data'] / step_s:.0%} of the time"
    yield "ms a step: " + ", ".join(f"{phase} {seconds * 1e3:.1f}" for phase, seconds in means.items())
    if device.type == "cuda":
        yield f"peak memory of the GPU: {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB"
        yield f"largest --train_batch that fits: {plan.largest_batch or 'not looked for; start one process to learn it'}"
    yield f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
    epoch_s = step_s * plan.steps_per_epoch
    yield f"projected: {duration(epoch_s)} an epoch, {duration(epoch_s * plan.epochs)} for {plan.epochs} epochs"
    wanted = max(1, math.ceil(WORKER_RESERVE * plan.sample_s * plan.batch_per_process / work_s))
    cores = len(os.sched_getaffinity(0)) // plan.processes_here
    yield (f"suggested --workers: {wanted} (one core reads a sample in {plan.sample_s * 1e3:.0f} ms, a step works "
           f"{work_s * 1e3:.0f} ms); now {plan.num_workers}")
    if wanted > cores:
        yield f"this machine has {cores} core(s) for each process: the data will be waited for"


def step_on_blank_videos(run: Any, num_videos: int) -> None:
    """Forward and backward pass on so many videos, for the memory that takes."""
    flags, device = run.flags, run.context.device
    views = torch.zeros(num_videos, flags.num_clips + 1, 3, flags.clip_frames, flags.img_dim, flags.img_dim, device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=flags.amp == "bf16"):
        output = run.model(views, with_graph=run.objective.uses_graph(run.progress.epoch))
    run.objective(output, run.progress.epoch, lambda rows: rows, 0).total.backward()


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
