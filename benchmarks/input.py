"""One pretraining sample on one core: the pipelines of `benchmarks.input_peers` against ours.

A sample is 32 frames of 340x256 (JPEG, quality 90), decoded, resized to 200x150, and made into three views of 16
frames at 112 px with crop, flip, channel splitting, color jitter and normalization. All pipelines get the same random
draws, so that pixels can be compared as well as times. NVIDIA DALI takes part where it is installed (requirements.txt here).
"""
from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.input_peers import (CLIP_FRAMES, CLIPS, IMG_DIM, MAX_STRIDE, NUM_FRAMES, dali_sampler, plain_sample,
                                    torchvision_sample)
from benchmarks.measure import device_clock, milliseconds, print_timed_table, ratio, run_benchmark, time_in_turns
from benchmarks.videos import video_frames, write_frame_folder
from dataset.frames import decode_image, read_folder, read_frames, resize_frames
from dataset.records import VideoRecord
from dataset.transforms import IMAGENET_MEAN, IMAGENET_STD, PRETRAIN_FRAME_SIZE, scale_clips
from dataset.videos import PretrainVideos, collate_pretraining, prepare_views

PLAIN, TORCHVISION, DALI = "plain pipeline", "torchvision v2 on uint8 tensors", "NVIDIA DALI, channels not split"  # rows
OURS, LIMIT = "ours, all on the CPU", "lower bound: libjpeg-turbo alone, 32 frames in memory"
HALF, STORED = ", `--decode half`", ", frames stored at 200x150"


def our_videos(path: str, color_on_device: bool = False, half: bool = False) -> PretrainVideos:
    """Returns the data set of one video."""
    return PretrainVideos([VideoRecord(path, NUM_FRAMES)], CLIPS, CLIP_FRAMES, MAX_STRIDE, IMG_DIM, 0, color_on_device, half)


def our_sample(videos: PretrainVideos, number: int) -> torch.Tensor:
    """Returns the views [V + 1, 3, T, S, S] of our pipeline, all of it on the CPU."""
    return prepare_views(collate_pretraining([videos[number, 0]]), torch.device("cpu"))[0]


def gray_levels(views: torch.Tensor) -> torch.Tensor:
    """Returns normalized views [V + 1, 3, T, S, S] as levels 0 to 255."""
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (views * std + mean) * 255


def peers(full: str, small: str, samples: Iterator[int]) -> dict[str, Callable[[], object]]:
    """Returns row -> job of torchvision and DALI, from both kinds of frames; prints a line where DALI is not installed."""
    jobs = {f"{TORCHVISION}{kind}": lambda path=path: torchvision_sample(path, next(samples))
            for kind, path in (("", full), (STORED, small))}
    try:
        return jobs | {DALI: dali_sampler(full, True), f"{DALI}{STORED}": dali_sampler(small, False)}
    except ImportError:
        print("NVIDIA DALI: not installed (pip install -r benchmarks/requirements.txt)\n")
        return jobs


def main(quick: bool, folder: Path) -> None:
    turns, in_a_row = 5 if quick else 25, 4  # as a DataLoader worker reads: the memory of the sample before is there
    full, small = (write_frame_folder(folder / name, video_frames(NUM_FRAMES, size))
                   for name, size in (("full", (340, 256)), ("small", PRETRAIN_FRAME_SIZE)))
    numbers, samples = np.arange(CLIPS * CLIP_FRAMES), itertools.count()
    files = [data for _, data in read_folder(full, numbers.tolist(), NUM_FRAMES)]
    kinds = {"": (full, False), HALF: (full, True), STORED: (small, False)}
    on_cpu, on_device = ({kind: our_videos(path, color_on_device, half) for kind, (path, half) in kinds.items()}
                         for color_on_device in (False, True))
    jobs = {PLAIN: lambda: plain_sample(full, next(samples)), **peers(full, small, samples)}
    for kind in kinds:
        jobs[f"{OURS}{kind}"] = lambda kind=kind: our_sample(on_cpu[kind], next(samples))
        jobs[f"ours, CPU time of a worker with `--augment_on device`{kind}"] = (
            lambda kind=kind: on_device[kind][next(samples), 0])
    for kind, (path, half) in kinds.items():
        jobs[f"of ours: reading 32 frames{kind or ', resized to 200x150'}"] = lambda path=path, half=half: read_frames(
            path, numbers, NUM_FRAMES, PRETRAIN_FRAME_SIZE, half=half)
    decoded, stored = (read_frames(path, numbers, NUM_FRAMES) for path in (full, small))
    augment, rng, clips = on_cpu[""].augment, np.random.default_rng(0), on_cpu[""][0, 0].clips
    jobs |= {
        "of ours: resizing 32 frames to 200x150": lambda: resize_frames(decoded, PRETRAIN_FRAME_SIZE, "bicubic"),
        "of ours: crop, flip and color of three views": lambda: [
            augment(stored[:CLIP_FRAMES], rng) for _ in range(CLIPS + 1)],
        "of ours: normalizing three views": lambda: scale_clips(clips)}
    for kind in ("", HALF):
        jobs[f"{LIMIT}{kind}"] = lambda half=kind == HALF: [
            decode_image(data, "", half=half) for data in files]
    seconds = print_timed_table(["one core", "ms a sample", "samples/s", "against plain"], jobs, turns, PLAIN,
                      lambda _, times, ratio: [f"{1 / np.median(times):.1f}", f"{ratio:.1f}x"], in_a_row)

    comparisons = [f"{ratio(seconds[peer + kind], seconds[OURS + kind]):.1f} times as fast as {peer}{kind}"
                   for peer in (DALI, TORCHVISION) for kind in ("", STORED) if peer + kind in seconds]
    print(f"Ours, all on the CPU: {', '.join(comparisons)}. libjpeg-turbo alone takes "
          f"{100 * ratio(seconds[LIMIT], seconds[OURS]):.0f} % of its time.\n")

    kib, kib_small = (sum(file.stat().st_size for file in Path(path).iterdir()) / NUM_FRAMES / 1024
                      for path in (full, small))
    differences, on_devices = [], []
    for name, videos in {"color on the CPU": on_cpu[""], "color on the device": on_device[""],
                         "color on the CPU and `--decode half`": on_cpu[HALF]}.items():
        mean = np.mean([(gray_levels(our_sample(videos, number)) - gray_levels(plain_sample(full, number))).abs().mean()
                        for number in range(3 if quick else 10)])
        differences.append(f"{mean:.2f} gray levels with {name}")
    for device, clock, videos in [("cpu", time.process_time, 1)] + [("cuda", device_clock, 64)] * torch.cuda.is_available():
        batch = collate_pretraining([on_device[""][0, 0]] * videos)
        batch = batch._replace(clips=batch.clips.to(device))
        seconds = time_in_turns({"color": lambda: prepare_views(batch, torch.device(device))}, turns, clock, videos)["color"]
        on_devices.append(f"{milliseconds(seconds)} ms a sample on {device}")
    print(f"Frames of {kib:.0f} KiB, {kib_small:.0f} KiB at 200x150; medians of {turns} turns of {in_a_row} samples. Mean "
          f"absolute difference to the views of the plain pipeline: {', '.join(differences)}. Color and normalization "
          f"on the device take {', '.join(on_devices)}.")


if __name__ == "__main__":
    run_benchmark(main, __doc__)
