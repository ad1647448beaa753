"""A training step on one GPU: precision, memory format, choice of kernels, compilation; and where its time goes.

    python -m benchmarks.gpu [--quick]

Videos of two clips and the overview, 16 frames at 112 px, already in the GPU's memory. A step is forward, objective,
backward and Adam as in train.py, without its checks and its log; "tried kernels" is a mode of cuDNN that train.py does
not switch on. 64 videos a step, halved until they fit. Operations are those of convolutions and matrix products, forward
and backward; the card's rate is measured beside, as that of a large product.
"""
from __future__ import annotations

import functools
import gc
import statistics
import sys
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import device_clock, milliseconds, quick_flag, ratio, table, time_in_turns
from benchmarks.step import CLIP_FRAMES, CLIPS, IMG_DIM, Step
from models.multilevel import BACKBONES, MultiLevelModel
from models.objective import Objective

VIDEOS, STEPS = 64, 3  # steps in a turn
PRODUCT = 8192         # side of the matrices by which the card's rate is measured


@dataclass(frozen=True)
class Mode:
    """How a step is computed. `way`: one of `benchmarks.step.WAYS`; `tf32`: in convolutions, as torch's default."""

    name: str
    way: str
    tf32: bool = True
    channels_last: bool = False
    tried_kernels: bool = False  # cuDNN tries its kernels and keeps the fastest
    compiled: bool = False

    def switched_on(self) -> AbstractContextManager:
        """The switches of cuDNN that belong to it."""
        return torch.backends.cudnn.flags(enabled=True, benchmark=self.tried_kernels, deterministic=False,
                                          allow_tf32=self.tf32)

    def prepare(self, net: str, videos: int, device: str, img_dim: int) -> Step:
        """A new model in this mode."""
        step = Step(net, videos, device, img_dim)
        if self.channels_last:
            step.use_channels_last()
        if self.compiled:
            step.train_model = torch.compile(step.model)
        return step


PUBLISHED = Mode("float32, as published", "float32")
BFLOAT16 = Mode("bf16, channels last", "bf16", channels_last=True)  # --amp bf16 --channels_last
BEST_EAGER = Mode("bf16, channels last, tried kernels", "bf16", channels_last=True, tried_kernels=True)
MODES = (
    PUBLISHED,
    Mode("float32, no TF32", "float32", tf32=False),
    Mode("float32, tried kernels", "float32", tried_kernels=True),
    Mode("bf16", "bf16"),
    BFLOAT16,
    BEST_EAGER,
    Mode("bf16, channels last, tried kernels, checkpointing", "both", channels_last=True, tried_kernels=True),
    Mode("bf16, channels last, tried kernels, compiled", "bf16", channels_last=True, tried_kernels=True, compiled=True),
)


def release() -> None:
    """Give back the memory of what is no longer used."""
    gc.collect()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


@functools.cache
def operations(net: str, img_dim: int = IMG_DIM) -> int:
    """Floating-point operations of a step on one video, counted on tensors without values."""
    videos = 2  # a contrast needs another one
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        views = torch.empty(videos, CLIPS + 1, 3, CLIP_FRAMES, img_dim, img_dim)
        Objective(graph_start_epoch=0)(MultiLevelModel(net)(views), 0, lambda rows: rows, 0).total.backward()
    return counter.get_total_flops() // videos


def card_rate(device: str, side: int = PRODUCT) -> float:
    """Operations a second of a large product of bfloat16 matrices."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = time_in_turns({"product": lambda: a @ b}, 10, device_clock)["product"]
    return 2 * side**3 / statistics.median(seconds)


def time_step(mode: Mode, net: str, videos: int, device: str, turns: int,
              img_dim: int = IMG_DIM) -> tuple[list[float], float]:
    """(seconds of a step in each turn, GiB at the peak); torch.OutOfMemoryError where it does not fit."""
    release()
    step = mode.prepare(net, videos, device, img_dim)
    with mode.switched_on():
        seconds = time_in_turns({"step": lambda: [step.take(mode.way) for _ in range(STEPS)]}, turns, device_clock)["step"]
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
    return [second / STEPS for second in seconds], peak


def fitting(mode: Mode, net: str, device: str, turns: int) -> tuple[int, list[float], float]:
    """(videos, seconds, GiB) of the largest of 64, 32, ... videos that fits."""
    videos = VIDEOS
    while True:
        try:
            return videos, *time_step(mode, net, videos, device, turns)
        except torch.OutOfMemoryError:
            if videos == 1:
                raise
            videos //= 2


def kernel_shares(mode: Mode, net: str, videos: int, device: str, img_dim: int = IMG_DIM) -> list[tuple[str, float]]:
    """(kernel, share of the time of all kernels) of a step, the longest first."""
    release()
    step = mode.prepare(net, videos, device, img_dim)
    with mode.switched_on():
        for _ in range(2):
            step.take(mode.way)
        on_gpu = device == "cuda"
        with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
            step.take(mode.way)
            device_clock()
    spent: Counter[str] = Counter()
    for event in found.key_averages():
        spent[event.key] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
    total = sum(spent.values())
    return [(name, time / total) for name, time in spent.most_common()]


def row(mode: Mode, net: str, videos: int, seconds: list[float], gib: float, baseline: list[float],
        rate: float) -> list[str]:
    """A line of a table; `baseline` is per video, `rate` the card's operations a second."""
    videos_s = videos / statistics.median(seconds)
    speed = videos_s * operations(net)
    return [net, mode.name, str(videos), milliseconds(seconds), f"{videos_s:.0f}",
            f"{ratio(baseline, [second / videos for second in seconds]):.2f}x", f"{gib:.1f}", f"{speed / 1e12:.0f}",
            f"{speed / rate:.0%}"]


def main() -> None:
    quick = quick_flag(__doc__)
    if not torch.cuda.is_available():
        sys.exit("benchmarks.gpu: there is no GPU here")
    turns = 2 if quick else 5
    rate = card_rate("cuda")
    rows, fits = [], {}
    for net in ["r3d18"] if quick else ["r3d18", *(net for net in BACKBONES if net not in ("resnet18", "r3d18"))]:
        baseline: list[float] = []
        for mode in MODES if net == "r3d18" and not quick else (PUBLISHED, BFLOAT16, BEST_EAGER):
            videos, seconds, gib = fitting(mode, net, "cuda", turns)
            fits[net, mode] = videos
            baseline = baseline or [second / videos for second in seconds]
            rows.append(row(mode, net, videos, seconds, gib, baseline, rate))
    print(table(["`--net`", "mode", "videos", "ms a step", "videos/s", "speed", "peak GiB", "TFLOP/s",
                 "of the card's rate"], rows))
    print(f"\nThe card's rate is that of a product of two {PRODUCT} x {PRODUCT} matrices in bfloat16, "
          f"{rate / 1e12:.0f} TFLOP/s.\n")
    shares = kernel_shares(BEST_EAGER, "r3d18", fits["r3d18", BEST_EAGER], "cuda")
    print(table([f"kernel, r3d18, {BEST_EAGER.name}", "of the time"],
                [[f"`{name[:90]}`", f"{share:.1%}"] for name, share in shares[:15]]))


if __name__ == "__main__":
    main()
