"""Color changes against torchvision on Pillow images with the same parameters.

Bounds on the CPU, in gray levels. Brightness: equal, but for products less than 0.0001 below a whole number, which go up.
Contrast: the same, and the rounding of the mean gray, by which all levels move by at most half a level.
Saturation: one level where OpenCV rounds the gray value another way. Hue: both keep hue and saturation in 8
bits; Pillow cuts off where OpenCV rounds, and has 255 steps a turn for OpenCV's 256. So hues may lie two steps
apart, each 6 levels of one channel at full chroma, and saturation one step, a level or two: at most 14. On
average half a step of hue on one channel, scaled by chroma: about one level.

Bounds of the batched changes. The blends are Pillow's arithmetic in float32, in the same order: equal. In hue, Pillow
divides in float32 and continues in float64, so that where hue or saturation is a whole number it may fall one step
short of ours: a step of hue (a 255th of a turn) is 6 levels of one channel at full chroma, a step of saturation
one level. This happens to one pixel in a thousand of a photo. Further changes stretch it by 1.5 each, to at most 24.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import default_collate
from torchvision.transforms import functional as reference

from dataset import color
from dataset.color import (ADJUST_BATCHED, BRIGHTNESS, CONTRAST, HUE, SATURATION, ColorDraws, adjust_brightness,
                           adjust_contrast, adjust_hue, adjust_saturation, apply_color, apply_color_on_device,
                           draw_channels, draw_jitter)
from dataset.transforms import PRETRAIN_JITTER, PretrainAugmentation
from tests.photo_frames import difference, photo_like

REFERENCE = {
    BRIGHTNESS: reference.adjust_brightness,
    CONTRAST: reference.adjust_contrast,
    SATURATION: reference.adjust_saturation,
    HUE: reference.adjust_hue,
}


def every_color() -> np.ndarray:
    """Returns a frame [216, 216, 3] with 36 levels of each channel, 0 and 255 among them, in all combinations."""
    levels = np.append(np.arange(0, 245, 7), 255).astype(np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(216, 216, 3)


def random_draws(*shape: int, seed: int = 0) -> ColorDraws:
    """Returns draws with the given dimensions, as a loader gives them."""
    rng, num = np.random.default_rng(seed), int(np.prod(shape))
    draws = ColorDraws(draw_channels(num, rng), *draw_jitter(num, PRETRAIN_JITTER, rng))
    return ColorDraws(*(torch.from_numpy(x).unflatten(0, shape) for x in draws))


@pytest.mark.parametrize("frame", [photo_like(1, 112, 112)[0], every_color()], ids=["photo", "every_color"])
@pytest.mark.parametrize("kind", [BRIGHTNESS, CONTRAST, SATURATION, HUE])
def test_each_batched_change_equals_torchvision(kind: int, frame: np.ndarray) -> None:
    factors = np.array([-0.25, -0.1, -0.003, 0, 0.07, 0.25] if kind == HUE else [0.5, 0.83, 1, 1.27, 1.5], np.float32)
    planar = torch.from_numpy(frame).permute(2, 0, 1).expand(len(factors), -1, -1, -1).float()
    ours = ADJUST_BATCHED[kind](planar.contiguous(), torch.from_numpy(factors)[:, None, None, None]).to(torch.uint8)
    for result, factor in zip(ours.permute(0, 2, 3, 1).numpy(), factors.tolist()):
        off = difference(result, REFERENCE[kind](Image.fromarray(frame), factor))
        max_bound, mean_bound = (7, 0.05) if kind == HUE else (0, 0)
        assert off.max() <= max_bound and off.mean() <= mean_bound, (factor, off.max(), off.mean())


@pytest.mark.parametrize(
    ("ours", "theirs", "factors", "max_bound", "mean_bound"),
    [
        (adjust_brightness, reference.adjust_brightness, (0.5, 0.83, 1.0, 1.27, 1.5), 0, 0.0),
        (adjust_contrast, reference.adjust_contrast, (0.5, 0.83, 1.0, 1.27, 1.5), 1, 0.5),
        (adjust_saturation, reference.adjust_saturation, (0.5, 0.83, 1.0, 1.27, 1.5), 1, 0.05),
        (adjust_hue, reference.adjust_hue, (-0.25, -0.1, -0.003, 0.0, 0.07, 0.25), 14, 1.25),
    ],
)
def test_each_change_on_the_cpu_equals_torchvision(
    ours: Callable, theirs: Callable, factors: tuple[float, ...], max_bound: int, mean_bound: float
) -> None:
    frame = photo_like(1, 112, 112)[0]
    for factor in factors:
        off = difference(ours(frame, factor), theirs(Image.fromarray(frame), factor))
        assert off.max() <= max_bound and off.mean() <= mean_bound, (factor, off.max(), off.mean())


def test_grey_frames_are_left_alone_by_saturation_and_hue() -> None:
    grey = np.repeat(photo_like(1, 40, 50)[0, ..., :1], 3, axis=-1)
    for factor in (0.5, 0.77, 1.5):
        assert np.array_equal(adjust_saturation(grey, factor), grey)
    for shift in (-0.25, 0.1):
        assert np.array_equal(adjust_hue(grey, shift), grey)


def test_all_changes_on_the_cpu_in_their_order_equal_torchvision() -> None:
    """The single differences, stretched by the operations after them: each by up to 1.5."""
    rng = np.random.default_rng(1)
    frames = photo_like(40, 64, 64)
    draws = ColorDraws(draw_channels(40, rng), *draw_jitter(40, PRETRAIN_JITTER, rng))
    before = frames.copy()
    ours = apply_color(frames, draws)
    assert np.array_equal(frames, before)
    for index, frame in enumerate(frames):
        if draws.channel[index] >= 0:
            frame = np.repeat(frame[..., draws.channel[index], None], 3, axis=-1)
        image = Image.fromarray(frame)
        for kind in draws.order[index]:
            image = REFERENCE[kind](image, float(draws.factors[index, kind]))
        off = difference(ours[index], image)
        assert off.mean() <= (0 if draws.channel[index] >= 0 else 2), (index, draws.order[index], off.mean())


def by_torchvision(frames: np.ndarray, draws: ColorDraws) -> np.ndarray:
    results = []
    for frame, channel, factors, order in zip(frames, *(x.tolist() for x in draws)):
        image = Image.fromarray(frame if channel < 0 else np.repeat(frame[..., channel, None], 3, axis=-1))
        for kind in order:
            image = REFERENCE[kind](image, factors[kind])
        results.append(np.asarray(image))
    return np.stack(results)


def test_all_changes_in_their_order_equal_torchvision_and_come_near_the_cpu_path() -> None:
    frames, draws = photo_like(96, 48, 64), random_draws(96)
    before = frames.copy()
    ours = apply_color_on_device(torch.from_numpy(frames), draws)
    assert ours.dtype == torch.uint8 and ours.shape == frames.shape and np.array_equal(frames, before)
    off = difference(ours, by_torchvision(frames, draws))
    assert off.max() <= 24 and off.mean() < 0.01
    assert off[draws.channel >= 0].max() == 0
    # What the CPU path differs from torchvision by: 8-bit hue of OpenCV.
    assert difference(ours, apply_color(frames, ColorDraws(*(x.numpy() for x in draws)))).mean() < 1
    assert difference(ours, frames).mean() > 20


@pytest.mark.parametrize("chunk_frames", [1, 7, 60, 1000])
def test_chunks_change_nothing(chunk_frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, draws = torch.from_numpy(photo_like(60, 16, 20)), random_draws(60)
    expected = apply_color_on_device(frames, draws)
    monkeypatch.setattr(color, "CHUNK_FRAMES", {"cpu": chunk_frames})
    assert torch.equal(apply_color_on_device(frames, draws), expected)


def test_split_frames_are_grey_and_the_others_are_not() -> None:
    frames, draws = torch.from_numpy(photo_like(60, 16, 20)), random_draws(60)
    out = apply_color_on_device(frames, draws)
    grey = (out == out[..., :1]).all(-1).flatten(1).all(1)
    assert torch.equal(grey, draws.channel >= 0)
    only_split = draws._replace(factors=torch.tensor([1.0, 1, 1, 0]).expand(60, 4))
    for before, after, channel in zip(frames, apply_color_on_device(frames, only_split), draws.channel.tolist()):
        if channel >= 0:
            assert torch.equal(after, before[..., channel, None].expand(-1, -1, 3))


def test_samples_collate_to_a_batch_that_gives_each_sample_its_own_colors() -> None:
    """As a loader does it: arrays in a sample, tensors in a batch."""
    augment, samples = PretrainAugmentation(16), []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        views, draws = zip(*(augment.before_color(photo_like(4, 30, 40, seed), rng) for _ in range(3)))
        samples.append((torch.from_numpy(np.stack(views)), ColorDraws(*map(np.stack, zip(*draws)))))
    clips, draws = default_collate(samples)
    assert isinstance(draws, ColorDraws)
    assert [(x.shape, x.dtype) for x in draws] == [
        ((3, 3, 4), torch.int8), ((3, 3, 4, 4), torch.float32), ((3, 3, 4, 4), torch.int8)]
    batch = apply_color_on_device(clips, draws)
    assert batch.shape == clips.shape == (3, 3, 4, 16, 16, 3)
    for index, (views, own) in enumerate(samples):
        alone = apply_color_on_device(views, ColorDraws(*map(torch.from_numpy, own)))
        assert torch.equal(batch[index], alone)


def test_both_places_of_color_get_the_same_draws() -> None:
    augment, frames = PretrainAugmentation(24), photo_like(8, 30, 40)
    whole = augment(frames, np.random.default_rng(5))
    view, draws = augment.before_color(frames, np.random.default_rng(5))
    assert np.array_equal(apply_color(view, draws), whole)
    on_device = apply_color_on_device(torch.from_numpy(view), ColorDraws(*map(torch.from_numpy, draws)))
    assert difference(on_device, whole).mean() < 2 < difference(view, whole).mean()


class Operations(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_the_number_of_operations_does_not_grow_with_the_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(color, "CHUNK_FRAMES", {"cpu": 1000})
    counts = []
    for num in (50, 300):
        with Operations() as seen:
            apply_color_on_device(torch.zeros(num, 4, 4, 3, dtype=torch.uint8), random_draws(num))
        counts.append(seen.count)
    assert counts[0] == counts[1] and "_local_scalar_dense" not in counts[0]


def test_nothing_waits_for_the_device() -> None:
    """On the meta device whatever needs a value on the host raises; the draws are sorted on the CPU."""
    frames = torch.empty(2, 3, 4, 8, 8, 3, dtype=torch.uint8, device="meta")
    out = apply_color_on_device(frames, random_draws(2, 3, 4))
    assert out.shape == frames.shape and out.device == frames.device
