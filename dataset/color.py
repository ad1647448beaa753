"""Channel splitting and color jitter of whole batches on the training device.

The same draws as `dataset.transforms.apply_color` and the same 8 bits between the four changes, with Pillow's
own arithmetic: fractions cut off after a blend, hue and saturation as whole numbers of 255ths.

Shapes: n frames of H x W pixels, planar ``[n, 3, H, W]`` inside; m of them in one call of one color change.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dataset.transforms import BRIGHTNESS, CONTRAST, HUE, SATURATION, ColorDraws

CHUNK_FRAMES = {"cpu": 8}  # float copies of 8 frames of 112 px fill a core's cache
CHUNK_FRAMES_GPU = 512     # and bound the memory elsewhere: about 10 floats a pixel
LUMA = (19595, 38470, 7471)  # of red, green, blue in 65536ths, as Pillow's conversion to grey (ITU-R 601)
LEAVE = 4                  # in the place of a kind of change: none


def apply_color_on_device(frames: Tensor, draws: ColorDraws) -> Tensor:
    """Returns uint8 [..., H, W, 3] from such frames: channel splitting, then each frame's four changes in turn.

    ``frames`` are on any device; ``draws`` are tensors with the same leading dimensions, on the CPU, where the
    frames of each change are sorted out, so that nothing waits for the device. There is no loop over frames:
    each of the four positions of the order is four calls, each on all frames of a chunk that have this kind of
    change there.
    """
    flat = frames.flatten(0, -4)
    chunk_frames = CHUNK_FRAMES.get(frames.device.type, CHUNK_FRAMES_GPU)
    rows, factors, ends = _sort_by_change(draws, chunk_frames)
    channel = draws.channel.flatten().long()[:, None]
    planes = torch.where(channel < 0, torch.arange(3), channel)
    rows, factors, planes = (_send(x, frames.device) for x in (rows, factors, planes))
    out = torch.empty_like(flat, memory_format=torch.contiguous_format)
    for chunk, start in enumerate(range(0, len(flat), chunk_frames)):
        part = slice(start, start + chunk_frames)
        work = _split_channels(flat[part], planes[part])
        for position in range(4):
            begin = start
            for kind, end in enumerate(ends[chunk][position]):
                if end > begin:
                    chosen = rows[position, begin:end]
                    factor = factors[position, begin:end, None, None, None]
                    changed = ADJUST[kind](work[chosen].float(), factor)
                    work[chosen] = changed.to(torch.uint8)  # cuts fractions off
                begin = end
        out[part] = work.permute(0, 2, 3, 1)
    return out.view(frames.shape)


def _sort_by_change(draws: ColorDraws, chunk_frames: int) -> tuple[Tensor, Tensor, list]:
    """Returns, for each position of the order, the frames of a chunk sorted by their change there.

    rows [4, n]: numbers within the chunk; factors [4, n]: theirs; ends [chunks][4][4]: where each kind's run
    ends in these. Saturation and hue of a split frame, which is grey, are no change and come last.
    """
    order = draws.order.flatten(0, -2).long()
    kind = torch.where((draws.channel.flatten()[:, None] >= 0) & (order >= SATURATION), LEAVE, order)
    chunk, row = (f(torch.arange(len(order)), chunk_frames) for f in (torch.floor_divide, torch.remainder))
    key = chunk[:, None] * (LEAVE + 1) + kind
    rank = key.argsort(dim=0)                                                           # [n, 4]
    factors = draws.factors.flatten(0, -2).gather(1, order).gather(0, rank)
    num_keys = (len(order) // chunk_frames + 1) * (LEAVE + 1)
    counts = torch.stack([torch.bincount(column, minlength=num_keys) for column in key.unbind(1)], dim=1)
    ends = counts.cumsum(0).unflatten(0, (-1, LEAVE + 1))[:, :LEAVE].transpose(1, 2)    # [chunks, 4, kinds]
    return row[rank].T.contiguous(), factors.T.contiguous(), ends.tolist()


def _send(x: Tensor, device: torch.device) -> Tensor:
    """Returns x on the device; a GPU takes it from pinned memory, without being waited for."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def _split_channels(frames: Tensor, planes: Tensor) -> Tensor:
    """Returns [n, 3, H, W] from [n, H, W, 3]: of each frame the planes numbered in ``planes`` [n, 3]."""
    every = frames.permute(0, 3, 1, 2).flatten(0, 1)
    return every[planes + 3 * torch.arange(len(planes), device=planes.device)[:, None]]


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Returns x [m, 3, H, W] in [0, 255] times ``factor`` [m, 1, 1, 1], clipped; in place, like the others."""
    return x.mul_(factor).clamp_(max=255)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Returns x stretched by ``factor`` about its rounded mean grey, clipped."""
    return _blend(x, (grey(x).mean(dim=(2, 3), keepdim=True) + 0.5).floor_(), factor)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Returns ``factor`` parts of x and 1 - ``factor`` parts of its grey, clipped."""
    return _blend(x, grey(x), factor)


def adjust_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Returns x with its hue moved by ``shift`` turns: to hue, saturation and value in 8 bits and back."""
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
    reach = saturation.mul_(value).div_(255)              # what a color loses where it is absent
    shares = (sixth - 3).abs_().sub_(1), 2 - (sixth - 2).abs_(), 2 - (sixth - 4).abs_()
    for color, share in enumerate(shares):
        x[:, color] = (value + 0.5).sub_((1 - share.clamp_(0, 1)).mul_(reach))
    return x


def grey(x: Tensor) -> Tensor:
    """Returns [m, 1, H, W], whole numbers, from whole x [m, 3, H, W]; exact: all sums are below 2^24."""
    red, green, blue = x.split(1, dim=1)
    luma = (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])
    return luma.add_(32768).div_(65536).floor_()


def _blend(x: Tensor, base: Tensor, factor: Tensor) -> Tensor:
    return x.sub_(base).mul_(factor).add_(base).clamp_(0, 255)


ADJUST: dict[int, Callable[[Tensor, Tensor], Tensor]] = {
    BRIGHTNESS: adjust_brightness, CONTRAST: adjust_contrast, SATURATION: adjust_saturation, HUE: adjust_hue}
