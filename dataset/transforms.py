"""Clip augmentation on uint8 frames, with the semantics of torchvision's transforms on Pillow images.

Shapes: a clip is uint8 RGB [T, H, W, 3]; T frames, S = `img_dim`. Parameters are drawn (`draw_*`) apart from being
applied, so that each can be tested on its own. Every draw takes an explicit generator.
"""
from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from dataset.color import ColorDraws, apply_color, draw_channels, draw_jitter
from dataset.frames import resize_frames
from utils.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RGB, RESIDUAL = "rgb", "residual"  # what a network sees of a clip
IMAGENET = {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD), "frames": RGB}  # of `scale_clips`

PRETRAIN_FRAME_SIZE = (200, 150)  # width, height of the frames that pretraining crops
ASPECT_RANGE = (3 / 4, 4 / 3)
CROP_TRIES = 10
FLIP_PROBABILITY = 0.5
PRETRAIN_MIN_AREA = 0.5
PRETRAIN_JITTER = (0.5, 0.5, 0.5, 0.25)  # brightness, contrast, saturation, hue
FINETUNE_MIN_AREA = 0.2
FINETUNE_JITTER = (0.4, 0.4, 0.4, 0.1)
FINETUNE_JITTER_PROBABILITY = 0.3
TEST_RESIZE_RATIO = 128 / 112  # short side before a test crop, in units of the crop's side


@dataclass(frozen=True, slots=True)
class CropBox:
    """A crop in pixels."""

    top: int
    left: int
    height: int
    width: int

    def rescaled(self, old: tuple[int, int], new: tuple[int, int]) -> CropBox:
        """Returns the same part, to the nearest pixel, of a frame of (width, height) `new` instead of `old`."""
        left, right = (round(x * new[0] / old[0]) for x in (self.left, self.left + self.width))
        top, bottom = (round(y * new[1] / old[1]) for y in (self.top, self.top + self.height))
        return CropBox(top, left, bottom - top, right - left)


def draw_crop(height: int, width: int, min_area: float, rng: np.random.Generator) -> CropBox:
    """Returns a random crop: area fraction U(min_area, 1), aspect ratio U(3/4, 4/3), sides swapped with p 0.5.

    The aspect ratio is uniform, not log-uniform as in torchvision. After `CROP_TRIES` crops that do not fit it is the
    largest centered square.
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


def crop_and_flip(frames: Sequence[np.ndarray], box: CropBox, flip: bool, img_dim: int) -> np.ndarray:
    """Returns [T, S, S, 3]: the same crop of all frames, resized (antialiased bilinear), mirrored with `flip`."""
    rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    resized = resize_frames(np.stack([frame[rows, columns] for frame in frames]), (img_dim, img_dim), "bilinear")
    if flip:  # all frames as one tall image
        return cv2.flip(resized.reshape(-1, img_dim, 3), 1).reshape(resized.shape)
    return resized


@dataclass(frozen=True)
class PretrainAugmentation:
    """Augments one pretraining view: one crop and flip for all frames, color drawn for each frame or once for all.

    Crop area U(0.5, 1), flip p 0.5, channel splitting p 0.5, jitter 0.5 / 0.5 / 0.5 / 0.25 with p 1. The crop is drawn
    for frames of `frame_size` (width, height); frames of another size, as from half decoding, give the same part.
    """

    img_dim: int
    frame_size: tuple[int, int] = PRETRAIN_FRAME_SIZE
    color_per_clip: bool = False
    flip: bool = True  # False: never

    def __call__(self, frames: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """Returns uint8 [T, S, S, 3] from T frames, each uint8 [H, W, 3]."""
        return apply_color(*self.before_color(frames, rng))

    def before_color(self, frames: Sequence[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, ColorDraws]:
        """Returns (view uint8 [T, S, S, 3], cropped and flipped; its color changes, not yet applied)."""
        width, height = self.frame_size
        box = draw_crop(height, width, PRETRAIN_MIN_AREA, rng).rescaled(self.frame_size, frames[0].shape[1::-1])
        flip = rng.random() < FLIP_PROBABILITY and self.flip
        draws = 1 if self.color_per_clip else len(frames)
        color = ColorDraws(draw_channels(draws, rng), *draw_jitter(draws, PRETRAIN_JITTER, rng))
        return crop_and_flip(frames, box, flip, self.img_dim), color.repeated(len(frames) // draws)


@dataclass(frozen=True)
class FinetuneAugmentation:
    """Augments one training clip of a downstream task, all frames alike (recipe of CoCLR, Han et al. 2020).

    Crop area U(0.2, 1), flip p 0.5, jitter 0.4 / 0.4 / 0.4 / 0.1 with p 0.3.
    """

    img_dim: int
    flip: bool = True  # False: never

    def __call__(self, frames: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
        """Returns uint8 [T, S, S, 3] from T frames, each uint8 [H, W, 3]."""
        box = draw_crop(*frames[0].shape[:2], FINETUNE_MIN_AREA, rng)
        clip = crop_and_flip(frames, box, rng.random() < FLIP_PROBABILITY and self.flip, self.img_dim)
        if rng.random() >= FINETUNE_JITTER_PROBABILITY:
            return clip
        color = ColorDraws(np.array([-1]), *draw_jitter(1, FINETUNE_JITTER, rng))
        return apply_color(clip, color.repeated(len(frames)))


@dataclass(frozen=True)
class TestCrops:
    """Resizes a test clip to a short side of 128/112 S and takes 1, 5 or 10 crops of S x S; nothing is random.

    1: center. 5: center, top left, top right, bottom left, bottom right. 10: these, then the same mirrored.
    """

    __test__ = False  # not a pytest class

    img_dim: int
    num_crops: int

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Returns uint8 [num_crops, T, S, S, 3] from uint8 [T, H, W, 3]."""
        resized = self.resize(frames)
        return np.stack([self.cut(resized, crop) for crop in range(self.num_crops)])

    def resize(self, frames: np.ndarray) -> np.ndarray:
        """Returns the frames with a short side of 128/112 S, each resized independently of the others."""
        height, width = frames.shape[1:3]
        scale = round(self.img_dim * TEST_RESIZE_RATIO) / min(height, width)
        return resize_frames(frames, (round(width * scale), round(height * scale)), "bilinear")

    def cut(self, resized: np.ndarray, crop: int) -> np.ndarray:
        """Returns crop number `crop` of frames from `resize`, as a view [T, S, S, 3]."""
        bottom, right = (side - self.img_dim for side in resized.shape[1:3])
        corners = [(bottom // 2, right // 2), (0, 0), (0, right), (bottom, 0), (bottom, right)]
        top, left = corners[crop % len(corners)]
        cut = resized[:, top : top + self.img_dim, left : left + self.img_dim]
        return cut[:, :, ::-1] if crop >= len(corners) else cut


def scale_clips(clips: torch.Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD,
                channels_last: bool = False, frames: str = RGB) -> torch.Tensor:
    """Returns float32 [..., 3, T, H, W] from uint8 [..., T, H, W, 3]: scaled to [0, 1], minus `mean`, divided by `std`.

    `frames` RESIDUAL: differences of consecutive scaled frames, x[t + 1] - x[t] (Tao et al. 2020), in which a static scene
    is zero. The last of the T repeats the one before it, so that no frame looks as if all motion had stopped.

    Runs on the clips' device. The result is contiguous; with `channels_last` it is a permuted view in which channels
    are innermost in memory, which for [M, 3, T, H, W] is `torch.channels_last_3d`.
    """
    width = clips.shape[-2]
    # Where channels stay innermost, whole rows of factors, as loops over three values are slow.
    values = clips.flatten(-2) if channels_last else _channels_first(clips)
    scale, shift = _scale_and_shift(tuple(mean), tuple(std), width if channels_last else 0, clips.device)
    scaled = values.float()
    if frames == RESIDUAL:
        scaled[..., :-1, :, :] = scaled.diff(dim=-3)
        scaled[..., -1, :, :] = scaled[..., -2, :, :]
        scaled.mul_(scale)
    else:
        scaled.mul_(scale).sub_(shift)
    return scaled.unflatten(-1, (width, 3)).movedim(-1, -4) if channels_last else scaled


def _channels_first(clips: torch.Tensor) -> torch.Tensor:
    """Returns contiguous uint8 [..., 3, T, H, W] from [..., T, H, W, 3]; on the CPU by OpenCV, 5 times as fast as torch."""
    if clips.device.type != "cpu":
        return clips.movedim(-1, -4).contiguous()
    *leading, num_frames, height, width, _ = clips.shape
    planes = np.empty((math.prod(leading), 3, num_frames * height, width), np.uint8)
    for clip, result in zip(clips.numpy().reshape(len(planes), num_frames * height, width, 3), planes):
        cv2.split(clip, list(result))  # a clip as one tall image
    return torch.from_numpy(planes).view(*leading, 3, num_frames, height, width)


@functools.cache
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (factors, values to subtract), each [width * 3], for pixels in a row, or with width 0 [3, 1, 1, 1]."""
    means, stds = (values.repeat(width) if width else values.view(3, 1, 1, 1) for values in map(torch.tensor, (mean, std)))
    return (1 / (255 * stds)).to(device), (means / stds).to(device)


def read_input(checkpoint: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns {"mean", "std", "frames"} of the checkpoint's "input", for `scale_clips`; without one, RGB and ImageNet's."""
    scale = checkpoint.get("input", IMAGENET)
    mean, std = (scale.get(name) if isinstance(scale, dict) else None for name in ("mean", "std"))
    if not all(isinstance(values, (list, tuple)) and len(values) == 3 and all(
            type(value) in (int, float) and math.isfinite(value) for value in values) for values in (mean, std)) \
            or min(std) <= 0 or (frames := scale.get("frames", RGB)) not in (RGB, RESIDUAL):
        raise InputError(f"{where}: its input is not a mean and a std above 0 of red, green and blue, of {RGB} or "
                         f"{RESIDUAL} frames")
    return {"mean": list(mean), "std": list(std), "frames": frames}
