"""Crops, flips and augmentations against torchvision on Pillow images; distributions of the draws."""
from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as reference

from dataset import transforms
from dataset.color import draw_channels, draw_jitter
from dataset.transforms import (FINETUNE_JITTER, PRETRAIN_JITTER, CropBox, FinetuneAugmentation, PretrainAugmentation,
                                RESIDUAL, TestCrops, crop_and_flip, draw_crop, scale_clips)
from tests.photo_frames import difference, photo_like

def assert_uniform(values: np.ndarray, low: float, high: float) -> None:
    """Every decile of [low, high] holds a tenth of the values, within five standard deviations."""
    assert values.min() >= low and values.max() <= high
    counts, _ = np.histogram(values, bins=10, range=(low, high))
    assert np.abs(counts - len(values) / 10).max() < 5 * np.sqrt(len(values) * 0.09)


def assert_rate(count: int, num: int, probability: float) -> None:
    assert abs(count - num * probability) < 5 * np.sqrt(num * probability * (1 - probability))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("box", "mean_bound"),
    [(CropBox(11, 23, height=117, width=160), 0.01), (CropBox(2, 59, height=143, width=109), 0.25)],
)
def test_crop_and_flip_equal_torchvision(box: CropBox, mean_bound: float, flip: bool) -> None:
    """Newer Pillow resizes a tall crop's columns before its rows, so that the rounding between falls another way."""
    frames = photo_like(3, 150, 200)
    ours = crop_and_flip(frames, box, flip, 112)
    assert ours.flags.c_contiguous
    for frame, result in zip(frames, ours):
        corner = box.top, box.left, box.height, box.width
        image = reference.resized_crop(Image.fromarray(frame), *corner, [112, 112])
        off = difference(result, reference.hflip(image) if flip else image)
        assert off.max() <= 1 and off.mean() < mean_bound


def test_a_crop_of_a_frame_of_another_size_shows_the_same_part() -> None:
    """As frames decoded at half: the same draws, each edge at most half a pixel of the smaller frame away."""
    augment, rng = PretrainAugmentation(112), np.random.default_rng(0)
    for seed in range(50):
        views = []
        for width, height in (augment.frame_size, (170, 128)):
            rows, columns = np.mgrid[:height, :width]
            place = np.stack([240 * (columns + 0.5) / width, 240 * (rows + 0.5) / height, 0 * rows], -1)
            view, draws = augment.before_color(place.round().astype(np.uint8)[None], np.random.default_rng(seed))
            views.append((view, draws))
        (whole, whole_draws), (half, half_draws) = views
        assert all(np.array_equal(a, b) for a, b in zip(whole_draws, half_draws))
        off = difference(whole, half).max(axis=(0, 1, 2))  # the frame's sides are 240 levels
        assert off[0] <= 240 * 0.5 / 170 + 2 and off[1] <= 240 * 0.5 / 128 + 2 and off[2] == 0
    box = draw_crop(150, 200, 0.5, rng)
    assert box.rescaled((200, 150), (200, 150)) == box


def test_crop_draws_follow_the_recipe() -> None:
    """Against a rejection sampler over the whole population at once."""
    height, width, num = 150, 200, 20000
    rng = np.random.default_rng(0)
    boxes = [draw_crop(height, width, 0.5, rng) for _ in range(num)]
    tops, lefts, heights, widths = (
        np.array([getattr(box, name) for box in boxes]) for name in ("top", "left", "height", "width")
    )
    assert (tops >= 0).all() and (lefts >= 0).all()
    assert (tops + heights <= height).all() and (lefts + widths <= width).all()

    other = np.random.default_rng(1)
    areas = other.uniform(0.5, 1, 10 * num) * height * width
    aspects = other.uniform(3 / 4, 4 / 3, 10 * num)
    sides = np.stack([np.sqrt(areas * aspects), np.sqrt(areas / aspects)])
    swap = other.random(10 * num) < 0.5
    sides[:, swap] = sides[::-1, swap]
    sides = np.rint(sides[:, (np.rint(sides[0]) <= width) & (np.rint(sides[1]) <= height)])
    for ours, theirs in ((widths, sides[0]), (heights, sides[1]), (widths / heights, sides[0] / sides[1])):
        for level in (0.1, 0.25, 0.5, 0.75, 0.9):
            threshold = np.quantile(theirs, level)
            assert_rate((ours <= threshold).sum(), num, (theirs <= threshold).mean())
    for start, room in ((tops, height - heights), (lefts, width - widths)):
        spread = room >= 20
        assert_uniform(((start + 0.5) / (room + 1))[spread], 0, 1)


def test_a_crop_that_never_fits_is_the_largest_centred_square() -> None:
    rng = np.random.default_rng(0)
    assert {draw_crop(20, 101, 0.5, rng) for _ in range(50)} == {CropBox(0, 40, 20, 20)}
    assert {draw_crop(101, 20, 0.5, rng) for _ in range(50)} == {CropBox(40, 0, 20, 20)}


@pytest.mark.parametrize("strengths", [PRETRAIN_JITTER, FINETUNE_JITTER])
def test_jitter_draws_are_uniform(strengths: tuple[float, ...]) -> None:
    factors, order = draw_jitter(20000, strengths, np.random.default_rng(0))
    for column, strength, center in zip(factors.T, strengths, (1, 1, 1, 0)):
        assert_uniform(column, center - strength, center + strength)
    assert np.abs(np.corrcoef(factors.T) - np.eye(4)).max() < 5 / np.sqrt(len(factors))
    orders, counts = np.unique(order, axis=0, return_counts=True)
    assert len(orders) == 24 and (np.sort(orders, axis=1) == np.arange(4)).all()
    for count in counts:
        assert_rate(count, len(order), 1 / 24)


def test_jitter_strengths_of_the_recipes() -> None:
    assert PRETRAIN_JITTER == (0.5, 0.5, 0.5, 0.25) and FINETUNE_JITTER == (0.4, 0.4, 0.4, 0.1)


def test_channel_draws() -> None:
    channels = draw_channels(20000, np.random.default_rng(0))
    assert_rate((channels < 0).sum(), 20000, 0.5)
    for channel in range(3):
        assert_rate((channels == channel).sum(), 20000, 1 / 6)


def marker_clip(num: int) -> np.ndarray:
    """One frame ``num`` times: an irregular pattern in black and white, so that two crops look different."""
    mask = np.random.default_rng(3).random((6, 8)) < 0.5
    frame = cv2.resize(mask.astype(np.uint8) * 255, (200, 150), interpolation=cv2.INTER_NEAREST)
    return np.repeat(frame[None, ..., None].repeat(3, -1), num, axis=0)


def test_a_pretraining_view_shares_crop_and_flip_but_not_color() -> None:
    augment, rng = PretrainAugmentation(48), np.random.default_rng(0)
    clip, masks = marker_clip(16), set()
    for _ in range(20):
        view = augment(clip, rng)
        assert view.shape == (16, 48, 48, 3) and view.dtype == np.uint8
        grey = view[..., 0].astype(int)
        low, high = grey.min(axis=(1, 2)), grey.max(axis=(1, 2))
        contrast = (high - low)[:, None, None]
        relative = (grey - low[:, None, None]) / contrast
        # Resizing blends shades at the edges; away from them a pixel is black or white in every frame alike.
        inner = np.abs(relative - 0.5) > 0.4
        assert inner.mean() > 0.6
        assert ((relative > 0.5) == (relative[:1] > 0.5))[inner & inner[:1]].all()
        assert len(set(zip(low.tolist(), high.tolist()))) > 4
        masks.add((relative[0] > 0.5).tobytes())
    assert len(masks) == 20


@pytest.mark.parametrize(
    ("augmentation", "min_area"), [(PretrainAugmentation, 0.5), (FinetuneAugmentation, 0.2)]
)
def test_each_recipe_draws_one_crop_a_clip_from_its_range(
    augmentation: type, min_area: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxes: list[CropBox] = []
    monkeypatch.setattr(transforms, "draw_crop", lambda *args: boxes.append(draw_crop(*args)) or boxes[-1])
    augment, rng, clip = augmentation(8), np.random.default_rng(0), np.zeros((3, 150, 200, 3), np.uint8)
    for _ in range(400):
        augment(clip, rng)
    areas = np.array([box.height * box.width / (150 * 200) for box in boxes])
    assert len(areas) == 400 and min_area - 0.01 < areas.min() < min_area + 0.02


def test_pretraining_flips_half_of_the_views() -> None:
    clip = np.zeros((1, 30, 40, 3), np.uint8)
    clip[:, :, 20:] = 255
    augment, rng = PretrainAugmentation(8), np.random.default_rng(0)
    views = [augment(clip, rng)[0, :, :, 0].astype(int) for _ in range(1000)]
    flips = [view[:, 0].mean() > view[:, -1].mean() for view in views]
    assert_rate(sum(flips), 1000, 0.5)


def test_channels_are_split_frame_by_frame() -> None:
    clip = np.full((16, 30, 40, 3), (200, 90, 40), np.uint8)
    augment, rng = PretrainAugmentation(8), np.random.default_rng(0)
    views = np.stack([augment(clip, rng) for _ in range(100)])[:, :, 4, 4].astype(int)
    split = (views.max(-1) == views.min(-1)).sum(1)
    assert_rate(split.sum(), 1600, 0.5)
    # On their own draws the frames split in a view have the binomial variance, 4; on one draw it were 64.
    assert 2 < split.var() < 8


def test_finetune_augmentation_treats_every_frame_alike() -> None:
    augment, rng = FinetuneAugmentation(32), np.random.default_rng(0)
    clip = photo_like(1, 60, 80).repeat(4, axis=0)
    for _ in range(30):
        view = augment(clip, rng)
        assert view.shape == (4, 32, 32, 3) and (view == view[:1]).all()


def test_finetune_jitter_and_flip_rates() -> None:
    clip = np.zeros((1, 30, 40, 3), np.uint8)
    clip[:, :, :20], clip[:, :, 20:] = (90, 60, 60), (150, 110, 110)
    augment, rng = FinetuneAugmentation(8), np.random.default_rng(0)
    views = np.concatenate([augment(clip, rng) for _ in range(2000)])
    colors = {(90, 60, 60), (150, 110, 110)}
    plain = [tuple(view[4, 0]) in colors or tuple(view[4, -1]) in colors for view in views]
    assert_rate(len(plain) - sum(plain), 2000, 0.3)
    left, right = views[:, 4, 0].astype(int).sum(-1), views[:, 4, -1].astype(int).sum(-1)
    flipped, upright = (left > right).sum(), (left < right).sum()
    assert_rate(flipped, flipped + upright, 0.5)
    assert flipped + upright > 800


@pytest.mark.parametrize("size", [(90, 120), (120, 90), (40, 64), (128, 128)])
def test_test_crops(size: tuple[int, int]) -> None:
    clip = photo_like(2, *size)
    one, five, ten = (TestCrops(56, num)(clip) for num in (1, 5, 10))
    assert [len(crops) for crops in (one, five, ten)] == [1, 5, 10]
    assert ten.shape[1:] == (2, 56, 56, 3) and ten.dtype == np.uint8
    assert np.array_equal(five[:1], one) and np.array_equal(ten[:5], five)
    assert np.array_equal(ten[5:], five[:, :, :, ::-1])
    resized = reference.resize(Image.fromarray(clip[1]), 64)
    wanted = reference.five_crop(resized, [56, 56])
    for ours, theirs in zip(five[[1, 2, 3, 4, 0], 1], wanted):
        assert difference(ours, theirs).mean() < 0.01


def test_residual_frames_are_steps_of_the_scaled_frames_and_the_last_is_repeated() -> None:
    clips = torch.from_numpy(photo_like(8, 10, 12)).reshape(2, 4, 10, 12, 3)
    clips[:, :, :5] = clips[:, :1, :5]  # a static part
    mean, std = [0.5, 0.4, 0.3], [0.1, 0.2, 0.3]
    scaled = scale_clips(clips, mean, std)
    for channels_last in (False, True):
        residual = scale_clips(clips, mean, std, channels_last, RESIDUAL)
        assert residual.shape == scaled.shape and residual.is_contiguous() == (not channels_last)
        for t in range(3):
            torch.testing.assert_close(residual[:, :, t], scaled[:, :, t + 1] - scaled[:, :, t], rtol=0, atol=1e-5)
        assert torch.equal(residual[:, :, 3], residual[:, :, 2])
        assert not residual[:, :, :, :5].any() and residual[:, :, :, 5:].any()


def test_one_color_draw_per_clip_changes_all_frames_alike_and_crops_no_others() -> None:
    frame = photo_like(1, 150, 200)[0]
    per_frame, per_clip = (PretrainAugmentation(32, color_per_clip=alike) for alike in (False, True))
    for seed in range(5):
        view, draws = per_clip.before_color([frame] * 4, np.random.default_rng(seed))
        assert all(len(x) == 4 and (x == x[:1]).all() for x in draws)
        assert np.array_equal(view, per_frame.before_color([frame] * 4, np.random.default_rng(seed))[0])
        alike, changing = (augment([frame] * 4, np.random.default_rng(seed)) for augment in (per_clip, per_frame))
        assert (alike == alike[:1]).all() and (changing != changing[:1]).any() and (alike != view).any()


@pytest.mark.parametrize("augmentation", [PretrainAugmentation, FinetuneAugmentation])
def test_without_flips_the_other_draws_stay(augmentation: type) -> None:
    frame, mirrored = photo_like(1, 150, 200)[0], 0
    for seed in range(8):
        flipped, plain = (augmentation(32, flip=flip)([frame] * 2, np.random.default_rng(seed)) for flip in (True, False))
        if not np.array_equal(flipped, plain):
            assert np.array_equal(flipped, plain[:, :, ::-1])
            mirrored += 1
    assert 0 < mirrored < 8


def test_scaling_equals_torchvision_in_either_memory_layout() -> None:
    clips = torch.from_numpy(photo_like(6, 10, 12)).reshape(2, 1, 3, 10, 12, 3)
    for mean, std in (([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), ([0.5, 0.4, 0.3], [0.1, 0.2, 0.3])):
        out = scale_clips(clips, mean, std)
        assert out.shape == (2, 1, 3, 3, 10, 12) and out.dtype == torch.float32 and out.is_contiguous()
        for batch in range(2):
            for frame in range(3):
                image = Image.fromarray(clips[batch, 0, frame].numpy())
                wanted = reference.normalize(reference.to_tensor(image), mean, std)
                torch.testing.assert_close(out[batch, 0, :, frame], wanted, rtol=1e-5, atol=1e-6)
        assert torch.equal(scale_clips(clips[1, 0, ::2], mean, std), out[1, 0, :, ::2])
        assert torch.equal(scale_clips(clips.transpose(-2, -3), mean, std), out.transpose(-1, -2))
        view = scale_clips(clips, mean, std, channels_last=True)
        assert torch.equal(view, out) and view.flatten(0, 1).data_ptr() == view.data_ptr()
        assert view.flatten(0, 1).is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(scale_clips(clips), scale_clips(clips, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
