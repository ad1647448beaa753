"""Features kept in files, each found again only for the weights, csv, clips and precision that it was made of."""
from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
import torch

from dataset.video_file import decoder_version
from eval.features.extract import RANDOM, ClipSettings
from models.levels import LEVELS
from utils.errors import InputError
from utils.files import file_sha256

FEATURE_FORMAT = 2  # raised whenever the same checkpoint, csv and settings would give another file


class Features(NamedTuple):
    """Features of the videos of one csv: level -> float32 [N, C], and why each of the rows that are NaN is one."""

    features: dict[str, np.ndarray]
    skipped: dict[int, str]


def feature_fingerprint(
    weights: dict[str, Any], seed: int, csv_path: str, settings: ClipSettings, amp: str = "off"
) -> dict[str, Any]:
    """What decides the features: weights (as `load_backbone` tells them), csv, its folder (paths are relative to it),
    clips, precision, and the libraries that decode and compute."""
    return {
        "format": FEATURE_FORMAT, "net": weights["net"], "checkpoint_sha256": weights["checkpoint_sha256"],
        "random_seed": seed if weights["weights"] == RANDOM else None, "csv_sha256": file_sha256(csv_path),
        "csv_folder": os.path.dirname(os.path.abspath(csv_path)), "torch": torch.__version__,
        "opencv": cv2.__version__, "simplejpeg": simplejpeg.__version__, "av": decoder_version(), "amp": amp,
        **asdict(settings),
    }


def store_path(feature_dir: str, fingerprint: dict[str, Any], name: str) -> Path:
    """The file for these features; `name` is for the reader's eye, the fingerprint's digest tells it from others."""
    return Path(feature_dir) / f"{name}_{hashlib.sha256(mark_of(fingerprint).encode()).hexdigest()[:16]}.npz"


def mark_of(fingerprint: dict[str, Any]) -> str:
    """The fingerprint as the text that the file holds."""
    return json.dumps(fingerprint, sort_keys=True)


def write_features(
    path: Path, fingerprint: dict[str, Any], features: dict[str, np.ndarray], skipped: dict[int, str]
) -> None:
    """Store level -> float32 [N, C] in a folder that is there; the file is whole or not there at all.

    `skipped`: row -> reason, of the videos that cannot be read.
    """
    partial_path = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial_path, "wb") as file:
            np.savez(file, fingerprint=np.array(mark_of(fingerprint)), skipped=np.array(json.dumps(skipped)),
                     **features)
        os.replace(partial_path, path)
    except OSError as error:
        partial_path.unlink(missing_ok=True)
        raise InputError(f"--feature_dir {path.parent}: cannot store there: {error.strerror}") from error


def read_features(path: Path, fingerprint: dict[str, Any]) -> Features | None:
    """What `write_features` stored, or None where there is no file.

    A file that cannot be read, or that holds another fingerprint, is an InputError.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = str(stored["fingerprint"])
            features = {level: stored[level] for level in LEVELS}
            skipped = {int(row): reason for row, reason in json.loads(str(stored["skipped"])).items()}
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: no whole file of features; remove it ({type(error).__name__})") from error
    if found != mark_of(fingerprint):
        raise InputError(f"{path}: holds features of other weights, videos, clips or precision; remove it")
    return Features(features, skipped)
