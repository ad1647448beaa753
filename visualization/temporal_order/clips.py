"""Clips in both orders of time, the frozen backbone's features of them, and the batches of the order head.

Shapes: N videos of `clips` clips each, T frames of S x S px; P = N * clips pairs of a clip and its time reversal; rows
2p and 2p + 1 of anything with 2P rows are pair p's natural and reversed clip; C channels.
"""
from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dataset.records import VideoRecord, read_records
from dataset.transforms import TestCrops, scale_clips
from dataset.videos import LabelledClips, TestViews
from eval.features.extract import FULL_FLOAT32, ClipSettings, mean_over_views, pool_levels
from eval.features.csv_features import feature_fingerprint, read_features, store_path, write_features
from eval.result_card import make_out_dir
from utils.distributed import DistContext
from utils.errors import InputError
from visualization.temporal_order.settings import OrderSettings


def both_orders(clips: Tensor, time_dim: int = 2) -> Tensor:
    """Returns [2B, ...] of clips [B, ...]: each clip and, one row after it, the same clip with its frames reversed.

    `time_dim`: 2 for scaled clips [B, 3, T, H, W], 1 for uint8 clips [B, T, H, W, 3].
    """
    return torch.stack([clips, clips.flip(time_dim)], dim=1).flatten(0, 1)


def order_targets(num_rows: int, device: torch.device) -> Tensor:
    """Returns int64 [num_rows], the classes of `both_orders`' rows: 0 (natural) and 1 (reversed) in turn."""
    return torch.arange(num_rows, device=device) % 2


def read_long_enough(role: str, csv_path: str, settings: ClipSettings) -> tuple[list[VideoRecord], int, str]:
    """Returns (a csv's videos that have a whole clip, number of the others, SHA-256 of the list). Labels are not used.

    A shorter video would repeat its last frame, and frames that stand still at one end reveal the order without any
    motion. The SHA-256 is of names, numbers of frames and order, not of folders. InputError where no video is left.
    """
    records, needed = read_records(csv_path, labelled=False), (settings.clip_frames - 1) * settings.stride + 1
    kept = [replace(record, label=0) for record in records if record.num_frames >= needed]
    if not kept:
        raise InputError(f"{csv_path}: none of its {len(records)} video(s) has the {needed} frames of a clip "
                         f"({settings.clip_frames} at a stride of {settings.stride})")
    num_short = len(records) - len(kept)
    print(f"{role}: {len(kept)} videos of {csv_path}, {num_short} left out as shorter than a clip", flush=True)
    names = "".join(f"{Path(record.path).name}\t{record.num_frames}\n" for record in records)
    return kept, num_short, hashlib.sha256(names.encode()).hexdigest()


def read_train_and_test(
    train_csv: str, test_csv: str, settings: ClipSettings
) -> tuple[list[VideoRecord], list[VideoRecord], dict[str, int], str]:
    """Returns (training videos, test videos, their numbers for the result card, SHA-256 of the training list).

    InputError where a test video is a training video too.
    """
    train, num_short_train, digest = read_long_enough("train", train_csv, settings)
    test, num_short_test, _ = read_long_enough("test", test_csv, settings)
    paths = {record.path for record in train}
    shared = [record.path for record in test if record.path in paths]
    if shared:
        raise InputError(f"{test_csv}: {len(shared)} video(s) are in {train_csv} too, such as {shared[0]}: "
                         "accuracy is measured on held-out videos")
    counts = {"num_train_videos": len(train), "num_train_videos_shorter_than_clip": num_short_train,
              "num_test_videos": len(test), "num_test_videos_shorter_than_clip": num_short_test}
    return train, test, counts, digest


def read_clips(record: VideoRecord, settings: ClipSettings) -> Tensor:
    """Returns uint8 [clips, T, S, S, 3]: the video's test clips in natural order, centre crop."""
    sample = settings.videos([record])[0]
    return TestViews(sample.frames, sample.clips, TestCrops(settings.img_dim, 1))[:]


def order_features(role: str, records: Sequence[VideoRecord], backbone: nn.Module, weights: dict, settings: OrderSettings,
                   device: torch.device) -> Tensor:
    """Returns float32 [2P, C] at the settings' level: mean over time and space of each clip's map, natural and reversed.

    Reads them from `feature_dir` (default: OUT/features), or else computes and stores them, `batch` rows per forward.
    `role`: "train" or "test", of which csv `records` are. For errors see `mean_over_views`.
    """
    def pool_pairs(views: Tensor) -> dict[str, np.ndarray]:
        pooled = pool_levels(backbone, both_orders(views, time_dim=1), weights["input"])
        return {level: rows.reshape(len(views), -1) for level, rows in pooled.items()}

    clips, csv_path = settings.clip_settings, getattr(settings, f"{role}_csv")
    fingerprint = {**feature_fingerprint(weights, settings.seed, csv_path, clips), "orders": "natural, reversed"}
    path = store_path(settings.feature_dir or str(Path(settings.out) / "features"), fingerprint, f"order_{role}")
    make_out_dir(path.parent, "--feature_dir")
    stored = read_features(path, fingerprint)
    if stored:
        features = stored.features
    else:
        pairs = mean_over_views(backbone, pool_pairs, "features", records, clips, DistContext(0, 1, device), skipped=None,
                                batch=max(1, settings.batch // 2), num_workers=settings.num_workers, label=role,
                                dtype=np.float32, reduce=np.ravel)
        features = {level: rows.reshape(-1, backbone.channels[level]) for level, rows in pairs.items()}
        write_features(path, fingerprint, features, {})
    rows = torch.from_numpy(features[settings.level]).to(device)
    print(f"{role}: features of {len(rows)} clips {f'read from {path}' if stored else 'computed'}", flush=True)
    return rows


class PairBatches:
    """Batches of (epoch, pair): each pair once, in an order drawn from seed and epoch; the last may be short."""

    def __init__(self, num_pairs: int, batch_pairs: int, seed: int) -> None:
        self.num_pairs, self.batch_pairs, self.seed, self.epoch = num_pairs, batch_pairs, seed, 0

    def __len__(self) -> int:
        return -(-self.num_pairs // self.batch_pairs)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_pairs).tolist()
        for start in range(0, self.num_pairs, self.batch_pairs):
            yield [(epoch, pair) for pair in order[start:start + self.batch_pairs]]


def stored_rows(pairs: Tensor, batches: PairBatches) -> Iterator[Tensor]:
    """Yields features [2 * pairs of the batch, C], natural and reversed in turn, of one batch after the other.

    `pairs`: features [P, 2, C] computed before.
    """
    for batch in batches:
        yield pairs[[pair for _, pair in batch]].flatten(0, 1)


def augmented_rows(backbone: nn.Module, loader: Iterable[LabelledClips], level: str, batch: int,
                   device: torch.device, scale: Mapping[str, Sequence[float]]) -> Iterator[Tensor]:
    """Yields features as `stored_rows` does, of both orders of each augmented clip of `loader`; `batch` rows per forward."""
    def pool(views: Tensor) -> Tensor:
        clips = scale_clips(views.to(device, non_blocking=True), **scale)
        return getattr(backbone(clips), level).mean(dim=(2, 3, 4))

    for sample in loader:
        with torch.no_grad(), torch.backends.cudnn.flags(**FULL_FLOAT32):
            rows = torch.cat([pool(views) for views in both_orders(sample.clips, time_dim=1).split(batch)])
        yield rows
