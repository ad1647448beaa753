"""Temporal order: what the maps and the figures mean."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from eval.features.backbone import load_backbone
from models.levels import LevelFeatures
from utils.errors import InputError
from visualization.main_temporal import order_evidence, order_maps, returncam
from visualization.temporal_order import both_orders, new_head, order_accuracy, order_targets, pair_batches

CPU = torch.device("cpu")


class Identity(nn.Module):
    """A backbone whose map at every level is the clip itself, or a mean over blocks of it."""

    def __init__(self, block: tuple[int, int, int] = (1, 1, 1)) -> None:
        super().__init__()
        self.pool = nn.AvgPool3d(block)
        self.norm = nn.BatchNorm3d(3)

    def forward(self, clips: torch.Tensor) -> LevelFeatures:
        return LevelFeatures(*[self.norm(self.pool(clips))] * 3)


def random_head(channels: int, seed: int = 0) -> nn.Linear:
    head = nn.Linear(channels, 2, bias=False)
    nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(seed))
    return head


@pytest.mark.parametrize(("net", "level"), [("r3d10", "high"), ("r3d10", "low"), ("s3d", "mid")])
def test_the_mean_of_a_map_is_the_logit(net, level):
    backbone, _ = load_backbone("random", net, seed=1)
    clips = torch.randn(2, 3, 8, 64, 48, generator=torch.Generator().manual_seed(0))
    head = random_head(backbone.channels[level])
    with torch.no_grad():
        features = getattr(backbone.eval()(clips), level).mean(dim=(2, 3, 4))
        head.weight /= head(features).abs().max()  # logits of up to 1
        logits = head(features)
    maps = order_maps(backbone.train(), head, clips, level)
    assert not backbone.training, "maps are those of a backbone in eval mode"
    torch.testing.assert_close(maps.mean(dim=(2, 3, 4)), logits, rtol=0, atol=1e-5)
    assert maps.shape[:2] == (2, 2) and maps.std() > 0


def interpolated(row: np.ndarray, size: int) -> np.ndarray:
    """`row` at `size` evenly spread places, by the formula: place (i + 1/2) n / size - 1/2, ends held."""
    places = (np.arange(size) + 0.5) * len(row) / size - 0.5
    return np.interp(places, np.arange(len(row)), row)


def test_each_clip_shows_its_own_channel_enlarged():
    clips = torch.randn(4, 3, 6, 8, 10, generator=torch.Generator().manual_seed(0))
    backbone, head = Identity((3, 2, 5)), random_head(3)
    maps = order_maps(backbone, head, clips)
    cams = returncam(backbone, head, clips)
    assert cams.shape == (4, 6, 8, 10)
    for row, (own, cam) in enumerate(zip(maps, cams)):
        expected = own[row % 2].numpy()
        for axis, size in enumerate((6, 8, 10)):
            expected = np.apply_along_axis(interpolated, axis, expected, size)
        np.testing.assert_allclose(cam.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("block", "kept"), [((4, 8, 8), True), ((2, 5, 5), True), ((3, 11, 13), False)])
def test_enlarging_keeps_the_logit_by_whole_factors_and_no_others(block, kept):
    # A block that does not divide the clip leaves a map of floor(size / block), so no whole factor.
    clips = torch.randn(2, 3, 8, 40, 40, generator=torch.Generator().manual_seed(0)).cumsum(dim=4).double()
    backbone, head = Identity(block).double(), random_head(3).double()
    logits = order_maps(backbone, head, clips).mean(dim=(2, 3, 4))[torch.arange(2), torch.arange(2)]
    means = returncam(backbone, head, clips).mean(dim=(1, 2, 3))
    assert torch.allclose(means, logits, rtol=0, atol=1e-9) == kept
    assert torch.allclose(means, logits, rtol=0.1), "approximately kept, all the same"


def test_an_odd_number_of_clips_is_refused():
    with pytest.raises(InputError, match="3 clip"):
        returncam(Identity(), random_head(3), torch.zeros(3, 3, 8, 8, 8))


def test_rows_are_natural_and_reversed_in_turn():
    clips = torch.arange(2 * 3 * 4).view(2, 3, 1, 4, 1)
    rows = both_orders(clips)
    assert torch.equal(rows[0::2], clips) and torch.equal(rows[1::2], clips.flip(1))
    assert order_targets(4, CPU).tolist() == [0, 1, 0, 1]


def test_evidence_is_in_natural_time_and_without_what_both_orders_share():
    clips = torch.randn(3, 3, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    head = new_head(3)
    with torch.no_grad():
        head.weight[0], head.weight[1] = torch.tensor([1., -2., 3.]), torch.tensor([-1., 2., -3.])
    maps = returncam(Identity(), head, both_orders(clips.movedim(1, -1)).movedim(-1, 1))
    evidence = order_evidence(maps)
    for clip in range(3):
        for frame in range(8):
            expected = (maps[2 * clip, frame] + maps[2 * clip + 1, 7 - frame]) / 2
            torch.testing.assert_close(evidence[clip, frame], expected)
    # This backbone sees each frame alone, so nothing it sees depends on the order.
    assert maps.abs().max() > 1 and evidence.abs().max() < 1e-5


def test_accuracy_is_that_of_a_loop():
    features = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    features[7] = features[6]  # a pair without any difference: half right either way
    head = random_head(4)
    logits = (features @ head.weight.T).tolist()
    right = sum((a > b) == (row % 2 == 0) for row, (a, b) in enumerate(logits))
    margins = [a - b for a, b in logits]
    won = sum(1.0 if x > y else 0.5 if x == y else 0.0 for x, y in zip(margins[0::2], margins[1::2]))
    expected = {"accuracy": right / 20, "pair_accuracy": won / 10}
    assert order_accuracy(head, features) == pytest.approx(expected)


def test_every_pair_comes_once_an_epoch_in_another_order_each_time():
    drawn, epochs = list(pair_batches((0, 1, 0), 10, 4, seed=3)), []
    assert [len(batch) for batch in drawn] == 3 * [4, 4, 2]
    for number, epoch in enumerate((0, 1, 0)):
        of_epoch = drawn[3 * number:3 * number + 3]
        assert {e for batch in of_epoch for e, _ in batch} == {epoch}
        epochs.append([pair for batch in of_epoch for _, pair in batch])
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] == epochs[2] != epochs[1]


def test_maps_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="not finite"):
        returncam(Identity(), random_head(3), torch.full((2, 3, 8, 8, 8), float("nan")))
