"""Training steps on videos that DataLoader workers read and augment, against the same steps on a batch in memory.

On the CPU r3d10 with 2 videos per step and one worker; on a GPU, if there is one, r3d18 in bfloat16 with 64 videos and one
worker per core. 16 frames at 112 px from JPEGs of 340x256. A step is forward, objective, backward and Adam as in train.py.
Wall-clock time, as workers run beside the steps; batches prefetched before a turn are used up before its clock starts. On a
GPU also the time that nvJPEG takes to decode the frames of a step.
"""
from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torchvision.io import decode_jpeg, read_file

from benchmarks.input import IMG_DIM, MAX_STRIDE, NUM_FRAMES
from benchmarks.measure import device_clock, milliseconds, print_table, ratio, run_benchmark, time_in_turns
from benchmarks.step import CLIP_FRAMES, CLIPS, BenchmarkStep
from benchmarks.videos import video_frames, write_frame_folder
from dataset.records import VideoRecord
from dataset.videos import (EpochBatchSampler, PretrainBatch, PretrainVideos, build_loader, collate_pretraining,
                            prepare_views)


def main(quick: bool, folder: Path) -> None:
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    net, videos, steps, workers = ("r3d18", 64, 10, os.cpu_count() or 1) if on_gpu else ("r3d10", 2, 2 if quick else 6, 1)
    step = BenchmarkStep(net, videos, device.type, channels_last=on_gpu)
    turns, prefetched = 1 if quick else 3, 2 * workers  # torch's default of two batches per worker

    def run(batches: Iterator[PretrainBatch], amp: str, num_steps: int) -> None:
        for batch in itertools.islice(batches, num_steps):
            step.views = prepare_views(batch, device, channels_last=on_gpu)
            step.run("float32" if amp == "off" else amp)

    rows = []
    path = write_frame_folder(folder / "video", video_frames(NUM_FRAMES))
    records = [VideoRecord(path, NUM_FRAMES)] * (videos * (turns + 1) * (prefetched + steps))
    for where, decode, amp in [("cpu", "full", "bf16"), ("device", "half", "bf16")] if on_gpu else [
            ("cpu", "full", "off"), ("cpu", "full", "bf16"), ("cpu", "half", "bf16")]:
        sampler = EpochBatchSampler(len(records), videos, 0, 1, 0)
        dataset = PretrainVideos(records, CLIPS, CLIP_FRAMES, MAX_STRIDE, IMG_DIM, 0, where == "device", decode == "half")
        loaded = iter(build_loader(dataset, sampler, workers, device, collate_pretraining))
        kept = collate_pretraining([dataset[0, index] for index in range(videos)])
        kept = itertools.repeat(kept._replace(clips=kept.clips.pin_memory() if on_gpu else kept.clips))
        seconds = time_in_turns({"in memory": lambda: run(kept, amp, steps),
                                 "prefetched": lambda: run(loaded, amp, prefetched),
                                 "read": lambda: run(loaded, amp, steps)}, turns, device_clock, steps)
        channels_last = " --channels_last" if on_gpu else ""
        rows.append([f"--amp {amp}{channels_last} --augment_on {where} --decode {decode}",
                     milliseconds(seconds["in memory"]), milliseconds(seconds["read"]),
                     f"{videos / np.median(seconds['read']):.2f}", f"{ratio(seconds['in memory'], seconds['read']):.0%}"])
    print_table([f"{net}, {videos} videos per step", "ms a step, in memory", "ms a step, read", "videos/s, read",
                 "of the speed in memory"], rows)
    print(f"{steps} steps per turn, {workers} DataLoader worker(s).")
    if on_gpu:
        encoded = [read_file(str(frame)) for frame in sorted(Path(path).iterdir())[:NUM_FRAMES]] * videos
        [seconds] = time_in_turns({"nvJPEG": lambda: decode_jpeg(encoded, device=device)}, turns, device_clock).values()
        print(f"nvJPEG decodes the {len(encoded)} frames of a step in {milliseconds(seconds)} ms.")


if __name__ == "__main__":
    run_benchmark(main, __doc__)
