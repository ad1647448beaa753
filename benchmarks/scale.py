"""What a training step costs with W processes: a model, and its answers for 8, 64 and 512 GPUs.

Work is counted from the code: operations and bytes of a step on meta tensors, messages of each collective. Rates are those
of a `Machine`: for CPU processes measured by `benchmarks.growth`, which also compares the model with measured steps; for
GPUs assumptions but for the speed of one, which was measured.
"""
from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.gpu import step_operations
from benchmarks.measure import print_table, run_benchmark
from benchmarks.objective import WIDTH, GatheredVideos
from benchmarks.step import CLIPS
from models.multilevel import MultiLevelModel

FRAME_BYTES, FRAMES, SAMPLE_MS = 22 * 1024, 32, 16.9  # of a sample, --augment_on device: see the input table
DISK_BYTES_S = 1e9  # of the one writer of checkpoints


class Machine(NamedTuple):
    """Rates of one process. `cores`: processes that compute at the same time; more share them."""

    compute_s_a_video: float  # forward and backward
    memory_bytes_s: float     # at which the objective's tensors are read and written
    link_bytes_s: float       # between neighbors of a ring
    hop_s: float              # latency of a message between neighbors
    control_hop_s: float      # the same in the CPU group of `sync_step_status`
    cores: float = math.inf
    overlap: bool = True      # gradients are averaged during the backward pass, two thirds of the computation


class BytesMoved(TorchDispatchMode):
    """Sums the bytes that operations read and write; views move none."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.total += sum(leaf.nbytes for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor))
        return result


@functools.cache
def objective_bytes(videos: int, all_videos: int, prototypes: int = 1000) -> int:
    """Returns the bytes that the objective reads and writes, forward and backward, for B local of N videos."""
    with torch.device("meta"):
        batch = GatheredVideos(videos, all_videos, prototypes, rank=0)
        with BytesMoved() as moved:
            batch.ours().backward()
    return moved.total


@functools.cache
def model_facts(net: str) -> tuple[int, int]:
    """Returns (trained parameters, batch norm layers) of the whole model."""
    with torch.device("meta"):
        model = MultiLevelModel(net)
    return (sum(p.numel() for p in model.parameters()),
            sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()))


def step_seconds(machine: Machine, net: str, videos: int, processes: int, prototypes: int = 1000,
                 sync_batch_norm: bool = True) -> dict[str, float]:
    """Returns the seconds of each part of a step; their sum is the step's."""
    parameters, norms = model_facts(net)
    shared, others = max(1.0, processes / machine.cores), processes - 1
    compute = machine.compute_s_a_video * videos * shared
    gradients = 2 * others / processes * (4 * parameters / machine.link_bytes_s) * shared + 2 * others * machine.hop_s
    row_bytes = 4 * CLIPS * (6 * WIDTH + prototypes)  # embeddings and scores of a video
    rounds = math.ceil(math.log2(processes))
    return {
        "forward and backward": compute,
        "objective": objective_bytes(videos, videos * processes, prototypes) / machine.memory_bytes_s * shared,
        "gathering embeddings and scores": others * (videos * row_bytes / machine.link_bytes_s * shared + 2 * machine.hop_s),
        "gradients, beyond the backward pass": max(0.0, gradients - 2 / 3 * compute * machine.overlap),
        # Forward: an all-gather in a ring; backward: an all-reduce in a tree.
        "SyncBatchNorm": norms * (others + 2 * rounds) * machine.hop_s * sync_batch_norm,
        "step status": rounds * machine.control_hop_s,
    }


def main(quick: bool, _: Path) -> None:
    rate, net, videos = 157e12, "r3d18", 64  # measured: docs/performance.md, "On a GPU"
    operations, (parameters, norms) = step_operations(net), model_facts(net)
    columns = {}
    for gpus in (8, 64, 512):
        link = 300e9 if gpus <= 8 else 40e9
        machine = Machine(operations / rate, 0.6 * 3.35e12, link, 2e-6, 50e-6)
        parts = step_seconds(machine, net, videos, gpus)
        step, checkpoint_s = sum(parts.values()), 12 * parameters / DISK_BYTES_S
        speed = videos * gpus / step
        column = {f"ms: {name}": f"{1000 * seconds:.1f}" for name, seconds in parts.items()}
        column |= {"ms a step": f"{1000 * step:.0f}", "videos a step (N)": f"{videos * gpus:,}",
                   "videos a second": f"{speed:,.0f}", "of linear": f"{machine.compute_s_a_video * speed / gpus:.0%}"}
        for name, size in (("Kinetics-400", 240_000), ("10 million videos", 10_000_000)):
            steps = size // (videos * gpus)
            epoch = steps * step + videos * SAMPLE_MS / 1000 + checkpoint_s  # first batch, checkpoint
            column |= {f"{name}: steps an epoch": f"{steps:,}", f"{name}: epochs a day": f"{86400 / epoch:,.0f}",
                       f"{name}: of an epoch for first batch and checkpoint": f"{1 - steps * step / epoch:.0%}"}
        column |= {"loader cores a GPU": f"{speed / gpus * SAMPLE_MS / 1000:.1f}",
                   "GB read a second, all": f"{speed * FRAMES * FRAME_BYTES / 1e9:.1f}",
                   "files opened a second, all": f"{speed * FRAMES:,.0f}"}
        columns[gpus] = column
    print_table(["GPUs", *columns], [[name, *(column[name] for column in columns.values())] for name in columns[8]])
    print(f"{net}, {videos} videos a GPU: {operations / 1e12:.2f} TFLOP a video, {parameters / 1e6:.1f} M parameters, "
          f"{norms} batch norms. Measured: {rate / 1e12:.0f} TFLOP/s. Assumptions: 2 TB/s for the objective, links of "
          "300 GB/s within 8 GPUs and 40 GB/s a GPU beyond, 2 µs a hop, 50 µs a hop between CPUs, checkpoints at 1 GB/s.")


if __name__ == "__main__":
    run_benchmark(main, __doc__)
