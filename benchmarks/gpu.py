"""A training step on one GPU: precision, memory format, choice of kernels, compilation; and where its time goes.

Videos of two clips and the overview, 16 frames at 112 px, already in the GPU's memory. A step is forward, objective,
backward and Adam as in train.py, without its checks and its log; "tried kernels" is cuDNN's benchmark mode, which train.py
does not enable; the official algorithm loops over the anchors. 64 videos per step, halved until they fit. Operations are
those of convolutions and matrix products, forward and backward; the card's peak rate is that of a large matrix product.
"""
from __future__ import annotations

import contextlib
import functools
import gc
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import device_clock, milliseconds, print_row, print_table, ratio, run_benchmark, time_in_turns
from benchmarks.objective import stack_embeddings
from benchmarks.step import CLIP_FRAMES, CLIPS, IMG_DIM, BenchmarkStep
from models.levels import LEVELS
from models.multilevel import BACKBONES, ModelOutput, MultiLevelModel
from models.numerics import SafeConv3d
from models.objective import Loss, Objective
from tests import loop_objective

PRODUCT = 8192  # side of the matrices with which the card's rate is measured


class GpuMode(NamedTuple):
    """How a step is computed. `mode`: one of STEP_MODES; `tf32`: in convolutions, torch's default."""

    name: str
    mode: str
    tf32: bool = True
    channels_last: bool = False
    tried_kernels: bool = False  # cuDNN tries its kernels and keeps the fastest
    compiled: bool = False
    loops: bool = False  # the objective's loop over anchors
    folded_stem: bool = True  # in bf16; see models.numerics.SafeConv3d


OFFICIAL = GpuMode("float32, loop over anchors, as the official code", "float32", loops=True)
PUBLISHED = GpuMode("float32", "float32")  # with the published flags
BFLOAT16 = GpuMode("bf16, channels last", "bf16", channels_last=True)  # --amp bf16 --channels_last
PLAIN_STEM = BFLOAT16._replace(name="bf16, channels last, stem not folded", folded_stem=False)
GPU_MODES = (
    OFFICIAL,
    PUBLISHED,
    GpuMode("float32, no TF32", "float32", tf32=False),
    GpuMode("bf16", "bf16"),
    PLAIN_STEM,
    BFLOAT16,
    BFLOAT16._replace(name=f"{BFLOAT16.name}, tried kernels", tried_kernels=True),
    BFLOAT16._replace(name=f"{BFLOAT16.name}, checkpointing", mode="both"),
    BFLOAT16._replace(name=f"{BFLOAT16.name}, compiled", compiled=True),
)
SHORT_MODES = (PUBLISHED, PLAIN_STEM, BFLOAT16)


@contextlib.contextmanager
def prepare_step(mode: GpuMode, net: str, videos: int, device: str, img_dim: int) -> Iterator[Callable[[], None]]:
    """Gives a function that runs a step of a new model in `mode`, after the memory of earlier ones is released."""
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step = BenchmarkStep(net, videos, device, mode.channels_last, img_dim=img_dim)
    if mode.compiled:
        step.train_model = torch.compile(step.model)
    if mode.loops:
        step.objective = loop_over_anchors
    plain_stem = contextlib.nullcontext() if mode.folded_stem else mock.patch.object(
        SafeConv3d, "folded", lambda conv, x, _: nn.Conv3d.forward(conv, x))
    with plain_stem, torch.backends.cudnn.flags(enabled=True, benchmark=mode.tried_kernels, deterministic=False,
                                                allow_tf32=mode.tf32):
        yield lambda: step.run(mode.mode)


def loop_over_anchors(output: ModelOutput, *_: object) -> Loss:
    """Returns the total of the official algorithm with an empty queue, in the place of an Objective."""
    names = [f"{kind}_{level}" for kind in ("instance", "graph") for level in LEVELS]
    gathered = dict(zip(names, stack_embeddings(output).unbind(1)), scores=output.scores)
    return Loss(loop_objective.objective(output, gathered, output.scores.detach()[:0], 0, threshold=0.05), {}, {})


def time_step(mode: GpuMode, net: str, videos: int, device: str = "cuda", turns: int = 5,
              img_dim: int = IMG_DIM) -> tuple[list[float], float]:
    """Returns (seconds of a step in each turn, GiB at the peak); torch.OutOfMemoryError where it does not fit."""
    steps = 2  # per turn
    with prepare_step(mode, net, videos, device, img_dim) as run_step:
        seconds = time_in_turns({"step": lambda: [run_step() for _ in range(steps)]}, turns, device_clock, steps)["step"]
    return seconds, torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0


def kernel_times(mode: GpuMode, net: str, videos: int, device: str = "cuda",
                 img_dim: int = IMG_DIM) -> list[tuple[str, float]]:
    """Returns (kernel, seconds of a step in it), the longest first."""
    with prepare_step(mode, net, videos, device, img_dim) as run_step:
        run_step()
        run_step()
        device_clock()
        with profile(activities=[ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU]) as found:
            run_step()
            device_clock()
    spent: Counter[str] = Counter()
    for event in found.key_averages():
        spent[event.key] += event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
    return [(name, microseconds / 1e6) for name, microseconds in spent.most_common()]


@functools.cache
def step_operations(net: str, img_dim: int = IMG_DIM) -> int:
    """Returns the floating-point operations of a step per video, counted on meta tensors."""
    videos = 2  # a contrast needs another one
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        views = torch.empty(videos, CLIPS + 1, 3, CLIP_FRAMES, img_dim, img_dim)
        Objective(graph_start_epoch=0)(MultiLevelModel(net)(views), 0, lambda rows: rows, 0).total.backward()
    return counter.get_total_flops() // videos


def card_rate() -> float:
    """Returns the operations per second of a large product of bfloat16 matrices."""
    a, b = (torch.randn(PRODUCT, PRODUCT, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * PRODUCT**3 / statistics.median(time_in_turns({"product": lambda: a @ b}, 10, device_clock)["product"])


def time_largest(mode: GpuMode, net: str, quick: bool) -> tuple[list[float], float, int]:
    """Returns (seconds of a step in each turn, GiB at the peak, videos): 64 videos, halved until they fit."""
    videos = 64
    while True:
        try:
            return *time_step(mode, net, videos, turns=2 if quick or mode.loops or not mode.tf32 else 4), videos
        except torch.OutOfMemoryError:
            if videos == 1:
                raise
        videos //= 2  # outside the handler, whose traceback holds the tensors


def main(quick: bool, _: Path) -> None:
    if not torch.cuda.is_available():
        sys.exit("benchmarks.gpu: there is no GPU here")
    nets = sorted({*BACKBONES} - {"resnet18"}, key=lambda net: (net != "r3d18", net.endswith("_time_pool")))
    nets = nets[:1] if quick else nets
    jobs = [(net, mode) for net in nets for mode in (GPU_MODES if net == "r3d18" and not quick else SHORT_MODES)]
    rate, fits = card_rate(), {}
    baseline: dict[str, list[float]] = {}  # net -> seconds a video
    print_row(["`--net`", "mode", "videos", "ms a step", "videos/s", "speed", "peak GiB", "TFLOP/s", "of the card's rate"],
              is_header=True)
    for net, mode in sorted(jobs, key=lambda job: job[1].compiled):  # the slowest to start last
        try:
            seconds, gib, videos = time_largest(mode, net, quick)
        except RuntimeError as error:  # the other rows are wanted all the same
            print_row([net, mode.name, "failed", str(error).strip().split("\n")[0][:90], *[""] * 5])
            continue
        fits[net, mode] = videos
        per_video = [second / videos for second in seconds]
        speed = step_operations(net) / statistics.median(per_video)
        against = baseline.setdefault(net, per_video)
        print_row([net, mode.name, videos, milliseconds(seconds), f"{1 / statistics.median(per_video):.0f}",
                   f"{ratio(against, per_video):.2f}x", f"{gib:.1f}", f"{speed / 1e12:.0f}", f"{speed / rate:.0%}"])
    print(f"\nThe card's rate is that of a product of two {PRODUCT} x {PRODUCT} matrices in bfloat16, "
          f"{rate / 1e12:.0f} TFLOP/s.\n")
    mode = next(mode for mode in reversed(SHORT_MODES) if ("r3d18", mode) in fits)
    times = kernel_times(mode, "r3d18", fits["r3d18", mode])
    total = sum(seconds for _, seconds in times)
    print_table([f"kernel, r3d18, {mode.name}", "ms", "of the time"],
                [[f"`{name[:90]}`", milliseconds([seconds]), f"{seconds / total:.1%}"] for name, seconds in times[:15]])
    print(f"All kernels of this step: {milliseconds([total])} ms.")


if __name__ == "__main__":
    run_benchmark(main, __doc__)
