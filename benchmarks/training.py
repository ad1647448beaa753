"""Training steps on videos that DataLoader workers read and augment, against the same steps on a batch in memory.

    python -m benchmarks.training [--quick]

On the CPU r3d10 with 2 videos per step and one worker; on a GPU, if there is one, r3d18 in bfloat16 with 64 videos and one
worker per core. 16 frames at 112 px from JPEGs of 340x256. A step is forward, objective, backward and Adam as in train.py.
Wall-clock time, as workers run beside the steps; batches prefetched before a turn are used up before its clock starts.
"""
from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import numpy as np
import torch

from benchmarks.input import IMG_DIM, MAX_STRIDE, NUM_FRAMES, write_video
from benchmarks.measure import device_clock, format_table, milliseconds, quick_flag, ratio
from benchmarks.step import CLIP_FRAMES, CLIPS, BenchmarkStep
from dataset.records import VideoRecord
from dataset.videos import (EpochBatchSampler, PretrainBatch, PretrainVideos, build_loader, collate_pretraining,
                            prepare_views)


def main() -> None:
    quick = quick_flag(__doc__)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    net, videos, steps, workers = ("r3d18", 64, 20, os.cpu_count() or 1) if on_gpu else ("r3d10", 2, 2 if quick else 6, 1)
    step = BenchmarkStep(net, videos, device.type, channels_last=on_gpu)
    turns, prefetched = 1 if quick else 3, 2 * workers  # torch's default of two batches per worker

    def run(batches: Iterator[PretrainBatch], mode: str, num_steps: int = steps) -> float:
        """Returns the seconds of a step, after `num_steps` of them."""
        begin = device_clock()
        for _ in range(num_steps):
            step.views = prepare_views(next(batches), device, channels_last=on_gpu)
            step.run(mode)
        return (device_clock() - begin) / num_steps

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = write_video(Path(folder) / "video", (340, 256), 0)
        records = [VideoRecord(path, NUM_FRAMES)] * (videos * (turns + 1) * (prefetched + steps))
        for where, half, mode in [("cpu", False, "bf16"), ("device", True, "bf16")] if on_gpu else [
                ("cpu", False, "float32"), ("cpu", False, "bf16"), ("cpu", True, "bf16")]:
            sampler = EpochBatchSampler(len(records), videos, 0, 1, 0)
            dataset = PretrainVideos(records, CLIPS, CLIP_FRAMES, MAX_STRIDE, IMG_DIM, 0, where == "device", half)
            loaded = iter(build_loader(dataset, sampler, workers, device, collate_pretraining))
            kept = collate_pretraining([dataset[0, index] for index in range(videos)])
            kept = repeat(kept._replace(clips=kept.clips.pin_memory() if on_gpu else kept.clips))
            in_memory, read = [], []  # seconds of a step in each turn
            for _ in range(turns + 1):
                in_memory.append(run(kept, mode))
                run(loaded, mode, prefetched)
                read.append(run(loaded, mode))
            in_memory, read = in_memory[1:], read[1:]  # the first turn warms up
            flags = f"{'--channels_last ' if on_gpu else ''}--augment_on {where} --decode {'half' if half else 'full'}"
            rows.append([f"--amp {'bf16' if mode == 'bf16' else 'off'} {flags}", milliseconds(in_memory), milliseconds(read),
                         f"{videos / np.median(read):.2f}", f"{ratio(in_memory, read):.0%}"])
    print(format_table([f"{net}, {videos} videos per step", "ms a step, in memory", "ms a step, read", "videos/s, read",
                        "of the speed in memory"], rows))
    print(f"\n{steps} steps per turn, {workers} DataLoader worker(s).")


if __name__ == "__main__":
    main()
