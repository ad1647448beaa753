"""Processes and what passes between them: the one place that knows of ranks.

Everything works without a process group too; there is then one process, of rank 0.
"""
from __future__ import annotations

import argparse
import datetime
import os
import sys
from dataclasses import dataclass
from typing import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from utils.errors import InputError, one_line


@dataclass(frozen=True)
class Process:
    """This training process among all of them, and the device it computes on."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes and reports."""
        return self.rank == 0


def launch(worker: Callable[[Process, argparse.Namespace], None], flags: argparse.Namespace) -> int:
    """Run `worker(process, flags)` in every process of this machine; returns the exit status.

    Under torchrun (its environment variables tell) this process is one of those that it started. Otherwise
    `--multiprocessing-distributed` starts one process for each GPU of `--gpu`, or `--nproc` CPU processes; without it
    there is one process here. `--world-size` machines, each started by hand with its `--rank`, meet at `--dist-url`.
    A process that fails takes the others down; its error is what is shown.
    """
    try:
        gpus = visible_gpus(flags.gpu)
    except InputError as error:
        return report(error)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return run_worker(int(os.environ["LOCAL_RANK"]), worker, flags, gpus, 1)
    if not flags.multiprocessing_distributed:
        return run_worker(0, worker, flags, gpus[:1], 1)

    processes = len(gpus) or flags.nproc
    if not gpus:
        print(f"no GPU here: --multiprocessing-distributed starts {processes} CPU process(es) over gloo", flush=True)
    elif flags.nproc > 1:
        return report(InputError(f"--nproc {flags.nproc}: counts CPU processes, but there are GPUs; choose them by --gpu"))
    try:
        mp.spawn(spawned, args=(worker, flags, gpus, processes), nprocs=processes)
    except mp.ProcessExitedException as error:
        if error.exit_code != 2:  # a mistake of the user's has told its line already
            print(f"train.py: error: process {error.error_index} of this machine ended: {error}", file=sys.stderr)
        return error.exit_code if error.exit_code > 0 else 1
    return 0


def visible_gpus(ids: str | None) -> list[int]:
    """GPUs to use here: those of `ids` ("0,1"), or all; none on a machine without. InputError for one that is absent."""
    present = torch.cuda.device_count()
    if ids is None or not present:
        if ids is not None:
            print(f"no GPU here: --gpu {ids} is not used", flush=True)
        return list(range(present))
    chosen = [int(part) for part in ids.split(",")]
    if max(chosen) >= present:
        raise InputError(f"--gpu {ids}: this machine has {present} GPU(s), numbered from 0")
    return chosen


def spawned(local_rank: int, *arguments: object) -> None:
    """Entry of a process that `launch` started."""
    status = run_worker(local_rank, *arguments)
    if status:
        sys.exit(status)


def run_worker(local_rank: int, worker: Callable[[Process, argparse.Namespace], None], flags: argparse.Namespace,
               gpus: list[int], processes_per_node: int) -> int:
    """Join the process group, where there is one, and work; a user's mistake is told in one line, status 2."""
    try:
        worker(join(local_rank, flags, gpus, processes_per_node), flags)
    except InputError as error:
        return report(error)  # without leaving the group in order: other processes may be waiting in it for ever
    except KeyboardInterrupt:
        print("train.py: interrupted; --resume goes on from the newest checkpoint", file=sys.stderr)
        return 130
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0


def report(error: InputError) -> int:
    """Tell a user's mistake in one line; returns the exit status 2."""
    print(f"train.py: error: {one_line(error)}", file=sys.stderr, flush=True)
    return 2


def join(local_rank: int, flags: argparse.Namespace, gpus: list[int], processes_per_node: int) -> Process:
    """This process, a member of the process group where more than one was asked for."""
    if gpus and local_rank >= len(gpus):
        raise InputError(f"local rank {local_rank}: only {len(gpus)} GPU(s) to use here; start fewer processes")
    device = torch.device("cuda", gpus[local_rank]) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if not (torchrun or flags.multiprocessing_distributed or flags.num_nodes > 1):
        return Process(0, 1, device)
    if not gpus:
        share = max(1, (os.cpu_count() or 1) // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", processes_per_node))))
        torch.set_num_threads(min(torch.get_num_threads(), share))
    where = {"init_method": "env://"} if torchrun else {
        "init_method": flags.dist_url, "world_size": flags.num_nodes * processes_per_node,
        "rank": flags.node_rank * processes_per_node + local_rank}
    try:
        dist.init_process_group(flags.dist_backend if gpus else "gloo",
                                timeout=datetime.timedelta(seconds=flags.dist_timeout), **where)
    except (dist.DistError, ValueError) as error:
        place = "torchrun" if torchrun else f"--dist-url {flags.dist_url}"
        raise InputError(f"{place}: no process group: {str(error).splitlines()[0]}") from error
    return Process(dist.get_rank(), dist.get_world_size(), device)


class Gather(torch.autograd.Function):
    """All ranks' rows in rank order, with gradient to the local rows: from this rank's loss alone, or from all."""

    @staticmethod
    def forward(ctx, rows: Tensor, all_gradients: bool) -> Tensor:
        ctx.all_gradients, ctx.num_rows = all_gradients, len(rows)
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        if ctx.all_gradients:
            gradient = gradient.contiguous()
            dist.all_reduce(gradient)
        start = dist.get_rank() * ctx.num_rows
        return gradient[start:start + ctx.num_rows], None


def gather_rows(rows: Tensor, all_gradients: bool = False) -> Tensor:
    """[B, ...] of each rank -> [N, ...], every rank's rows in rank order; B must be the same on all.

    Gradient flows to the local rows. By default it is that of this rank's loss, as in the reference: a row that other
    ranks use as a candidate hears nothing of their losses. With `all_gradients` it is summed over all ranks' losses, so
    that the mean of parameter gradients over ranks is the gradient of one process with all rows.
    """
    return Gather.apply(rows, all_gradients) if world_size() > 1 else rows


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def average(values: Tensor) -> Tensor:
    """`values`, averaged over all processes."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values / world_size()


def gather_objects(item: object) -> list:
    """Every rank's `item` in rank order, on every rank. For small objects."""
    if world_size() == 1:
        return [item]
    items = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


def wait_for_all() -> None:
    """Return once every process is here."""
    if world_size() > 1:
        dist.barrier()
