"""Channel splitting and color jitter of frames: frame by frame on the CPU, or batched on the training device.

Both take the same draws and keep 8 bits between the four changes, with the semantics of torchvision's transforms on
Pillow images. The device follows Pillow's own arithmetic (fractions cut off after a blend, hue and saturation in whole
255ths); on the CPU OpenCV rounds the gray value and the hue.

Shapes: n frames of H x W pixels, uint8 RGB [n, H, W, 3]; batched changes take m of them as float [m, 3, H, W] with
whole numbers in [0, 255], and factors [m, 1, 1, 1], and work in place.
"""
from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
NO_CHANGE = 4                      # in place of a kind of change
SPLIT_PROBABILITY = 0.5
CUT = -0.4999                      # makes OpenCV's rounding of a blend cut fractions off; above -0.5 to keep whole values
LUMA = (19595, 38470, 7471)        # weights of red, green, blue in 65536ths, as in Pillow's conversion to gray (ITU-R 601)
CHUNK_FRAMES = {"cpu": 8}          # float copies of 8 frames of 112 px fill the cache of a core
CHUNK_FRAMES_GPU = 512             # bounds the memory: about 10 floats a pixel


class ColorDraws(NamedTuple):
    """Color changes drawn for n frames, for views of them [V + 1, T], or for a batch of these [B, V + 1, T].

    Arrays in a sample, tensors in a batch.
    """

    channel: np.ndarray | Tensor  # int8 [...]: channel 0..2 that replaces all three, -1 for none
    factors: np.ndarray | Tensor  # float32 [..., 4]: factors of brightness, contrast and saturation, hue shift in turns
    order: np.ndarray | Tensor    # int8 [..., 4]: order of these four

    def repeated(self, num: int) -> ColorDraws:
        """Returns each frame's draws `num` times in a row."""
        return ColorDraws(*(draws.repeat(num, axis=0) for draws in self))


def draw_jitter(num: int, strengths: tuple[float, ...], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns (factors [num, 4], order [num, 4]) of `ColorDraws`; every order is equally likely.

    `strengths` (b, c, s, h): brightness U(1-b, 1+b), contrast U(1-c, 1+c), saturation U(1-s, 1+s), hue U(-h, h).
    """
    center, reach = np.array([1.0, 1.0, 1.0, 0.0]), np.array(strengths)
    factors = rng.uniform(center - reach, center + reach, (num, 4))
    order = rng.permuted(np.tile(np.arange(4), (num, 1)), axis=1)
    return factors.astype(np.float32), order.astype(np.int8)


def draw_channels(num: int, rng: np.random.Generator) -> np.ndarray:
    """Returns [num]: for each frame, with p 0.5, a channel 0..2 chosen uniformly, else -1."""
    split = rng.random(num) < SPLIT_PROBABILITY
    return np.where(split, rng.integers(0, 3, num), -1).astype(np.int8)


def apply_color(frames: np.ndarray, draws: ColorDraws) -> np.ndarray:
    """Returns uint8 [n, H, W, 3]: channel splitting, then the four changes in their order, frame by frame on the CPU.

    Saturation and hue leave a split frame, which is gray, unchanged, so that only its one channel is processed.
    """
    out = np.empty_like(frames)
    for frame, result, channel, factors, order in zip(
        frames, out, draws.channel.tolist(), draws.factors.tolist(), draws.order.tolist()
    ):
        if channel >= 0:
            plane = cv2.extractChannel(frame, channel)
            for kind in order:
                if kind in (BRIGHTNESS, CONTRAST):
                    plane = ADJUST[kind](plane, factors[kind])
            cv2.cvtColor(plane, cv2.COLOR_GRAY2RGB, dst=result)
        else:
            for kind in order:
                frame = ADJUST[kind](frame, factors[kind])
            result[...] = frame
    return out


def apply_color_on_device(frames: Tensor, draws: ColorDraws) -> Tensor:
    """Returns uint8 [..., H, W, 3]: channel splitting, then the four changes in their order, batched on the device.

    `draws` are CPU tensors with the same leading dimensions as `frames`: the frames of a chunk are sorted by kind of
    change on the CPU, so that nothing waits for the device, and each position of the order takes one call per kind.
    """
    flat = frames.flatten(0, -4)
    channel, order = draws.channel.flatten().long()[:, None], draws.order.flatten(0, -2).long()
    planes = torch.where(channel < 0, torch.arange(3), channel)
    # Saturation and hue leave a split frame, which is gray, unchanged.
    kinds = torch.where((channel >= 0) & (order >= SATURATION), NO_CHANGE, order)             # [n, 4]
    factors = draws.factors.flatten(0, -2).gather(1, order)                                   # [n, 4]
    chunk_frames = CHUNK_FRAMES.get(frames.device.type, CHUNK_FRAMES_GPU)
    out = torch.empty_like(flat, memory_format=torch.contiguous_format)
    for chunk, chunk_planes, chunk_kinds, chunk_factors, result in zip(
            *(x.split(chunk_frames) for x in (flat, planes, kinds, factors, out))):
        work = _split_channels(chunk, _send(chunk_planes, frames.device))
        rows = chunk_kinds.argsort(dim=0)
        sorted_factors = _send(chunk_factors.gather(0, rows), frames.device)
        sorted_rows = _send(rows, frames.device)
        for position in range(4):
            counts = chunk_kinds[:, position].bincount(minlength=NO_CHANGE + 1).tolist()
            for adjust, chosen, factor in zip(ADJUST_BATCHED, *(x[:, position].split(counts) for x in (
                    sorted_rows, sorted_factors))):
                if len(chosen):
                    changed = adjust(work[chosen].float(), factor[:, None, None, None])
                    work[chosen] = changed.to(torch.uint8)  # cuts fractions off
        result.copy_(work.permute(0, 2, 3, 1))
    return out.view(frames.shape)


def _send(x: Tensor, device: torch.device) -> Tensor:
    """Returns x on the device; copied to a GPU from pinned memory, asynchronously."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def _split_channels(frames: Tensor, planes: Tensor) -> Tensor:
    """Returns [n, 3, H, W] from [n, H, W, 3]: of each frame the channels `planes` [n, 3]."""
    every = frames.permute(0, 3, 1, 2).flatten(0, 1)
    return every[planes + 3 * torch.arange(len(planes), device=planes.device)[:, None]]


def adjust_brightness(frame: np.ndarray, factor: float) -> np.ndarray:
    """Returns the uint8 frame, [H, W, 3] or gray [H, W], times `factor`, clipped."""
    return _blend(frame, factor, 0)


def adjust_contrast(frame: np.ndarray, factor: float) -> np.ndarray:
    """Returns the uint8 frame, [H, W, 3] or gray [H, W], scaled by `factor` about its rounded mean gray, clipped."""
    gray = frame if frame.ndim == 2 else cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return _blend(frame, factor, int(cv2.mean(gray)[0] + 0.5))


def adjust_saturation(frame: np.ndarray, factor: float) -> np.ndarray:
    """Returns `factor` times the uint8 frame [H, W, 3] plus 1 - `factor` times its gray, clipped."""
    gray = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(frame, factor, gray, 1 - factor, CUT)


def adjust_hue(frame: np.ndarray, shift: float) -> np.ndarray:
    """Returns the uint8 frame [H, W, 3] with its hue shifted by `shift` turns, in 8 bits as in Pillow."""
    hsv = cv2.cvtColor(frame, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(int(shift * 255) % 256)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def adjust_hue_batched(x: Tensor, shift: Tensor) -> Tensor:
    """Returns x with its hue shifted by `shift` turns: to hue, saturation and value in 8 bits, and back."""
    red, green, blue = x.unbind(1)
    value = x.amax(dim=1)
    span = value - x.amin(dim=1)
    # Sixths of a turn, times span: whole numbers.
    turn = torch.where(red == value, green - blue,
                       torch.where(green == value, blue - red + 2 * span, red - green + 4 * span))
    turn += 6 * span * (turn < 0)
    hue = turn.mul_(255).div_(span.clamp(min=1).mul_(6)).floor_()
    saturation = span.mul_(255).div_(value.clamp(min=1)).floor_()
    hue = hue.add_((shift[:, 0] * 255).trunc_()).remainder_(256)

    sixth = hue.mul_(6 / 255)                             # 0 and 6 red, 2 green, 4 blue
    reach = saturation.mul_(value).div_(255)              # decrease of a channel where its color is absent
    shares = (sixth - 3).abs_().sub_(1), 2 - (sixth - 2).abs_(), 2 - (sixth - 4).abs_()
    for color, share in enumerate(shares):
        x[:, color] = (value + 0.5).sub_((1 - share.clamp_(0, 1)).mul_(reach))
    return x


def _blend(frame: np.ndarray, factor: float, base: int) -> np.ndarray:
    """Returns `factor` times the frame plus 1 - `factor` times one level, clipped, fractions cut off."""
    return cv2.addWeighted(frame, factor, frame, 0, (1 - factor) * base + CUT)


def _blend_batched(x: Tensor, base: Tensor, factor: Tensor) -> Tensor:
    """Returns `factor` times x plus 1 - `factor` times `base`, clipped."""
    return x.sub_(base).mul_(factor).add_(base).clamp_(0, 255)


def _gray(x: Tensor) -> Tensor:
    """Returns whole numbers [m, 1, H, W] from whole x [m, 3, H, W]; exact, as all sums are below 2^24."""
    red, green, blue = x.split(1, dim=1)
    luma = (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    return luma.add_(32768).div_(65536).floor_()


ADJUST = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
ADJUST_BATCHED = (
    lambda x, factor: x.mul_(factor).clamp_(max=255),
    lambda x, factor: _blend_batched(x, (_gray(x).mean(dim=(2, 3), keepdim=True) + 0.5).floor_(), factor),
    lambda x, factor: _blend_batched(x, _gray(x), factor),
    adjust_hue_batched)
