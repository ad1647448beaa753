"""Training steps on videos that loader processes read and augment, against the same steps on a batch in memory.

    python -m benchmarks.training [--quick]

On the CPU r3d10 with 2 videos a step and one loader process; on a GPU, if there is one, r3d18 in bfloat16 with 64
videos and a loader process for each core. 16 frames at 112 px from JPEGs of 340x256. A step is forward, objective,
backward and Adam as in train.py. The wall clock counts, as loaders run beside the steps; what they have read before is
used up first.
"""
from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.input import IMG_DIM, MAX_STRIDE, NUM_FRAMES, write_video
from benchmarks.measure import device_clock, milliseconds, quick_flag, ratio, table
from benchmarks.step import CLIP_FRAMES, CLIPS, Step
from dataset.records import VideoRecord
from dataset.videos import (EpochBatchSampler, PretrainBatch, PretrainVideos, build_loader, collate_pretraining,
                            prepare_views)


def take(step: Step, batch: PretrainBatch, way: str) -> None:
    """A batch's way in train.py: to the device, color where that was left to the device, one step."""
    device = step.views.device
    step.views = prepare_views(batch, device, channels_last=device.type == "cuda")
    step.take(way)


def main() -> None:
    quick = quick_flag(__doc__)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    net, videos, steps, workers = ("r3d18", 64, 20, os.cpu_count() or 1) if on_gpu else ("r3d10", 2, 2 if quick else 6, 1)
    step = Step(net, videos, device.type)
    if on_gpu:
        step.use_channels_last()
    turns, ahead = 1 if quick else 3, 2 * workers  # batches that torch's loader reads ahead
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = write_video(Path(folder) / "video", (340, 256), 0)
        records = [VideoRecord(path, NUM_FRAMES)] * (videos * (turns + 1) * (ahead + steps))
        for where, half, way in [("cpu", False, "bf16"), ("device", True, "bf16")] if on_gpu else [
                ("cpu", False, "float32"), ("cpu", False, "bf16"), ("cpu", True, "bf16")]:
            batches = EpochBatchSampler(len(records), videos, 0, 1, 0)
            dataset = PretrainVideos(records, CLIPS, CLIP_FRAMES, MAX_STRIDE, IMG_DIM, 0, where == "device", half)
            loader = build_loader(dataset, batches, workers, device, collate_pretraining)
            kept = collate_pretraining([dataset[0, index] for index in range(videos)])
            kept = kept._replace(clips=kept.clips.pin_memory() if on_gpu else kept.clips)

            in_memory, read = [], []  # seconds of a step
            batches_read = iter(loader)
            for turn in range(turns + 1):
                begin = device_clock()
                for _ in range(steps):
                    take(step, kept, way)
                end = device_clock()
                for _ in range(ahead):
                    take(step, next(batches_read), way)
                begin_reading = device_clock()
                for _ in range(steps):
                    take(step, next(batches_read), way)
                if turn:  # the first one warms up
                    in_memory.append((end - begin) / steps)
                    read.append((device_clock() - begin_reading) / steps)
            flags = f"{'--channels_last ' if on_gpu else ''}--augment_on {where} --decode {'half' if half else 'full'}"
            rows.append([f"--amp {'bf16' if way == 'bf16' else 'off'} {flags}", milliseconds(in_memory), milliseconds(read),
                         f"{videos / np.median(read):.2f}", f"{ratio(in_memory, read):.0%}"])
    print(table([f"{net}, {videos} videos a step", "ms a step, in memory", "ms a step, read", "videos/s, read",
                 "of the speed in memory"], rows))
    print(f"\n{steps} steps a turn, {workers} loader process(es).")


if __name__ == "__main__":
    main()
