"""Stored features: found again for the same weights, csv and clips alone."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.features.extract import ClipSettings
from eval.features.csv_features import feature_fingerprint, read_features, store_path, write_features
from models.levels import LEVELS
from utils.errors import InputError

SMALL = ClipSettings(clips=3, clip_frames=8, stride=2, img_dim=32)
ROWS = {level: np.arange(4, dtype=np.float32).reshape(2, 2) + number for number, level in enumerate(LEVELS)}


def fingerprint(csv: Path, settings: ClipSettings = SMALL, sha: str = "a", amp: str = "off") -> dict:
    weights = {"weights": "w.pt", "net": "r3d10", "checkpoint_sha256": sha, "input": {}}
    return feature_fingerprint(weights, 0, str(csv), settings, amp)


def test_only_the_same_weights_csv_and_clips_name_the_same_file(tmp_path, monkeypatch):
    csv = tmp_path / "a.csv"
    csv.write_text("v,9,0\n")
    other_folder = tmp_path / "elsewhere"
    other_folder.mkdir()
    (other_folder / "a.csv").write_text("v,9,0\n")  # same bytes, other videos: paths are relative to the csv
    marks = [fingerprint(csv), fingerprint(csv, sha="b"), fingerprint(csv, replace(SMALL, clips="windows")),
             fingerprint(other_folder / "a.csv"), fingerprint(csv, amp="bf16")]
    csv.write_text("v,9,1\n")
    marks.append(fingerprint(csv))
    csv.write_text("v,9,0\n")
    another = {"torch.__version__": "0.1", "cv2.__version__": "0.1", "simplejpeg.__version__": "0.1",
               "av.__version__": "0.1"}
    for name, value in another.items():  # decodes or computes in another way
        with monkeypatch.context() as patched:
            patched.setattr(name, value)
            marks.append(fingerprint(csv))
    paths = [store_path(str(tmp_path / "store"), mark, "train") for mark in marks]
    assert len(set(paths)) == len(paths)
    assert store_path(str(tmp_path / "store"), fingerprint(csv), "train") == paths[0]


def test_what_is_written_is_read_bit_by_bit_and_a_wrong_or_broken_file_is_refused(tmp_path):
    csv = tmp_path / "a.csv"
    csv.write_text("v,9,0\n")
    mark = fingerprint(csv)
    (tmp_path / "store").mkdir()
    path = store_path(str(tmp_path / "store"), mark, "train")
    assert read_features(path, mark) is None
    write_features(path, mark, ROWS, {1: "no \"folder\""})
    stored, skipped = read_features(path, mark)
    assert skipped == {1: "no \"folder\""}
    assert stored.keys() == ROWS.keys() and all(np.array_equal(stored[level], ROWS[level]) for level in LEVELS)
    assert list(path.parent.iterdir()) == [path], "no partial file is left"
    with pytest.raises(InputError, match="other weights"):
        read_features(path, fingerprint(csv, sha="b"))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="remove it"):
        read_features(path, mark)
    with open(path, "wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InputError, match="remove it"):
        read_features(path, mark)


def test_a_file_that_cannot_be_written_is_reported_by_the_flag(tmp_path):
    with pytest.raises(InputError, match="^--feature_dir .*absent: cannot store there"):
        write_features(store_path(str(tmp_path / "absent"), {}, "train"), {}, ROWS, {})
