"""Features kept in files, each used again only for the same weights, csv, clips, precision and libraries."""
from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
import torch

from dataset.video_file import decoder_version
from eval.features.backbone import RANDOM
from eval.features.extract import ClipSettings, Rows
from models.levels import LEVELS
from utils.errors import InputError
from utils.files import file_sha256, write_atomically

FEATURE_FORMAT = 2  # raised whenever the same checkpoint, csv and settings would give another file


class StoredFeatures(NamedTuple):
    """Features of the videos of one csv: level -> float32 [N, C], and row -> reason of those that are NaN."""

    features: Rows
    skipped: dict[int, str]


def feature_fingerprint(
    weights: dict[str, Any], seed: int, csv_path: str, settings: ClipSettings, amp: str = "off"
) -> dict[str, Any]:
    """Returns all that the features depend on; `weights` as `load_backbone` returns them. Paths are relative to the csv's
    folder."""
    return {
        "format": FEATURE_FORMAT, "net": weights["net"], "checkpoint_sha256": weights["checkpoint_sha256"],
        "random_seed": seed if weights["weights"] == RANDOM else None, "csv_sha256": file_sha256(csv_path),
        "csv_folder": os.path.dirname(os.path.abspath(csv_path)), "torch": torch.__version__,
        "opencv": cv2.__version__, "simplejpeg": simplejpeg.__version__, "av": decoder_version(), "amp": amp,
        **asdict(settings),
    }


def store_path(feature_dir: str, fingerprint: dict[str, Any], name: str) -> Path:
    """Returns the file for these features: `name` and the fingerprint's digest."""
    return Path(feature_dir) / f"{name}_{hashlib.sha256(to_text(fingerprint).encode()).hexdigest()[:16]}.npz"


def to_text(fingerprint: dict[str, Any]) -> str:
    """Returns the fingerprint as it is written into the file."""
    return json.dumps(fingerprint, sort_keys=True)


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
