"""Feature extraction against the forward pass alone, and a probe's grid against one head after another.

    python -m benchmarks.evaluation [--quick]

Extraction is of r3d18 on 16-frame windows at 112 px, of videos of 340x256 JPEGs with different numbers of windows, on
the GPU if there is one. The probe is of UCF-101's size: 9,537 training videos, 101 classes, 512 channels.
"""
from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.input import write_video
from benchmarks.measure import device_clock, format_table, quick_flag, ratio, time_in_turns
from dataset.records import VideoRecord
from dataset.transforms import TestCrops
from dataset.videos import TestViews
from eval.features.extract import FULL_FLOAT32, WINDOWS, ClipSettings, extract_features, pool_levels
from eval.features.probe_heads import ProbeRecipe, fit_probe, train_heads
from eval.linear_probe import linear_probe_parser, probe_grid
from models.multilevel import build_backbone
from utils.distributed import DistContext

LENGTHS = (20, 90, 45, 160)  # frames of the videos: 2, 11, 5 and 19 windows
VIDEOS, CLASSES, CHANNELS = 9537, 101, 512


def extract_one_by_one(backbone: nn.Module, records: list[VideoRecord], settings: ClipSettings, device: torch.device,
                       amp: str) -> None:
    """Extracts features without batching over videos or DataLoader workers: reads a video, then forwards its views."""
    crops = TestCrops(settings.img_dim, settings.crops)
    for frames, clips, _, _ in settings.videos(records):
        views = TestViews(frames, clips, crops)
        pool_levels(backbone, views[0:len(views)].to(device), amp=amp)


@torch.inference_mode()
@torch.backends.cudnn.flags(**FULL_FLOAT32)  # as extraction has them
def print_extraction(quick: bool) -> None:
    """Prints clips per second of the forward pass alone, of extraction, and of extraction video by video."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    batch, repeats = (32, 50) if on_gpu else (8, 1 if quick else 3)
    workers = os.cpu_count() or 1 if on_gpu else 1
    settings = ClipSettings(WINDOWS, img_dim=32 if quick else 112)
    backbone = build_backbone("r3d10" if quick else "r3d18").to(device).eval()
    context, rows = DistContext(0, 1, device), []
    with tempfile.TemporaryDirectory() as folder:
        records = [VideoRecord(write_video(Path(folder) / str(length), (340, 256), 0, length), length, 0)
                   for length in LENGTHS] * repeats
        clips = sum(len(settings.sampler()(record.num_frames)) for record in records)
        batches = -(-clips // batch)
        views = torch.randint(0, 256, (batch, settings.clip_frames, settings.img_dim, settings.img_dim, 3),
                              dtype=torch.uint8, device=device)
        for amp in ("off", "bf16"):
            seconds = time_in_turns({
                "forward": lambda: [pool_levels(backbone, views, amp=amp) for _ in range(batches)],
                "ours": lambda: extract_features(backbone, records, settings, context, batch=batch, num_workers=workers,
                                                 amp=amp),
                "plain": lambda: extract_one_by_one(backbone, records, settings, device, amp),
            }, 1, device_clock)
            rows.append(["float32" if amp == "off" else amp,
                         *(f"{clips / np.median(seconds[name]):.1f}" for name in ("forward", "ours", "plain")),
                         f"{ratio(seconds['forward'], seconds['ours']):.0%}",
                         f"{ratio(seconds['plain'], seconds['ours']):.2f}x"])
    print(format_table(["clips/s", "forward alone", "extraction", "video by video", "extraction / forward",
                 "extraction / video by video"], rows))
    print(f"\n{len(records)} videos, {clips} clips, {batch} per forward, {workers} DataLoader worker(s).\n")


def print_probe(quick: bool) -> None:
    """Prints the seconds of a probe: the whole grid at once, and one head times the number of pairs."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pairs = probe_grid(linear_probe_parser().parse_args(["--weights", "-", "--train_csv", "-", "--test_csv", "-"]))
    recipe = ProbeRecipe(epochs=2 if quick else 100)
    rng = np.random.default_rng(0)
    targets = rng.permutation(np.arange(VIDEOS) % CLASSES)
    vectors = (rng.normal(size=(CLASSES, CHANNELS))[targets] + 4 * rng.normal(size=(VIDEOS, CHANNELS))).astype(np.float32)
    held = rng.random(VIDEOS) < 0.2
    seconds = time_in_turns({
        "grid": lambda: train_heads(vectors[~held], targets[~held], CLASSES, pairs, recipe, device),
        "one": lambda: train_heads(vectors[~held], targets[~held], CLASSES, pairs[:1], recipe, device),
        "all": lambda: fit_probe(vectors, targets, CLASSES, held, pairs, recipe, device),
    }, 1, device_clock)
    kept = int((~held).sum())
    print(format_table([f"{recipe.epochs} epochs", "videos", "s"], [
        [f"{len(pairs)} heads at once", kept, f"{np.median(seconds['grid']):.1f}"],
        [f"{len(pairs)} heads one after another ({len(pairs)} times one)", kept,
         f"{len(pairs) * np.median(seconds['one']):.1f}"],
        ["a whole probe: choose on the hold-out, train the chosen one on all", VIDEOS, f"{np.median(seconds['all']):.1f}"]]))


def main() -> None:
    quick = quick_flag(__doc__)
    print_extraction(quick)
    print_probe(quick)


if __name__ == "__main__":
    main()
