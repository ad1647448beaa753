"""Feature extraction against the forward pass alone, and a probe's grid against one head after another.

Extraction is of r3d18 on 16-frame windows at 112 px, of videos of 340x256 JPEGs with different numbers of windows, on
the GPU if there is one. The probe is of UCF-101's size: 9,537 training videos, 101 classes, 512 channels.
"""
from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import device_clock, print_table, ratio, run_benchmark, time_in_turns
from benchmarks.videos import video_frames, write_frame_folder
from dataset.records import VideoRecord
from dataset.videos import TestViews
from eval.features.extract import FULL_FLOAT32, WINDOWS, ClipSettings, extract_features, pool_levels
from eval.features.probe_heads import ProbeRecipe, fit_probe, train_heads
from eval.linear_probe import linear_probe_parser, probe_grid
from models.multilevel import build_backbone
from utils.distributed import DistContext

VIDEOS, CLASSES, CHANNELS = 9537, 101, 512


@torch.inference_mode()
@torch.backends.cudnn.flags(**FULL_FLOAT32)  # as extraction has them
def print_extraction(quick: bool, folder: Path, device: torch.device) -> None:
    """Prints clips per second of the forward pass alone, of extraction, and of extraction video by video."""
    batch, repeats, workers = (32, 50, os.cpu_count() or 1) if device.type == "cuda" else (8, 1 if quick else 3, 1)
    settings = ClipSettings(WINDOWS, img_dim=32 if quick else 112)
    backbone = build_backbone("r3d10" if quick else "r3d18").to(device).eval()
    records = [VideoRecord(write_frame_folder(folder / str(length), video_frames(length)), length, 0)
               for length in (20, 90, 45, 160)] * repeats  # 2, 11, 5 and 19 windows
    clips = sum(len(settings.sampler()(record.num_frames)) for record in records)
    views = torch.randint(0, 256, (batch, 16, settings.img_dim, settings.img_dim, 3), dtype=torch.uint8, device=device)

    def extract_one_by_one(amp: str) -> None:
        videos = settings.videos(records)
        for frames, indices, _, _ in videos:
            views_of_video = TestViews(frames, indices, videos.crops)
            pool_levels(backbone, views_of_video[0:len(views_of_video)].to(device), amp=amp)

    rows = []
    for amp in ("off", "bf16"):
        seconds = time_in_turns({
            "forward": lambda: [pool_levels(backbone, views, amp=amp) for _ in range(-(-clips // batch))],
            "extraction": lambda: extract_features(backbone, records, settings, DistContext(0, 1, device), batch=batch,
                                                   num_workers=workers, amp=amp),
            "one by one": lambda: extract_one_by_one(amp)}, 1, device_clock, clips)
        forward, ours, plain = seconds.values()
        rows.append(["float32" if amp == "off" else amp, *(f"{1 / np.median(times):.1f}" for times in seconds.values()),
                     f"{ratio(forward, ours):.0%}", f"{ratio(plain, ours):.2f}x"])
    print_table(["clips/s", "forward alone", "extraction", "video by video", "extraction / forward",
                 "extraction / video by video"], rows)
    print(f"{len(records)} videos, {clips} clips, {batch} per forward, {workers} DataLoader worker(s).\n")


def print_probe(quick: bool, device: torch.device) -> None:
    """Prints the seconds of a probe: the whole grid at once, and one head times the number of pairs."""
    pairs = probe_grid(linear_probe_parser().parse_args(["--weights", "-", "--train_csv", "-", "--test_csv", "-"]))
    recipe = ProbeRecipe(epochs=2 if quick else 100)
    rng = np.random.default_rng(0)
    targets = rng.permutation(np.arange(VIDEOS) % CLASSES)
    vectors = (rng.normal(size=(CLASSES, CHANNELS))[targets] + 4 * rng.normal(size=(VIDEOS, CHANNELS))).astype(np.float32)
    held = rng.random(VIDEOS) < 0.2
    kept, of_kept = int((~held).sum()), (vectors[~held], targets[~held], CLASSES)
    one, grid, whole = (np.median(seconds) for seconds in time_in_turns({
        "one": lambda: train_heads(*of_kept, pairs[:1], recipe, device),
        "grid": lambda: train_heads(*of_kept, pairs, recipe, device),
        "whole": lambda: fit_probe(vectors, targets, CLASSES, held, pairs, recipe, device)}, 1, device_clock).values())
    print_table([f"{recipe.epochs} epochs", "videos", "s"], [
        [f"{len(pairs)} heads at once", kept, f"{grid:.1f}"],
        [f"{len(pairs)} heads one after another ({len(pairs)} times one)", kept, f"{len(pairs) * one:.1f}"],
        ["a whole probe: choose on the hold-out, train the chosen one on all", VIDEOS, f"{whole:.1f}"]])


def main(quick: bool, folder: Path) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print_extraction(quick, folder, device)
    print_probe(quick, device)


if __name__ == "__main__":
    run_benchmark(main, __doc__)
