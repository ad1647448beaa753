"""The features of an evaluation's training and test videos, split by split, computed by all processes together.

Shapes: N videos of one csv file that can be read; C channels of a level.
"""
from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from dataset.records import VideoRecord
from eval.features.store import Features, feature_fingerprint, read_features, store_path, write_features
from eval.features.extract import extract_features, load_backbone
from eval.cli import read_clip_settings
from eval.result_card import make_out_dir
from eval.splits import Split, find_splits, read_split
from models.levels import LEVELS
from utils.distributed import DistContext, run_on_all_ranks, run_on_main, check_same_on_all_ranks
from utils.errors import InputError

Key = tuple[str, int]  # a video's path and number of frames


@dataclass(frozen=True)
class VideoSet:
    """The videos of one csv that can be read, and what they look like to the backbone.

    `features`: level -> float32 [N, C]. `skipped`: why each of the others cannot be read. `num_short`: videos shorter
    than a clip. `reused`: whether the features were in `--feature_dir`.
    """

    records: list[VideoRecord]
    features: dict[str, np.ndarray]
    skipped: list[str]
    num_short: int
    reused: bool

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]."""
        return np.array([record.label for record in self.records])


@dataclass(frozen=True)
class SplitSets:
    """Training and test videos of one split."""

    split: Split
    train: VideoSet
    test: VideoSet

    def counts(self) -> dict[str, Any]:
        """Numbers of videos, for the result card."""
        counts: dict[str, Any] = {"features_reused": self.train.reused and self.test.reused}
        for role, videos in (("train", self.train), ("test", self.test)):
            counts |= {f"num_{role}_videos": len(videos.records),
                       f"num_{role}_videos_shorter_than_clip": videos.num_short,
                       f"skipped_{role}_videos": videos.skipped}
        return counts


class FeatureReader:
    """Reads or extracts the features of one csv after another; a video that several of them name is seen once.

    `to_come`: how many csv files, each to be read by this, name a video; what none of them needs any more is dropped.
    """

    def __init__(
        self, backbone: nn.Module, weights: dict[str, Any], context: DistContext, flags: argparse.Namespace,
        to_come: Counter[Key] | None = None,
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.context = context
        self.flags = flags
        self.settings = read_clip_settings(flags)
        self.to_come = to_come or Counter()
        # On the main process: video -> level -> [C], or why it cannot be read.
        self.seen: dict[Key, dict[str, np.ndarray] | str] = {}

    def read(self, role: str, csv_path: str, records: Sequence[VideoRecord]) -> VideoSet | None:
        """The videos of a csv on the main process, None on the others; all of them must call this.

        Whether to extract, and what, is the main process's decision. What was stored as unreadable is tried again.
        """
        keys = [key_of(record) for record in records]
        fingerprint, path, stored = {}, None, None
        if self.context.is_main and self.flags.feature_dir is not None:
            fingerprint = feature_fingerprint(self.weights, self.flags.seed, csv_path, self.settings, self.flags.amp)
            path = store_path(self.flags.feature_dir, fingerprint, role)

        def find_missing() -> list[VideoRecord]:
            nonlocal stored
            stored = read_features(path, fingerprint) if path else None
            if stored:
                self.seen |= {key: row for key, row in zip(keys, rows_of(stored)) if not isinstance(row, str)}
            return [record for key, record in zip(keys, records) if key not in self.seen]

        missing = run_on_main(self.context, find_missing)
        new = self.extract(missing, role) if missing else None

        def take() -> Features:
            whole = new if len(missing) == len(records) else stored if stored and not stored.skipped else None
            taken = whole or join_rows([self.seen[key] for key in keys])
            if len(taken.skipped) == len(records):
                raise InputError(f"{csv_path}: none of its videos can be read; the first: {taken.skipped[0]}")
            if path and not (stored and stored.skipped.keys() == taken.skipped.keys()):
                write_features(path, fingerprint, *taken)
            self.to_come.subtract(keys)
            self.seen = {key: row for key, row in self.seen.items() if self.to_come[key] > 0}
            return taken

        taken = run_on_all_ranks(lambda: take() if self.context.is_main else None)
        if taken is None:
            return None
        features, skipped = taken
        reused = bool(stored and stored.skipped.keys() == skipped.keys())
        origin = f"read from {self.flags.feature_dir}" if reused else f"extracted for {len(missing)}"
        if len(missing) < len(records) and not reused:
            origin += ", the others are known already"
        print(f"{csv_path}: {len(records)} {role} videos, {len(skipped)} skipped as unreadable, features {origin}",
              flush=True)
        kept = [i for i in range(len(records)) if i not in skipped]
        readable = [records[i] for i in kept]
        return VideoSet(readable, {level: rows[kept] if skipped else rows for level, rows in features.items()},
                        list(skipped.values()), self.settings.count_short(readable), reused)

    def extract(self, records: Sequence[VideoRecord], role: str) -> Features | None:
        """Features computed by all processes, for the main one, which takes note of them; None for the others."""
        skipped: dict[int, str] = {}
        features = extract_features(
            self.backbone, records, self.settings, self.context, batch=self.flags.batch, label=role,
            num_workers=self.flags.num_workers, skipped=skipped if self.flags.skip_bad else None, amp=self.flags.amp)
        if not self.context.is_main:
            return None
        new = Features(features, skipped)
        self.seen |= dict(zip(map(key_of, records), rows_of(new)))
        return new


def key_of(record: VideoRecord) -> Key:
    """What tells a video from others: the same file with another number of frames has other clips."""
    return record.path, record.num_frames


def rows_of(features: Features) -> Iterator[dict[str, np.ndarray] | str]:
    """Of each video level -> [C], or why it cannot be read."""
    num_videos = len(features.features[LEVELS[0]])
    for row in range(num_videos):
        yield features.skipped.get(row) or {level: features.features[level][row] for level in LEVELS}


def join_rows(rows: Sequence[dict[str, np.ndarray] | str]) -> Features:
    """The inverse of `rows_of`, where not all are reasons; NaN for a video that cannot be read."""
    skipped = {i: row for i, row in enumerate(rows) if isinstance(row, str)}
    if len(skipped) == len(rows):
        return Features({}, skipped)
    return Features({level: fill_rows([None if i in skipped else row[level] for i, row in enumerate(rows)])
                     for level in LEVELS}, skipped)


def fill_rows(rows: Sequence[np.ndarray | None]) -> np.ndarray:
    """float32 [N, C] of rows [C], NaN where there is None; one at least must be a row."""
    width = next(len(row) for row in rows if row is not None)
    return np.stack([np.full(width, np.nan, np.float32) if row is None else row for row in rows])


def read_sets(
    flags: argparse.Namespace, context: DistContext, check: Callable[[Split, list[VideoRecord]], object] | None = None
) -> tuple[list[SplitSets], dict[str, Any]]:
    """(training and test videos of each split, the weights as `load_backbone` tells them).

    The list is that of the main process; it is empty on the others, whose work is then done. All processes must
    call this. Makes the folders `--out` and `--feature_dir`, and calls `check(split, training videos)`, which raises
    InputError for what cannot be done with them, before anything that takes long.
    """
    def read_csv_files() -> list[dict[str, list[VideoRecord]]]:
        read = [read_split(split) for split in splits]
        for split, of_split in zip(splits, read):
            if check:
                check(split, of_split["train"])
        make_out_dir(Path(flags.out))
        if flags.feature_dir is not None:
            make_out_dir(Path(flags.feature_dir), "--feature_dir")
        return read

    splits = find_splits(flags)
    records = run_on_main(context, read_csv_files)
    backbone, weights = run_on_all_ranks(lambda: load_backbone(flags.weights, flags.net, flags.seed))
    check_same_on_all_ranks({"--weights, SHA-256": weights["checkpoint_sha256"]}, context)
    to_come = Counter(key_of(video) for of_split in records for videos in of_split.values() for video in videos)
    reader = FeatureReader(backbone, weights, context, flags, to_come)
    sets = [SplitSets(split, **{role: reader.read(role, split.csv_files[role], videos)
                                for role, videos in of_split.items()})
            for split, of_split in zip(splits, records)]
    run_on_all_ranks(lambda: [check_readable(of_split) for of_split in sets] if context.is_main else None)
    return (sets if context.is_main else []), weights


def check_readable(sets: SplitSets) -> None:
    """InputError where `--skip_bad` left out all training videos of a class that is tested."""
    left = {record.label for record in sets.train.records}
    lost = [record for record in sets.test.records if record.label not in left]
    if lost:
        raise InputError(f"{sets.split.train_csv}: none of its videos of label {lost[0].label} can be read, but test "
                         f"videos of it can, such as {lost[0].path}: nothing could be learned about that class")
