"""Clip augmentation on uint8 frames, with the semantics of torchvision's transforms on Pillow images.

Shapes: a clip is uint8 RGB ``[T, H, W, 3]``; T frames, S = ``img_dim``. Drawing parameters (``draw_*``) is
kept apart from applying them, so that each can be checked alone. Every draw takes an explicit generator.
"""
from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch

from dataset.frames import resize_frames

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

PRETRAIN_FRAME_SIZE = (200, 150)  # width, height of the frames that pretraining crops
ASPECT_RANGE = (3 / 4, 4 / 3)
CROP_TRIES = 10
FLIP_PROBABILITY = 0.5
PRETRAIN_MIN_AREA = 0.5
SPLIT_PROBABILITY = 0.5
PRETRAIN_JITTER = (0.5, 0.5, 0.5, 0.25)  # brightness, contrast, saturation, hue
FINETUNE_MIN_AREA = 0.2
FINETUNE_JITTER = (0.4, 0.4, 0.4, 0.1)
FINETUNE_JITTER_PROBABILITY = 0.3
TEST_RESIZE_RATIO = 128 / 112  # short side before a test crop, in units of the crop's side

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
# OpenCV rounds a blend where Pillow cuts off; the offset stops short of a half, so that whole values stay.
CUT = -0.4999


@dataclass(frozen=True, slots=True)
class CropBox:
    """A crop in pixels."""

    top: int
    left: int
    height: int
    width: int

    def rescaled(self, old: tuple[int, int], new: tuple[int, int]) -> CropBox:
        """Returns the same part of a frame of (width, height) ``new`` instead of ``old``, to the nearest whole pixels."""
        left, right = (round(x * new[0] / old[0]) for x in (self.left, self.left + self.width))
        top, bottom = (round(y * new[1] / old[1]) for y in (self.top, self.top + self.height))
        return CropBox(top, left, bottom - top, right - left)


class ColorDraws(NamedTuple):
    """Color changes of frames: of n frames, of views of them [V + 1, T], of a batch of these [B, V + 1, T].

    ``channel`` int8 [...]: the channel 0..2 that replaces all three, -1 for none. ``factors`` float32
    [..., 4]: brightness, contrast and saturation factors and the hue shift in turns. ``order`` int8 [..., 4]:
    the order of these four. Arrays in a sample; a loader's collation stacks them to tensors.
    """

    channel: np.ndarray | torch.Tensor
    factors: np.ndarray | torch.Tensor
    order: np.ndarray | torch.Tensor


def stack_draws(draws: Sequence[ColorDraws]) -> ColorDraws:
    """Returns the draws of several views as those of one sample, with a new first dimension."""
    return ColorDraws(*map(np.stack, zip(*draws)))


def draw_crop(height: int, width: int, min_area: float, rng: np.random.Generator) -> CropBox:
    """Returns a random crop: area fraction U(min_area, 1), aspect U(3/4, 4/3), sides swapped with p 0.5.

    The aspect ratio is uniform, not log-uniform as in torchvision. Ten tries that do not fit give the largest
    centred square.
    """
    for _ in range(CROP_TRIES):
        area = rng.uniform(min_area, 1.0) * height * width
        aspect = rng.uniform(*ASPECT_RANGE)
        crop_width, crop_height = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if rng.random() < 0.5:
            crop_width, crop_height = crop_height, crop_width
        if crop_width <= width and crop_height <= height:
            top = int(rng.integers(0, height - crop_height, endpoint=True))
            left = int(rng.integers(0, width - crop_width, endpoint=True))
            return CropBox(top, left, crop_height, crop_width)
    side = min(height, width)
    return CropBox((height - side) // 2, (width - side) // 2, side, side)


def draw_jitter(
    num: int, strengths: tuple[float, ...], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (factors [num, 4], order [num, 4]) of ColorDraws.

    ``strengths`` (b, c, s, h): brightness U(1-b, 1+b), contrast U(1-c, 1+c), saturation U(1-s, 1+s), hue
    U(-h, h); every order of the four is equally likely.
    """
    center, reach = np.array([1.0, 1.0, 1.0, 0.0]), np.array(strengths)
    factors = rng.uniform(center - reach, center + reach, (num, 4))
    order = rng.permuted(np.tile(np.arange(4), (num, 1)), axis=1)
    return factors.astype(np.float32), order.astype(np.int8)


def draw_channels(num: int, rng: np.random.Generator) -> np.ndarray:
    """Returns [num]: for each frame, with p 0.5, a channel 0..2 chosen uniformly, else -1."""
    split = rng.random(num) < SPLIT_PROBABILITY
    return np.where(split, rng.integers(0, 3, num), -1).astype(np.int8)


def crop_and_flip(frames: Sequence[np.ndarray], box: CropBox, flip: bool, img_dim: int) -> np.ndarray:
    """Returns [T, S, S, 3]: one crop for all frames, antialiased bilinear, mirrored when ``flip``."""
    rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    resized = resize_frames(np.stack([frame[rows, columns] for frame in frames]), (img_dim, img_dim), "bilinear")
    if flip:  # all frames one below the other
        return cv2.flip(resized.reshape(-1, img_dim, 3), 1).reshape(resized.shape)
    return resized


def apply_color(frames: np.ndarray, draws: ColorDraws) -> np.ndarray:
    """Returns [n, H, W, 3]: channel splitting, then the four color changes in their order, frame by frame.

    A split frame is grey, on which saturation and hue do nothing: its one channel alone is worked on.
    """
    out = np.empty_like(frames)
    for frame, result, channel, factors, order in zip(
        frames, out, draws.channel.tolist(), draws.factors.tolist(), draws.order.tolist()
    ):
        if channel >= 0:
            plane = cv2.extractChannel(frame, channel)
            for kind in order:
                if kind in (BRIGHTNESS, CONTRAST):
                    plane = _ADJUST[kind](plane, factors[kind])
            cv2.cvtColor(plane, cv2.COLOR_GRAY2RGB, dst=result)
        else:
            for kind in order:
                frame = _ADJUST[kind](frame, factors[kind])
            result[...] = frame
    return out


def adjust_brightness(frame: np.ndarray, factor: float) -> np.ndarray:
    """Returns the uint8 frame, [H, W, 3] or grey [H, W], times ``factor``, clipped, fractions cut off."""
    return _blend(frame, factor, 0)


def adjust_contrast(frame: np.ndarray, factor: float) -> np.ndarray:
    """Returns the uint8 frame, [H, W, 3] or grey [H, W], stretched by ``factor`` about its mean grey."""
    grey = frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return _blend(frame, factor, int(cv2.mean(grey)[0] + 0.5))


def adjust_saturation(frame: np.ndarray, factor: float) -> np.ndarray:
    """Returns the uint8 frame [H, W, 3]: ``factor`` parts of it and 1 - ``factor`` parts of its grey."""
    grey = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(frame, factor, grey, 1 - factor, CUT)


def adjust_hue(frame: np.ndarray, shift: float) -> np.ndarray:
    """Returns the uint8 frame [H, W, 3] with its hue moved by ``shift`` turns, in 8 bits as in Pillow."""
    hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(int(shift * 255) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


_ADJUST = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def _blend(frame: np.ndarray, factor: float, base: int) -> np.ndarray:
    """Returns ``factor`` parts of the frame and 1 - ``factor`` parts of one level, clipped, fractions cut off."""
    return cv2.addWeighted(frame, factor, frame, 0, (1 - factor) * base + CUT)


class PretrainAugmentation:
    """Augments one view of pretraining: crop and flip shared by all frames, color on each frame's own draw.

    Crop area U(0.5, 1), flip p 0.5, channel splitting p 0.5, jitter 0.5 / 0.5 / 0.5 / 0.25 always. The crop is drawn
    for frames of ``frame_size`` (width, height); from others, such as those decoded at half, the same part is cut.
    """

    def __init__(self, img_dim: int, frame_size: tuple[int, int] = PRETRAIN_FRAME_SIZE) -> None:
        self.img_dim = img_dim
        self.frame_size = frame_size

    def __call__(self, frames: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """Returns uint8 [T, S, S, 3] from T frames, each uint8 [H, W, 3]."""
        return apply_color(*self.before_color(frames, rng))

    def before_color(self, frames: Sequence[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, ColorDraws]:
        """Returns the view uint8 [T, S, S, 3], cropped and flipped, and the color changes still to be made.

        By `apply_color` here, or by `dataset.color.apply_color_on_device` on whole batches.
        """
        width, height = self.frame_size
        box = draw_crop(height, width, PRETRAIN_MIN_AREA, rng).rescaled(self.frame_size, frames[0].shape[1::-1])
        flip = rng.random() < FLIP_PROBABILITY
        color = ColorDraws(draw_channels(len(frames), rng), *draw_jitter(len(frames), PRETRAIN_JITTER, rng))
        return crop_and_flip(frames, box, flip, self.img_dim), color


class FinetuneAugmentation:
    """Augments one training clip of a downstream task: every frame alike (CoCLR's recipe, Han et al. 2020).

    Crop area U(0.2, 1), flip p 0.5, jitter 0.4 / 0.4 / 0.4 / 0.1 with p 0.3.
    """

    def __init__(self, img_dim: int) -> None:
        self.img_dim = img_dim

    def __call__(self, frames: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """Returns uint8 [T, S, S, 3] from T frames, each uint8 [H, W, 3]."""
        box = draw_crop(*frames[0].shape[:2], FINETUNE_MIN_AREA, rng)
        clip = crop_and_flip(frames, box, rng.random() < FLIP_PROBABILITY, self.img_dim)
        if rng.random() >= FINETUNE_JITTER_PROBABILITY:
            return clip
        factors, order = draw_jitter(1, FINETUNE_JITTER, rng)
        num = len(frames)
        return apply_color(clip, ColorDraws(np.full(num, -1), factors.repeat(num, 0), order.repeat(num, 0)))


class TestCrops:
    """Cuts a test clip without any draw: short side to 128/112 of S, then 1, 5 or 10 crops of S x S.

    1: the centre. 5: centre, top left, top right, bottom left, bottom right. 10: these, then them mirrored.
    """

    __test__ = False  # the name begins as pytest's test classes do

    def __init__(self, img_dim: int, num_crops: int) -> None:
        assert num_crops in (1, 5, 10), num_crops
        self.img_dim = img_dim
        self.num_crops = num_crops

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Returns uint8 [num_crops, T, S, S, 3] from uint8 [T, H, W, 3]."""
        resized = self.resize(frames)
        return np.stack([self.cut(resized, crop) for crop in range(self.num_crops)])

    def resize(self, frames: np.ndarray) -> np.ndarray:
        """Returns the frames with their short side at 128/112 of S; each frame's pixels depend on it alone."""
        height, width = frames.shape[1:3]
        scale = round(self.img_dim * TEST_RESIZE_RATIO) / min(height, width)
        return resize_frames(frames, (round(width * scale), round(height * scale)), "bilinear")

    def cut(self, resized: np.ndarray, crop: int) -> np.ndarray:
        """Returns one of the crops, a view [T, S, S, 3] of frames that ``resize`` gave."""
        bottom, right = (side - self.img_dim for side in resized.shape[1:3])
        corners = [(bottom // 2, right // 2), (0, 0), (0, right), (bottom, 0), (bottom, right)]
        top, left = corners[crop % len(corners)]
        cut = resized[:, top : top + self.img_dim, left : left + self.img_dim]
        return cut[:, :, ::-1] if crop >= len(corners) else cut


def scale_clips(clips: torch.Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD,
                channels_last: bool = False) -> torch.Tensor:
    """Returns float32 [..., 3, T, H, W] from uint8 [..., T, H, W, 3]: scaled to [0, 1], minus `mean`, divided by `std`.

    Runs on the clips' device. The result is contiguous; with `channels_last` it is a permuted view in which channels
    are innermost in memory, which for [M, 3, T, H, W] is `torch.channels_last_3d`.
    """
    width = clips.shape[-2]
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), width, clips.device)
    rows = clips.flatten(-2).float().mul_(scale).sub_(shift)
    scaled = rows.unflatten(-1, (width, 3)).movedim(-1, -4)
    return scaled if channels_last else scaled.contiguous()


@functools.cache
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (factors, values to subtract), each [width * 3]: whole rows, as loops over three values are slow."""
    means, stds = (torch.tensor(values).repeat(width) for values in (mean, std))
    return (1 / (255 * stds)).to(device), (means / stds).to(device)
