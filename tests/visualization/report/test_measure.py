"""Effective rank, spread, scores of prototypes, and which videos are shown."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from eval.features.extract import pool_levels
from dataset.transforms import scale_clips
from models.multilevel import MultiLevelModel
from utils.errors import InputError
from visualization.report.measure import effective_rank, load_model, prototype_scores, spread, spread_evenly


def test_effective_rank_counts_directions():
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(16, 16)))
    for directions in (1, 3, 8):
        corners = np.concatenate([np.eye(directions), -np.eye(directions)])  # mean 0, all directions alike
        features = corners @ basis[:directions] * 5 + rng.normal(size=16)    # turned, stretched, moved
        assert effective_rank(features.astype(np.float32)) == pytest.approx(directions, abs=1e-3)
    assert effective_rank(np.ones((5, 4), np.float32)) == 0
    assert effective_rank(np.zeros((5, 4), np.float32)) == 0
    shares = np.array([0.7, 0.2, 0.1])
    two_sided = np.concatenate([np.diag(shares), -np.diag(shares)])
    assert effective_rank(two_sided) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


def test_spread_is_a_share():
    rows = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
    assert spread(rows - rows.mean(axis=0)) == pytest.approx(1)
    assert spread(np.full((4, 3), 7.0)) == 0 and spread(np.zeros((4, 3))) == 0
    assert spread(rows + 100) < 0.02 < spread(rows + 1) < 1


def test_scores_are_those_that_training_sees():
    torch.manual_seed(0)
    model = MultiLevelModel("r3d10", 16, 5).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm3d)):
                module.running_mean.normal_(0, 0.1)
    clips = torch.randint(0, 256, (3, 16, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        model.prototype_head.normalize_()
        expected = model(scale_clips(clips)[:, None].repeat(1, 3, 1, 1, 1, 1), with_graph=False).scores[:, 0]
        features = pool_levels(model.backbone, clips)["high"].astype(np.float32)
    with torch.no_grad():
        model.prototype_head.prototypes.weight.mul_(3)  # as an update may leave them
    scores = prototype_scores(model.prototype_head, features, torch.device("cpu"))
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_videos_and_checkpoints_are_spread_evenly():
    assert spread_evenly(20, 100) == list(range(20)) and spread_evenly(0, 5) == []
    for most in (1, 2, 7, 19):
        chosen = spread_evenly(20, most)
        assert len(chosen) == most and chosen == sorted(chosen) and chosen[-1] == 19
        if most > 1:
            assert chosen[0] == 0 and max(np.diff(chosen)) - min(np.diff(chosen)) <= 1


def test_what_is_no_model_is_refused(tmp_path, full_run):
    torch.save({"format": "mfo", "kind": "backbone", "net": "r3d10", "model": {}}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="kind 'backbone'"):
        load_model(tmp_path / "a.pt")
    checkpoint = torch.load(full_run / "checkpoints" / "epoch_0012.pt")
    torch.save({**checkpoint, "num_prototypes": 6}, tmp_path / "b.pt")
    with pytest.raises(InputError, match="of another shape"):
        load_model(tmp_path / "b.pt")
