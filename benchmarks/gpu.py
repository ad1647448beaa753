"""A training step on one GPU: precision, memory format, choice of kernels, compilation.

Videos of two clips and the overview, 16 frames at 112 px, already in the GPU's memory. A step is forward, objective,
backward and Adam as in train.py, without its checks and its log; "tried kernels" is cuDNN's benchmark mode, which train.py
does not enable. 64 videos per step, halved until they fit.
"""
from __future__ import annotations

import gc
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.measure import device_clock, milliseconds, print_table, ratio, run_benchmark, time_in_turns
from benchmarks.step import IMG_DIM, BenchmarkStep
from models.multilevel import BACKBONES


class GpuMode(NamedTuple):
    """How a step is computed. `mode`: one of STEP_MODES; `tf32`: in convolutions, torch's default."""

    name: str
    mode: str
    tf32: bool = True
    channels_last: bool = False
    tried_kernels: bool = False  # cuDNN tries its kernels and keeps the fastest
    compiled: bool = False


PUBLISHED = GpuMode("float32, as published", "float32")
BFLOAT16 = GpuMode("bf16, channels last", "bf16", channels_last=True)  # --amp bf16 --channels_last
BEST_EAGER = GpuMode("bf16, channels last, tried kernels", "bf16", channels_last=True, tried_kernels=True)
GPU_MODES = (
    PUBLISHED,
    GpuMode("float32, no TF32", "float32", tf32=False),
    GpuMode("float32, tried kernels", "float32", tried_kernels=True),
    GpuMode("bf16", "bf16"),
    BFLOAT16,
    BEST_EAGER,
    BEST_EAGER._replace(name=f"{BEST_EAGER.name}, checkpointing", mode="both"),
    BEST_EAGER._replace(name=f"{BEST_EAGER.name}, compiled", compiled=True),
)


def time_step(mode: GpuMode, net: str, videos: int, device: str = "cuda", turns: int = 5,
              img_dim: int = IMG_DIM) -> tuple[list[float], float]:
    """Returns (seconds of a step in each turn, GiB at the peak); torch.OutOfMemoryError where it does not fit."""
    steps = 3  # per turn
    gc.collect()
    torch._dynamo.reset()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step = BenchmarkStep(net, videos, device, mode.channels_last, img_dim=img_dim)
    if mode.compiled:
        step.train_model = torch.compile(step.model)
    with torch.backends.cudnn.flags(enabled=True, benchmark=mode.tried_kernels, deterministic=False, allow_tf32=mode.tf32):
        seconds = time_in_turns({"step": lambda: [step.run(mode.mode) for _ in range(steps)]}, turns, device_clock, steps)
    return seconds["step"], torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0


def main(quick: bool, _: Path) -> None:
    if not torch.cuda.is_available():
        sys.exit("benchmarks.gpu: there is no GPU here")
    rows = []
    for net in ["r3d18"] if quick else ["r3d18", *(net for net in BACKBONES if net not in ("resnet18", "r3d18"))]:
        baseline: list[float] = []  # seconds per video
        for mode in GPU_MODES if net == "r3d18" and not quick else (PUBLISHED, BFLOAT16, BEST_EAGER):
            videos = 64
            while True:
                try:
                    seconds, gib = time_step(mode, net, videos, turns=2 if quick else 5)
                    break
                except torch.OutOfMemoryError:
                    if videos == 1:
                        raise
                    videos //= 2
            per_video = [second / videos for second in seconds]
            baseline = baseline or per_video
            rows.append([net, mode.name, videos, milliseconds(seconds), f"{1 / statistics.median(per_video):.0f}",
                         f"{ratio(baseline, per_video):.2f}x", f"{gib:.1f}"])
    print_table(["`--net`", "mode", "videos", "ms a step", "videos/s", "speed", "peak GiB"], rows)


if __name__ == "__main__":
    run_benchmark(main, __doc__)
