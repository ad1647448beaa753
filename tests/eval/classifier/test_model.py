"""The classifier and its training step, against explicit loops and values."""
from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from eval.classifier.model import (DropoutHead, ProbeHead, VideoClassifier, decay_lr, level_channels, parameter_groups,
                                   pool_maps)
from eval.classifier.training import classifier_loss
from eval.features.backbone import load_backbone
from models.levels import LEVELS, LevelFeatures

PROBED = ("low", "mid", "high", "concat")


def build(levels=("high",), freeze=False, head=ProbeHead, num_classes=3) -> VideoClassifier:
    torch.manual_seed(0)
    backbone, _ = load_backbone("random", "r3d10", 0)
    return VideoClassifier(backbone, {level: head(level_channels(backbone, level), num_classes) for level in levels},
                           freeze)


def clone(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def step(model: VideoClassifier, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    clips, labels = torch.randn(4, 3, 8, 32, 32, generator=generator), torch.tensor([0, 1, 2, 0])
    model.train()
    optimizer.zero_grad()
    classifier_loss(model(clips), labels).total.backward()
    optimizer.step()


def test_groups_hold_every_parameter_once_each_at_its_rate():
    model = build()
    groups = parameter_groups(model, 1e-3, 1e-4)
    assert [(group["name"], group["lr"], group["base_lr"]) for group in groups] == [
        ("backbone", 1e-4, 1e-4), ("heads", 1e-3, 1e-3)]
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    assert {id(p) for p in model.backbone.parameters()} == {id(p) for p in groups[0]["params"]}
    [group] = parameter_groups(build(freeze=True), 0.1, 1e-4)
    assert (group["name"], group["lr"]) == ("heads", 0.1)


def test_rates_decay_by_ten_at_each_of_the_epochs():
    model = build()
    optimizer = torch.optim.Adam(parameter_groups(model, 1e-3, 1e-4), weight_decay=1e-3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-3, 1e-3]
    expected = {0: 1, 399: 1, 400: 0.1, 449: 0.1, 450: 0.01, 499: 0.01, 400 - 1: 1}  # back again, too
    for epoch, factor in expected.items():
        decay_lr(optimizer, epoch, (400, 450))
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-4 * factor, 1e-3 * factor],
                                                                                  rel=1e-12)
    decay_lr(optimizer, 10 ** 6, ())
    assert optimizer.param_groups[1]["lr"] == 1e-3


def test_dropout_zeroes_its_share_and_only_in_training():
    torch.manual_seed(0)
    head = DropoutHead(1000, 1, 0.9)
    nn.init.ones_(head[1].weight)
    nn.init.zeros_(head[1].bias)
    kept = head.train()(torch.ones(200, 1000)) / 10  # what stays is scaled by 1 / (1 - 0.9)
    assert 97 < kept.mean() < 103 and kept.std() > 5
    assert torch.equal(head.eval()(torch.ones(1, 1000)), torch.full((1, 1), 1000.0))


def test_probe_head_is_l2_norm_then_batch_norm_then_linear():
    head = ProbeHead(5, 3).train()
    x = torch.randn(7, 5)
    unit = x / x.norm(dim=1, keepdim=True)
    standard = (unit - unit.mean(dim=0)) / (unit.var(dim=0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(head(x), standard @ head.linear.weight.T + head.linear.bias)
    torch.testing.assert_close(head(100 * x), head(x))


def test_concat_weights_the_levels_equally():
    maps = LevelFeatures(*(torch.rand(2, c, 2, 3, 3) * scale for c, scale in ((2, 1), (3, 100), (4, 1e-3))))
    pooled = pool_maps(maps)
    assert pooled["concat"].shape == (2, 9)
    for level, part in zip(LEVELS, pooled["concat"].split((2, 3, 4), dim=1)):
        torch.testing.assert_close(part.norm(dim=1), torch.ones(2))
        torch.testing.assert_close(part * pooled[level].norm(dim=1, keepdim=True), pooled[level])
    torch.testing.assert_close(pooled["mid"], maps.mid.flatten(2).mean(dim=2))


def test_frozen_backbone_keeps_every_bit_and_a_free_one_does_not():
    for freeze in (True, False):
        model = build(freeze=freeze)
        before = clone(model)
        norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm3d)]
        optimizer = torch.optim.SGD(parameter_groups(model, 0.1, 0.1), momentum=0.9, weight_decay=0.5)
        for seed in range(2):
            step(model, optimizer, seed)
            assert model.heads["high"].norm.training and all(m.training != freeze for m in norms)
        same = {name: torch.equal(value, before[name]) for name, value in model.state_dict().items()}
        assert all(same[name] == freeze for name in same if name.startswith("backbone."))
        assert not any(same[name] for name in same if name.startswith("heads."))
        assert not any(m.training for m in model.eval().modules())


def test_heads_side_by_side_become_what_each_becomes_alone():
    together = build(PROBED, freeze=True)
    start = copy.deepcopy(together)
    optimizer = torch.optim.SGD(parameter_groups(together, 0.1, 0.1), momentum=0.9, weight_decay=1e-3)
    for seed in range(2):
        step(together, optimizer, seed)
    for level in ("mid", "concat"):
        alone = VideoClassifier(start.backbone, {level: copy.deepcopy(start.heads[level])}, True)
        optimizer = torch.optim.SGD(parameter_groups(alone, 0.1, 0.1), momentum=0.9, weight_decay=1e-3)
        for seed in range(2):
            step(alone, optimizer, seed)
        expected = clone(together.heads[level])
        for name, value in alone.heads[level].state_dict().items():
            torch.testing.assert_close(value, expected[name])
