"""A small labelled data set, and a backbone that sees its classes."""
from __future__ import annotations

import contextlib
import csv
import random
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import eval.features.csv_features
from dataset.records import VideoRecord
from eval import finetune
from dataset.transforms import IMAGENET
from models.levels import LevelFeatures
from tests import classifier_runs
from tests.color_videos import write_color_video

COLORS = [(230, 20, 20), (20, 230, 20), (20, 20, 230), (210, 210, 20), (20, 210, 210), (210, 20, 210)]


@pytest.fixture(scope="session")
def color_set(tmp_path_factory) -> Path:
    """Six classes that differ in color: train.csv has three videos of each, test.csv two, of 1 to 11 frames.

    train_1.csv and test_1.csv are the same; split 2 has one training video of each class less, which is tested, and
    classes 0 and 1 of its training videos have each other's labels.
    """
    root = tmp_path_factory.mktemp("colors")
    rng = np.random.default_rng(0)
    rows = {"train": [], "test": []}
    for role, per_class in (("train", 3), ("test", 2)):
        for label, color in enumerate(COLORS):
            for number in range(per_class):
                folder, num_frames = root / f"{role}_{label}_{number}", 1 + 5 * number
                write_color_video(folder, num_frames, color, rng)
                rows[role].append((folder.name, num_frames, label))
    moved = [row for row in rows["train"] if row[0].endswith("_2")]
    swapped = [(folder, num_frames, {0: 1, 1: 0}.get(label, label))
               for folder, num_frames, label in rows["train"] if (folder, num_frames, label) not in moved]
    files = {"train": rows["train"], "test": rows["test"], "train_1": rows["train"], "test_1": rows["test"],
             "train_2": swapped, "test_2": rows["test"] + moved}
    for name, content in files.items():
        with open(root / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows(content)
    return root


class MeanColor(nn.Module):
    """A backbone whose features are the clip itself: its mean colors after pooling."""

    channels = {"low": 3, "mid": 3, "high": 3}

    def forward(self, clips: torch.Tensor) -> LevelFeatures:
        return LevelFeatures(clips, clips, clips)


@pytest.fixture
def backbone_that_sees_the_class(monkeypatch) -> nn.Module:
    """MeanColor, which a command gets whatever weights it names."""
    monkeypatch.setattr(eval.features.csv_features, "load_backbone", lambda weights, net, seed, frames: (MeanColor(), {
        "weights": weights, "net": net, "checkpoint_sha256": None, "pretrained_epochs": None, "input": IMAGENET}))
    return MeanColor()


@pytest.fixture
def dist_url() -> str:
    """A free port of this machine, as a value of --dist-url; below those that connections are given by themselves."""
    while True:
        port = random.randrange(20000, 30000)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("localhost", port))
            return f"tcp://localhost:{port}"


@pytest.fixture(scope="session")
def colors(tmp_path_factory) -> Path:
    """Three classes that differ in color: train.csv has four videos of each, test.csv three or two, of 4 to 13 frames."""
    root = tmp_path_factory.mktemp("three_colors")
    rng = np.random.default_rng(0)
    for role, counts in (("train", (4, 4, 4)), ("test", (3, 2, 2))):
        rows = []
        for label, color, count in zip(classifier_runs.LABELS, classifier_runs.COLORS, counts):
            for number in range(count):
                folder, num_frames = root / f"{role}_{label}_{number}", 4 + 3 * number
                write_color_video(folder, num_frames, color, rng)
                rows.append((folder.name, num_frames, label))
        classifier_runs.write_csv(root / f"{role}.csv", rows)
    return root


@pytest.fixture(scope="session")
def straight(colors, tmp_path_factory) -> Path:
    """The directory of an uninterrupted run that trains everything."""
    out = tmp_path_factory.mktemp("straight") / "run"
    assert finetune.main(classifier_runs.arguments(colors, out)) == 0
    return out


@pytest.fixture
def coded_videos(tmp_path, write_coded_video) -> list[VideoRecord]:
    """Four videos of 3 to 40 frames, each with another label, whose frames show their number."""
    return [VideoRecord(write_coded_video(tmp_path / f"v{n}", n), n, label) for label, n in enumerate((21, 40, 3, 29))]
