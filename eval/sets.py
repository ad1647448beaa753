"""The features of an evaluation's training and test videos, split by split, computed by all processes together.

Shapes: N videos of one csv file that can be read; C channels of a level.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from dataset.records import VideoRecord
from eval.feature_store import feature_fingerprint, read_features, store_path, write_features
from eval.features import extract_features, load_backbone
from eval.flags import read_clip_settings
from eval.result_card import make_out_dir
from eval.splits import Split, find_splits, read_split
from models.levels import LEVELS
from utils.distributed import Process, done_by_all, done_by_main, require_alike
from utils.errors import InputError


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
    """Reads or extracts the features of one csv after another; a video that several of them name is seen once."""

    def __init__(
        self, backbone: nn.Module, weights: dict[str, Any], process: Process, flags: argparse.Namespace
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.process = process
        self.flags = flags
        self.settings = read_clip_settings(flags)
        # On the main process: video -> level -> [C], or why it cannot be read.
        self.seen: dict[tuple[str, int], dict[str, np.ndarray] | str] = {}

    def read(self, role: str, csv_path: str, records: Sequence[VideoRecord]) -> VideoSet | None:
        """The videos of a csv on the main process, None on the others; all of them must call this.

        Whether to extract, and what, is the main process's decision. What was stored as unreadable is tried again
        unless `--skip_bad` says to leave it out.
        """
        keys = [(record.path, record.num_frames) for record in records]
        fingerprint, path = {}, None
        if self.process.is_main and self.flags.feature_dir is not None:
            fingerprint = feature_fingerprint(self.weights, self.flags.seed, csv_path, self.settings)
            path = store_path(self.flags.feature_dir, fingerprint, role)

        def what_is_missing() -> tuple[list[VideoRecord], bool]:
            stored = read_features(path, fingerprint) if path else None
            if stored is not None:
                self.seen |= {key: stored.skipped.get(row) or {level: stored.features[level][row] for level in LEVELS}
                              for row, key in enumerate(keys) if self.flags.skip_bad or row not in stored.skipped}
            missing = {key: record for key, record in zip(keys, records) if key not in self.seen}
            return list(missing.values()), stored is not None and not missing

        missing, reused = done_by_main(self.process, what_is_missing)
        if missing:
            self.extract(missing, role)

        def take() -> tuple[dict[str, np.ndarray], dict[int, str]]:
            rows = [self.seen[key] for key in keys]
            skipped = {i: row for i, row in enumerate(rows) if isinstance(row, str)}
            if len(skipped) == len(rows):
                raise InputError(f"{csv_path}: none of its videos can be read; the first: {skipped[0]}")
            features = {level: fill_rows([None if i in skipped else row[level] for i, row in enumerate(rows)])
                        for level in LEVELS}
            if path and not reused:
                write_features(path, fingerprint, features, skipped)
            return features, skipped

        taken = done_by_all(lambda: take() if self.process.is_main else None)
        if taken is None:
            return None
        features, skipped = taken
        kept = [i for i in range(len(records)) if i not in skipped]
        origin = f"read from {self.flags.feature_dir}" if reused else f"extracted for {len(missing)}"
        if len(missing) < len(records) and not reused:
            origin += ", the others are known already"
        print(f"{csv_path}: {len(records)} {role} videos, {len(skipped)} skipped as unreadable, features {origin}",
              flush=True)
        readable = [records[i] for i in kept]
        return VideoSet(readable, {level: rows[kept] for level, rows in features.items()}, list(skipped.values()),
                        self.settings.count_short(readable), reused)

    def extract(self, records: Sequence[VideoRecord], role: str) -> None:
        """Take in the features of videos not seen before, computed by all processes."""
        skipped: dict[int, str] = {}
        features = extract_features(
            self.backbone, records, self.settings, self.process, batch=self.flags.batch, label=role,
            num_workers=self.flags.num_workers, skipped=skipped if self.flags.skip_bad else None)
        if self.process.is_main:
            self.seen |= {(record.path, record.num_frames):
                          skipped[row] if row in skipped else {level: features[level][row] for level in LEVELS}
                          for row, record in enumerate(records)}


def fill_rows(rows: Sequence[np.ndarray | None]) -> np.ndarray:
    """float32 [N, C] of rows [C], NaN where there is None; one at least must be a row."""
    width = next(len(row) for row in rows if row is not None)
    return np.stack([np.full(width, np.nan, np.float32) if row is None else row for row in rows])


def read_sets(
    flags: argparse.Namespace, process: Process, check: Callable[[Split, list[VideoRecord]], object] | None = None
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
    records = done_by_main(process, read_csv_files)
    backbone, weights = done_by_all(lambda: load_backbone(flags.weights, flags.net, flags.seed))
    require_alike({"--weights, SHA-256": weights["checkpoint_sha256"]}, process)
    reader = FeatureReader(backbone, weights, process, flags)
    sets = [SplitSets(split, **{role: reader.read(role, split.csv_files[role], videos)
                                for role, videos in of_split.items()})
            for split, of_split in zip(splits, records)]
    done_by_all(lambda: [check_readable(of_split) for of_split in sets] if process.is_main else None)
    return (sets if process.is_main else []), weights


def check_readable(sets: SplitSets) -> None:
    """InputError where `--skip_bad` left out all training videos of a class that is tested."""
    left = {record.label for record in sets.train.records}
    lost = [record for record in sets.test.records if record.label not in left]
    if lost:
        raise InputError(f"{sets.split.train_csv}: none of its videos of label {lost[0].label} can be read, but test "
                         f"videos of it can, such as {lost[0].path}: nothing could be learned about that class")
