"""The features of an evaluation's csv files: extracted by all processes together, or read from files that hold them.

Stored features are used again only for the same weights, csv, clips, precision and libraries.

Shapes: N videos of one csv file; C channels of a level.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
import simplejpeg
import torch
from torch import nn

from dataset.records import VideoRecord, read_records
from dataset.sampling import NATURAL
from eval.cli import read_clip_settings
from eval.features.backbone import RANDOM, load_backbone
from eval.features.extract import ClipSettings, Rows, extract_features, keep_readable
from eval.result_card import make_out_dir
from eval.splits import EvalSplit, find_splits, read_split
from models.levels import LEVELS
from utils.distributed import DistContext, check_same_on_all_ranks, run_long_on_main, run_on_all_ranks, run_on_main
from utils.errors import InputError
from utils.files import file_sha256, write_atomically

FEATURE_FORMAT = 3  # raised whenever the same checkpoint, csv and settings would give another file


class StoredFeatures(NamedTuple):
    """Features of the videos of one csv: level -> float32 [N, C], and row -> reason of those that are NaN."""

    features: Rows
    skipped: dict[int, str]


to_text = partial(json.dumps, sort_keys=True)  # of a fingerprint, as it is written into the file
KnownVideos = dict[tuple[str, int, str], tuple[StoredFeatures, int]]  # (path, frames, clip order) -> where its row is


def feature_fingerprint(weights: dict[str, Any], seed: int, csv_path: str, settings: ClipSettings,
                        amp: str = "off", shots: tuple[int, int] | None = None) -> dict[str, Any]:
    """Returns all that the features depend on, the csv's folder included, to which paths are relative."""
    return {
        "format": FEATURE_FORMAT, "net": weights["net"], "checkpoint_sha256": weights["checkpoint_sha256"],
        "random_seed": seed if weights["weights"] == RANDOM else None, "input": weights["input"],
        "csv_sha256": file_sha256(csv_path),
        "csv_folder": os.path.dirname(os.path.abspath(csv_path)), "torch": torch.__version__,
        "opencv": cv2.__version__, "simplejpeg": simplejpeg.__version__, "av": av.__version__, "amp": amp,
        **settings.facts(), **({"shots": shots} if shots else {})}


def store_path(feature_dir: str, fingerprint: dict[str, Any], name: str) -> Path:
    """Returns the file for these features: `name` and the fingerprint's digest."""
    return Path(feature_dir) / f"{name}_{hashlib.sha256(to_text(fingerprint).encode()).hexdigest()[:16]}.npz"


def write_features(path: Path, fingerprint: dict[str, Any], features: Rows, skipped: dict[int, str]) -> None:
    """Stores `StoredFeatures` in a folder that exists, whole or not at all."""
    try:
        own = path.with_name(f"{path.name}.{os.getpid()}")  # another evaluation may store the same features
        write_atomically(own, partial(np.savez, fingerprint=np.array(to_text(fingerprint)),
                                      skipped=np.array(json.dumps(skipped)), **features))
        os.replace(own, path)
    except OSError as error:
        raise InputError(f"--feature_dir {path.parent}: cannot store there: {error.strerror}") from error


def read_features(path: Path, fingerprint: dict[str, Any]) -> StoredFeatures | None:
    """Returns what `write_features` stored, None without a file; InputError for a damaged file or another fingerprint."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = str(stored["fingerprint"])
            features = {level: stored[level] for level in LEVELS}
            skipped = {int(row): reason for row, reason in json.loads(str(stored["skipped"])).items()}
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: no whole file of features; remove it ({type(error).__name__})") from error
    if found != to_text(fingerprint):
        raise InputError(f"{path}: holds features of other weights, videos, clips or precision; remove it")
    return StoredFeatures(features, skipped)


class CsvFeatures(NamedTuple):
    """The readable videos of one csv and their features."""

    records: list[VideoRecord]
    features: Rows      # level -> float32 [N, C]
    skipped: list[str]  # why each of the others cannot be read
    num_short: int      # videos shorter than a clip
    reused: bool        # whether the features were in `--feature_dir`

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]."""
        return np.array([record.label for record in self.records])


class SplitFeatures(NamedTuple):
    """Training and test videos of one split; `counts`: their numbers, for the result card."""

    split: EvalSplit
    train: CsvFeatures
    test: CsvFeatures
    counts: dict[str, Any]


def read_csv_features(role: str, csv_path: str, records: Sequence[VideoRecord], backbone: nn.Module, weights: dict[str, Any],
                      flags: argparse.Namespace, context: DistContext, known: KnownVideos,
                      shots: tuple[int, int] | None = None) -> CsvFeatures | None:
    """Returns the videos of a csv on the main process, None on the others; all of them must call this.

    What is neither in `known`, which gets all rows on the main process, nor in `--feature_dir` is extracted; so is what was
    stored as unreadable. The name of the stored file begins with `role`. `shots`: how `records` were drawn from the csv.
    `--clip_order` is not for the role "train".
    """
    settings = read_clip_settings(flags)
    if role == "train":
        settings = replace(settings, clip_order=NATURAL, order_seed=0)
    keys = [(record.path, record.num_frames, settings.clip_order) for record in records]
    stored, new, path = None, None, None
    if context.is_main and flags.feature_dir is not None:
        fingerprint = feature_fingerprint(weights, flags.seed, csv_path, settings, flags.amp, shots)
        path = store_path(flags.feature_dir, fingerprint, role)

    def find_missing() -> list[int]:
        nonlocal stored
        stored = read_features(path, fingerprint) if path else None
        if stored:
            known.update((key, (stored, row)) for row, key in enumerate(keys) if row not in stored.skipped)
        return [index for index, key in enumerate(keys) if key not in known]

    missing = run_on_main(context, find_missing)
    if missing:
        skipped: dict[int, str] = {}
        new = StoredFeatures(extract_features(
            backbone, [records[index] for index in missing], settings, context, scale=weights["input"], batch=flags.batch,
            num_workers=flags.num_workers, skipped=skipped if flags.skip_bad else None, label=role, amp=flags.amp), skipped)

    def collect() -> CsvFeatures:
        known.update((keys[index], (new, row)) for row, index in enumerate(missing))
        rows = [known[key] for key in keys]
        whole = new if len(missing) == len(records) else stored if stored and not stored.skipped else None
        features, skipped = whole or (
            {level: np.stack([source.features[level][row] for source, row in rows]) for level in LEVELS},
            {index: source.skipped[row] for index, (source, row) in enumerate(rows) if row in source.skipped})
        if len(skipped) == len(records):
            raise InputError(f"{csv_path}: none of its videos can be read; the first: {skipped[0]}")
        reused = stored is not None and stored.skipped.keys() == skipped.keys()
        if path and not reused:
            write_features(path, fingerprint, features, skipped)
        origin = f"read from {flags.feature_dir}" if reused else f"extracted for {len(missing)}" + (
            ", the others are known already" if len(missing) < len(records) else "")
        print(f"{csv_path}: {len(records)} {role} videos, {len(skipped)} skipped as unreadable, features {origin}",
              flush=True)
        readable, features = keep_readable(records, features, skipped)
        return CsvFeatures(readable, features, list(skipped.values()), settings.count_short(readable), reused)

    return run_on_all_ranks(lambda: collect() if context.is_main else None)


def load_same_backbone(flags: argparse.Namespace) -> tuple[nn.Module, dict[str, Any]]:
    """Returns what `load_backbone` returns for the flags, in every process; InputError unless all read the same weights."""
    backbone, weights = run_on_all_ranks(lambda: load_backbone(flags.weights, flags.net, flags.seed, flags.input_frames))
    check_same_on_all_ranks({"--weights, SHA-256": weights["checkpoint_sha256"]})
    return backbone, weights


def read_listed_features(role: str, labelled: bool, flags: argparse.Namespace, context: DistContext,
                         check: Callable[[list[VideoRecord]], object] = lambda records: None,
                         ) -> tuple[CsvFeatures | None, dict[str, Any]]:
    """Returns (`read_csv_features` of the videos of `--csv_file`, `load_backbone`'s entries). All processes must call this.

    Before anything that takes long, `check(videos)` is called, which raises InputError for what cannot be used.
    """
    def read_csv_file() -> list[VideoRecord]:
        records = read_records(flags.csv_file, labelled)
        check(records)
        make_out_dirs(flags.out.parent, flags)
        return records

    records = run_long_on_main(context, read_csv_file)
    backbone, weights = load_same_backbone(flags)
    return read_csv_features(role, flags.csv_file, records, backbone, weights, flags, context, {}), weights


def make_out_dirs(out: Path, flags: argparse.Namespace) -> None:
    """Makes the folder `out`, of --out, and that of --feature_dir; InputError where that cannot be."""
    make_out_dir(out)
    if flags.feature_dir is not None:
        make_out_dir(Path(flags.feature_dir), "--feature_dir")


def read_split_features(flags: argparse.Namespace, context: DistContext,
                        check: Callable[[EvalSplit, list[VideoRecord]], object] = lambda split, train: None,
                        ) -> tuple[list[SplitFeatures], dict[str, Any]]:
    """Returns (features of each split on the main process and an empty list on the others, `load_backbone`'s entries).

    All processes must call this. A video that several csv files list is extracted once. Before anything that takes long,
    `check(split, training videos)` is called, which raises InputError for what cannot be evaluated.
    """
    splits = find_splits(flags)

    def read_csv_files() -> list[dict[str, list[VideoRecord]]]:
        records = [read_split(split) for split in splits]
        for split, videos in zip(splits, records):
            check(split, videos["train"])
        make_out_dirs(Path(flags.out), flags)
        return records

    records = run_long_on_main(context, read_csv_files)
    backbone, weights = load_same_backbone(flags)
    known: KnownVideos = {}
    found = [[read_csv_features(role, split.csv_files[role], videos, backbone, weights, flags, context, known,
                                split.shots if role == "train" else None)
              for role, videos in of_split.items()] for split, of_split in zip(splits, records)]

    def collect() -> list[SplitFeatures]:
        results = []
        for split, (train, test) in zip(splits, found):
            labels, counts = {record.label for record in train.records}, {"features_reused": train.reused and test.reused}
            for record in test.records:
                if record.label not in labels:
                    raise InputError(f"{split.train_csv}: none of its videos of label {record.label} can be read, but test "
                                     f"videos of it can, such as {record.path}: nothing could be learned about that class")
            for role, videos in (("train", train), ("test", test)):
                counts |= {f"num_{role}_videos": len(videos.records), f"skipped_{role}_videos": videos.skipped,
                           f"num_{role}_videos_shorter_than_clip": videos.num_short}
            results.append(SplitFeatures(split, train, test, counts))
        return results

    return run_on_all_ranks(lambda: collect() if context.is_main else []), weights
