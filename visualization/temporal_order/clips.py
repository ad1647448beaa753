"""Clips in both orders of time, the frozen backbone's features of them, and the batches of the order head.

Shapes: N videos, each of `clips` clips of T frames; P = N * clips pairs of a clip and its time reversal; rows
2p and 2p + 1 of anything with 2P rows are pair p's natural and reversed clip; S = `--img_dim`; C channels.
"""
from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset.records import VideoRecord, read_records
from dataset.transforms import FinetuneAugmentation, TestCrops, scale_clips
from dataset.videos import LabelledVideos, TestViews, build_loader
from eval.features.extract import ClipSettings, pool_levels
from eval.features.clip_means import FULL_FLOAT32, batch_views, fill_up
from models.levels import LEVELS
from utils.errors import InputError
from visualization.temporal_order.flags import clip_settings

NATURAL, REVERSED = 0, 1  # classes of the order head


def both_orders(clips: Tensor, time_dim: int = 2) -> Tensor:
    """[2B, ...] from clips [B, ...]: each clip and, one row after it, the same clip with its frames reversed.

    `time_dim` is the dimension of time: 2 for normalized clips [B, 3, T, H, W], 1 for uint8 [B, T, H, W, 3].
    """
    return torch.stack([clips, clips.flip(time_dim)], dim=1).flatten(0, 1)


def order_targets(num_rows: int, device: torch.device) -> Tensor:
    """int64 [num_rows]: NATURAL and REVERSED in turn, the classes of `both_orders`' rows."""
    return torch.arange(num_rows, device=device) % 2


def list_digest(records: Sequence[VideoRecord]) -> str:
    """What tells one list of videos from another: their names, numbers of frames and order, not where they lie."""
    lines = "".join(f"{Path(record.path).name}\t{record.num_frames}\n" for record in records)
    return hashlib.sha256(lines.encode()).hexdigest()


def videos_long_enough(
    csv_path: str, records: Sequence[VideoRecord], settings: ClipSettings
) -> tuple[list[VideoRecord], int]:
    """Those of a csv's videos that hold a whole clip, in its order, and how many do not. Labels are not looked at.

    A shorter one would repeat its last frame, and frames that stand still at the end, or in the reversed clip
    at the start, tell the order without any motion. InputError where no video is left.
    """
    needed = (settings.clip_frames - 1) * settings.stride + 1
    # A label must be there to be read along; it is not used.
    kept = [replace(record, label=0) for record in records if record.num_frames >= needed]
    if not kept:
        raise InputError(f"{csv_path}: none of its {len(records)} video(s) has the {needed} frames of a clip "
                         f"({settings.clip_frames} at a stride of {settings.stride})")
    return kept, len(records) - len(kept)


def read_videos(flags: argparse.Namespace) -> tuple[dict[str, list[VideoRecord]], dict[str, int], str]:
    """(role -> videos long enough, numbers of these and of all left out, digest of the training list).

    InputError where roles overlap.
    """
    videos, counts, digests = {}, {}, {}
    for role, path in (("train", flags.train_csv), ("test", flags.test_csv)):
        records = read_records(path, labelled=False)
        videos[role], num_short = videos_long_enough(path, records, clip_settings(flags))
        digests[role] = list_digest(records)
        num = len(videos[role])
        counts |= {f"num_{role}_videos": num, f"num_{role}_videos_shorter_than_clip": num_short}
        print(f"{role}: {num} videos of {path}, {num_short} left out as shorter than a clip", flush=True)
    refuse_shared(videos["train"], videos["test"], flags.train_csv, flags.test_csv)
    return videos, counts, digests["train"]


def refuse_shared(
    train: Sequence[VideoRecord], test: Sequence[VideoRecord], train_csv: str, test_csv: str
) -> None:
    """InputError where a test video is a training video too."""
    paths = {record.path for record in train}
    shared = [record.path for record in test if record.path in paths]
    if shared:
        raise InputError(f"{test_csv}: {len(shared)} video(s) are in {train_csv} too, such as {shared[0]}: "
                         "accuracy is measured on held-out videos")


def read_clips(record: VideoRecord, settings: ClipSettings) -> Tensor:
    """uint8 [clips, T, S, S, 3]: the video's clips in natural order, centre crop, nothing drawn."""
    frames, clips, _, _ = settings.videos([record])[0]
    return TestViews(frames, clips, TestCrops(settings.img_dim, 1))[:]


def order_features(
    backbone: nn.Module, records: Sequence[VideoRecord], settings: ClipSettings, device: torch.device, *,
    batch: int, num_workers: int, label: str,
) -> dict[str, np.ndarray]:
    """Level -> float32 [2P, C]: mean over time and space of each clip's map, natural and reversed in turn.

    In eval mode and full float32, `batch` clips in each forward. InputError for a video that cannot be read
    and for features that are not finite.
    """
    backbone.to(device).eval()
    loader = build_loader(settings.videos(records), [[i] for i in range(len(records))], num_workers, device)
    crops = TestCrops(settings.img_dim, 1)
    both = ((int(index), both_orders(TestViews(frames[0], clips[0], crops)[:], time_dim=1))
            for frames, clips, _, index in tqdm(loader, desc=label, unit="video", leave=False, disable=None))
    parts: dict[str, list[np.ndarray]] = {level: [] for level in LEVELS}
    with torch.inference_mode(), torch.backends.cudnn.flags(**FULL_FLOAT32):
        for owners, views in batch_views(both, batch):
            pooled = pool_levels(backbone, fill_up(views, batch).to(device, non_blocking=True))
            for level in LEVELS:
                rows = pooled[level][:len(owners)].astype(np.float32)
                wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
                if len(wrong):
                    video = records[owners[wrong[0]][0]].path
                    raise InputError(f"{video}: its features are not finite at level {level}: are the "
                                     "weights those of a run that diverged?")
                parts[level].append(rows)
    features = {level: np.concatenate(rows) for level, rows in parts.items()}
    assert len(features[LEVELS[0]]) == 2 * settings.clips * len(records)
    return features


class PairBatches:
    """Batches of (epoch, pair): each pair once, in an order drawn from seed and epoch; the last is short."""

    def __init__(self, num_pairs: int, batch_pairs: int, seed: int) -> None:
        self.num_pairs = num_pairs
        self.batch_pairs = batch_pairs
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return -(-self.num_pairs // self.batch_pairs)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_pairs).tolist()
        for start in range(0, self.num_pairs, self.batch_pairs):
            yield [(epoch, pair) for pair in order[start:start + self.batch_pairs]]


class StoredRows:
    """Feature rows of one batch after the other, from the features of all pairs, computed before."""

    def __init__(self, features: np.ndarray, batches: PairBatches, device: torch.device) -> None:
        """`features` float32 [2P, C]."""
        self.pairs = torch.from_numpy(features).unflatten(0, (-1, 2)).to(device)
        self.batches = batches

    def __iter__(self) -> Iterator[Tensor]:
        """Yields [2 * pairs of the batch, C], natural and reversed in turn."""
        for batch in self.batches:
            yield self.pairs[[pair for _, pair in batch]].flatten(0, 1)


class AugmentedRows:
    """Feature rows of clips drawn anew each epoch: a random clip of each video, cropped, flipped, recolored.

    Both orders are made of the same augmented clip. One pair a video and epoch.
    """

    def __init__(
        self, backbone: nn.Module, records: Sequence[VideoRecord], settings: ClipSettings, level: str,
        batches: PairBatches, num_workers: int, batch: int, device: torch.device,
    ) -> None:
        videos = LabelledVideos(records, settings.clip_frames, settings.stride,
                                FinetuneAugmentation(settings.img_dim), batches.seed)
        self.loader: DataLoader = build_loader(videos, batches, num_workers, device)
        self.backbone = backbone.to(device).eval()
        self.level = level
        self.batch = batch
        self.device = device

    def __iter__(self) -> Iterator[Tensor]:
        """Yields [2 * pairs of the batch, C], natural and reversed in turn."""
        for clips, _ in self.loader:
            views = both_orders(clips, time_dim=1)
            yield torch.cat([self.pool(part) for part in views.split(self.batch)])

    def pool(self, views: Tensor) -> Tensor:
        """[M, C] from uint8 views [M, T, S, S, 3]."""
        with torch.no_grad(), torch.backends.cudnn.flags(**FULL_FLOAT32):
            maps = self.backbone(scale_clips(views.to(self.device, non_blocking=True)))
            return getattr(maps, self.level).mean(dim=(2, 3, 4))
