"""The monitor: what it finds, and that training is not affected by it."""
from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from eval.features.backbone import load_backbone
from eval.features.extract import ClipSettings
from eval.monitor import RIDGE, Monitor, ridge_scores
from utils.distributed import DistContext
from utils.errors import InputError

HERE = DistContext(0, 1, torch.device("cpu"))
CHEAP = ClipSettings(clips=1, clip_frames=8, img_dim=32)


def monitor(root: Path, train: str = "train", test: str = "test") -> Monitor:
    return Monitor(str(root / f"{train}.csv"), str(root / f"{test}.csv"), CHEAP, HERE, num_workers=1)


def test_a_backbone_that_sees_the_class_gives_everything(color_set, backbone_that_sees_the_class):
    assert monitor(color_set)(backbone_that_sees_the_class) == {"monitor_R@1": 1.0, "monitor_top1": 1.0}
    found = monitor(color_set, "train_2", "test_2")(backbone_that_sees_the_class)
    assert found == {"monitor_R@1": 12 / 18, "monitor_top1": 12 / 18}, "two of six classes have each other's labels"


def test_videos_that_cannot_be_read_are_left_out_and_counted(color_set, backbone_that_sees_the_class, tmp_path):
    """A monitor run must not cost the epoch that has just been trained."""
    for role in ("train", "test"):
        rows = (color_set / f"{role}.csv").read_text().split()
        csv = [f"{color_set / row}\n" for row in rows if row.startswith(role)]
        (tmp_path / f"{role}.csv").write_text("".join(csv) + f"{tmp_path / 'gone'}_{role},9,0\n")
    found = monitor(tmp_path)(backbone_that_sees_the_class)
    assert found == {"monitor_R@1": 1.0, "monitor_top1": 1.0, "monitor_skipped": 2}


def test_the_backbone_and_every_random_state_are_left_as_they_were(color_set):
    backbone, _ = load_backbone("random", "r3d10", seed=0)
    backbone.train().layer3.eval()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    modes = [module.training for module in backbone.modules()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first = monitor(color_set)(backbone)
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2]) and torch.is_grad_enabled()
    assert [module.training for module in backbone.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert monitor(color_set)(backbone) == first, "the same again: nothing is drawn"
    backbone(torch.zeros(2, 3, 8, 32, 32)).high.sum().backward()


def test_ridge_scores_are_those_of_the_penalized_least_squares_minimum():
    rng = np.random.default_rng(0)
    train, test = (rng.normal(2, 3, size=(n, 5)).astype(np.float32) for n in (40, 9))
    targets = rng.integers(0, 3, 40)
    scores = ridge_scores(train, targets, test)
    # By rows added to an ordinary least squares problem: sqrt(N * RIDGE) for each weight but the constant's.
    mean, std = train.mean(0), train.std(0)
    x = np.column_stack([(train - mean) / std, np.ones(40)])
    penalty = np.sqrt(40 * RIDGE) * np.eye(6)[:5]
    weights = np.linalg.lstsq(np.concatenate([x, penalty]), np.concatenate([np.eye(3)[targets], np.zeros((5, 3))]),
                              rcond=None)[0]
    np.testing.assert_allclose(scores, np.column_stack([(test - mean) / std, np.ones(9)]) @ weights, atol=1e-4)


def test_shuffled_labels_give_chance():
    rng = np.random.default_rng(0)
    train, test = (rng.normal(size=(n, 20)).astype(np.float32) for n in (300, 1000))
    scores = ridge_scores(train, rng.permutation(300) % 4, test)
    assert abs((scores.argmax(1) == rng.integers(0, 4, 1000)).mean() - 0.25) < 4.5 * np.sqrt(0.25 * 0.75 / 1000)


def test_only_the_main_process_counts_frames(tmp_path, monkeypatch):
    """Another one takes the main process's counts, and opens no video."""
    for role in ("train", "test"):
        (tmp_path / f"{role}.csv").write_text(f"{role}.mp4,,0\n")
    monkeypatch.setattr("eval.monitor.run_long_on_main", lambda context, work: {"train": [31], "test": [47]})
    other = Monitor(str(tmp_path / "train.csv"), str(tmp_path / "test.csv"), CHEAP, DistContext(1, 2, torch.device("cpu")))
    assert [video.num_frames for role in ("train", "test") for video in other.records[role]] == [31, 47]


def test_csv_files_of_two_data_sets_are_refused_at_the_start(color_set):
    (color_set / "unknown.csv").write_text("test_0_0,1,77\n")
    with pytest.raises(InputError, match="label 77"):
        monitor(color_set, test="unknown")
