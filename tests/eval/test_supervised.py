"""The classifier, its training step, and class probabilities of whole videos, against explicit loops and values."""
from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from dataset.frames import read_frames
from dataset.records import VideoRecord
from dataset.sampling import uniform_clips, window_clips
from dataset.transforms import FinetuneAugmentation, TestCrops, scale_clips
from dataset.videos import LabelledVideos
from eval.classifier.model import (DropoutHead, ProbeHead, VideoClassifier, decay_lr, level_channels, parameter_groups,
                             pool_maps)
from eval.classifier.training import classifier_loss
from eval.features.backbone import load_backbone
from eval.features.extract import ClipSettings, predict
from eval.metrics import accuracies, confusion_matrix, per_class, ranks_of_truth
from models.levels import LEVELS, LevelFeatures
from utils.distributed import DistContext
from utils.errors import InputError

HERE = DistContext(0, 1, torch.device("cpu"))
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


def test_concat_gives_the_levels_equal_say():
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


def test_loss_and_accuracy_of_each_level():
    logits = {"low": torch.tensor([[2.0, 0.0], [0.0, 1.0]]), "high": torch.tensor([[0.0, 0.0], [3.0, 0.0]])}
    loss = classifier_loss(logits, torch.tensor([0, 1]))
    low = (np.log1p(np.exp(-2)) + np.log1p(np.exp(-1))) / 2
    high = (np.log(2) + np.log1p(np.exp(3))) / 2
    assert loss.terms["loss_low"].item() == pytest.approx(low) and loss.terms["loss_high"].item() == pytest.approx(high)
    assert loss.total.item() == pytest.approx(low + high)
    assert (loss.metrics["accuracy_low"].item(), loss.metrics["accuracy_high"].item()) == (1.0, 0.5)


@pytest.fixture
def videos(tmp_path, write_coded_video) -> list[VideoRecord]:
    return [VideoRecord(write_coded_video(tmp_path / f"v{n}", n), n, label)
            for label, n in enumerate((21, 40, 3, 29))]


def test_an_unreadable_video_is_replaced_by_the_next(videos, tmp_path):
    absent = [VideoRecord(str(tmp_path / name), 9, 7) for name in ("gone", "lost")]
    records = [videos[0], *absent, videos[1]]
    clips = LabelledVideos(records, 8, 1, FinetuneAugmentation(16), 0)
    replaced = LabelledVideos(records, 8, 1, FinetuneAugmentation(16), 0, skip_bad=True)
    for index, shown in ((0, 0), (1, 3), (2, 3), (3, 3)):
        clip, label, own, reason = replaced[5, index]
        expected, expected_label = clips[5, shown][:2]
        assert torch.equal(clip, expected) and label == expected_label and own == index
        assert (records[index].path in reason) == (index in (1, 2)) and bool(reason) == (index in (1, 2))
    with pytest.raises(InputError, match="gone"):
        clips[5, 1]
    with pytest.raises(InputError, match="none of 2 videos can be read; the first: .*gone"):
        LabelledVideos(absent, 8, 1, FinetuneAugmentation(16), 0, skip_bad=True)[0, 0]


class PixelClassifier(nn.Module):
    """Logits that depend on when and where the clip is bright."""

    def forward(self, clips: torch.Tensor) -> dict[str, torch.Tensor]:
        first, last, left = clips[:, :, 0], clips[:, :, -1], clips[..., : clips.shape[-1] // 2]
        logits = torch.stack([first.mean(dim=(1, 2, 3)), last.mean(dim=(1, 2, 3)), left.mean(dim=(1, 2, 3, 4))], dim=1)
        return {"low": 4 * logits, "high": -6 * logits}


@pytest.mark.parametrize(("clips", "crops"), [(3, 1), (1, 5), ("windows", 10)])
def test_probabilities_are_the_mean_over_clips_then_crops(videos, clips, crops):
    settings = ClipSettings(clips=clips, clip_frames=8, stride=2, img_dim=32, crops=crops)
    found = predict(PixelClassifier(), videos, settings, HERE, batch=4, num_workers=0)
    for row, record in enumerate(videos):
        indices = (window_clips(record.num_frames, 8, 2) if clips == "windows" else
                   uniform_clips(record.num_frames, 8, 2, clips))
        per_crop = {level: [[] for _ in range(crops)] for level in ("low", "high")}
        for clip in indices:
            views = TestCrops(32, crops)(read_frames(record.path, clip, record.num_frames))
            for crop, view in enumerate(views):
                one = scale_clips(torch.from_numpy(np.ascontiguousarray(view)))[None]
                for level, logits in PixelClassifier()(one).items():
                    per_crop[level][crop].append(logits[0].softmax(dim=0).double().numpy())
        for level, parts in per_crop.items():
            expected = np.mean([np.mean(part, axis=0) for part in parts], axis=0)
            np.testing.assert_allclose(found[level][row], expected, rtol=0, atol=1e-6)
            assert found[level][row].sum() == pytest.approx(1)
    assert len(np.unique(found["low"][:, 0])) == 4, "or nothing was shown: the videos must differ"


def test_workers_and_company_change_not_a_bit_and_the_model_stays_in_its_mode(videos):
    model, settings = build(), ClipSettings(clips=3, clip_frames=8, stride=2, img_dim=32)
    model.train()
    before = clone(model)
    found = predict(model, videos, settings, HERE, batch=2, num_workers=0)["high"]
    again = predict(model, videos[::-1], settings, HERE, batch=2, num_workers=1)["high"]
    assert np.array_equal(found, again[::-1]) and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_unreadable_test_videos_stop_or_are_told(videos, tmp_path):
    records = [videos[0], VideoRecord(str(tmp_path / "gone"), 9, 1), videos[1]]
    settings = ClipSettings(clips=1, clip_frames=8, img_dim=32)
    with pytest.raises(InputError, match="gone"):
        predict(PixelClassifier(), records, settings, HERE, batch=2, num_workers=0)
    skipped: dict[int, str] = {}
    found = predict(PixelClassifier(), records, settings, HERE, batch=2, num_workers=0, skipped=skipped)["low"]
    assert list(skipped) == [1] and "gone" in skipped[1]
    assert np.isnan(found[1]).all() and np.isfinite(found[[0, 2]]).all()


def test_ranks_and_accuracies_by_sorting():
    rng = np.random.default_rng(0)
    probabilities = rng.integers(0, 4, (60, 7)) / 4  # many ties
    labels = rng.integers(0, 7, 60)
    ranks = [sorted(range(7), key=lambda c: (-row[c], c)).index(label) for row, label in zip(probabilities, labels)]
    assert ranks_of_truth(probabilities, labels).tolist() == ranks
    found = accuracies(probabilities, labels)
    assert found["top1"] == sum(rank < 1 for rank in ranks) / 60
    assert found["top5"] == sum(rank < 5 for rank in ranks) / 60
    by_class = [np.mean([rank == 0 for rank, label in zip(ranks, labels) if label == c]) for c in range(7)]
    assert found["mean_class"] == pytest.approx(np.mean(by_class)) and 0 < found["top1"] < found["top5"] < 1
    assert "top5" not in accuracies(probabilities[:, :5], labels % 5), "it could not miss"


def test_per_class_table():
    matrix = confusion_matrix(np.array([0, 0, 0, 1, 1, 2, 2]), np.array([0, 0, 2, 1, 1, 0, 0]), 4)
    rows = per_class(matrix, {7: "run", 8: "walk", 21: "jump", 35: "never tested"})
    assert [(row["class"], row["name"], row["videos"], row["taken_for"], row["taken_for_videos"]) for row in rows] == [
        (7, "run", 3, 21, 1), (8, "walk", 2, None, 0), (21, "jump", 2, 7, 2)]
    assert [row["top1"] for row in rows] == pytest.approx([2 / 3, 1, 0])
