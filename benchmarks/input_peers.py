"""The sample of `benchmarks.input` as others make it, in one thread, on the same draws.

A plain pipeline (Pillow and torchvision, frame by frame), torchvision's v2 transforms on uint8 tensors, as its documentation
recommends, and NVIDIA DALI's pipeline on the CPU.
"""
from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from torchvision import io
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as plain
from torchvision.transforms.v2 import functional as v2

from dataset.color import ColorDraws, draw_channels, draw_jitter
from dataset.sampling import pretraining_indices, split_views
from dataset.transforms import (FLIP_PROBABILITY, IMAGENET_MEAN, IMAGENET_STD, PRETRAIN_FRAME_SIZE, PRETRAIN_JITTER,
                                PRETRAIN_MIN_AREA, CropBox, draw_crop)

CLIPS, CLIP_FRAMES, MAX_STRIDE, IMG_DIM = 2, 16, 3.0, 112
NUM_FRAMES = 80

def draw_sample(path: str, number: int) -> tuple[list[str], list[tuple[CropBox, bool, ColorDraws]]]:
    """Returns (path of each frame, crop, flip and color of each view), the draws of `benchmarks.input.our_sample`."""
    rng = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(number, 0)))
    indices = pretraining_indices(NUM_FRAMES, CLIPS, CLIP_FRAMES, MAX_STRIDE, rng)
    width, height = PRETRAIN_FRAME_SIZE
    return [f"{path}/image_{index + 1:05d}.jpg" for index in indices.tolist()], [
        (draw_crop(height, width, PRETRAIN_MIN_AREA, rng), bool(rng.random() < FLIP_PROBABILITY),
         ColorDraws(draw_channels(CLIP_FRAMES, rng), *draw_jitter(CLIP_FRAMES, PRETRAIN_JITTER, rng)))
        for _ in range(CLIPS + 1)]


def plain_sample(path: str, number: int) -> torch.Tensor:
    """Returns the views [V + 1, 3, T, S, S] of the plain pipeline."""
    files, draws = draw_sample(path, number)
    frames = [Image.open(file).convert("RGB").resize(PRETRAIN_FRAME_SIZE, Image.Resampling.BICUBIC) for file in files]
    views = []
    for indices, (box, flip, color) in zip(split_views(np.arange(len(files)), CLIPS).tolist(), draws):
        images = []
        for index, channel, factors, order in zip(indices, *(values.tolist() for values in color)):
            image = plain.resized_crop(frames[index], box.top, box.left, box.height, box.width, [IMG_DIM, IMG_DIM],
                                       InterpolationMode.BILINEAR)
            image = plain.hflip(image) if flip else image
            if channel >= 0:
                image = Image.merge("RGB", [image.getchannel(channel)] * 3)
            image = jitter(image, factors, order, plain)
            images.append(plain.normalize(plain.to_tensor(image), IMAGENET_MEAN, IMAGENET_STD))
        views.append(torch.stack(images, dim=1))
    return torch.stack(views)


def jitter(image: Image.Image | torch.Tensor, factors: list[float], order: list[int], functional: ModuleType
           ) -> Image.Image | torch.Tensor:
    """Returns the image after the four color changes of `functional`, torchvision's transforms or v2's."""
    adjust = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation, functional.adjust_hue)
    for kind in order:
        image = adjust[kind](image, factors[kind])
    return image


def torchvision_sample(path: str, number: int) -> torch.Tensor:
    """Returns the views [V + 1, 3, T, S, S]: decoded images stacked, transformed together wherever all are treated alike."""
    files, draws = draw_sample(path, number)
    frames = torch.stack([io.decode_jpeg(io.read_file(file)) for file in files])
    frames = v2.resize(frames, PRETRAIN_FRAME_SIZE[::-1], InterpolationMode.BICUBIC)
    views = []
    for indices, (box, flip, color) in zip(split_views(np.arange(len(files)), CLIPS), draws):
        view = v2.resized_crop(frames[indices], box.top, box.left, box.height, box.width, [IMG_DIM, IMG_DIM])
        view = v2.horizontal_flip(view) if flip else view
        images = []
        for image, channel, factors, order in zip(view, *(values.tolist() for values in color)):
            images.append(jitter(image[[channel] * 3] if channel >= 0 else image, factors, order, v2))
        view = v2.to_dtype(torch.stack(images), torch.float32, scale=True)
        views.append(v2.normalize(view, IMAGENET_MEAN, IMAGENET_STD).transpose(0, 1))
    return torch.stack(views)


def dali_sampler(path: str, resize: bool) -> Callable[[], Sequence]:
    """Returns a function that makes the next sample: three lists of DALI's tensors, one of float [3, S, S] for each frame.

    `resize`: frames are not stored at 200x150 (bicubic, as in all others; that alone takes DALI 25 ms).

    Color changes are DALI's own, one matrix a frame without 8-bit steps between, and channels are not split: less work.
    Item k of a batch is a pair of frames, 2 k and 2 k + 1: both belong to the same clip, and the first to the overview.
    """
    from nvidia.dali import fn, pipeline_def, types

    def batches() -> Iterator[tuple]:
        for number in itertools.count():
            files, draws = draw_sample(path, number)
            jpegs = [np.fromfile(file, np.uint8) for file in files]
            former, latter, overview = (np.concatenate([np.broadcast_to(np.float32([
                box.top, box.left, box.top + box.height, box.left + box.width, flip]), (CLIP_FRAMES, 5)),
                color.factors * np.float32([1, 1, 1, 360])], axis=1) for box, flip, color in draws)
            clips = np.concatenate([former, latter])
            yield jpegs[::2], jpegs[1::2], *itertools.chain.from_iterable(
                (np.ascontiguousarray(table[:, :2]), np.ascontiguousarray(table[:, 2:4]), table[:, 4].astype(np.int32),
                 *map(np.ascontiguousarray, table[:, 5:].T)) for table in (clips[::2], clips[1::2], overview))

    @pipeline_def(batch_size=CLIP_FRAMES, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def views():
        even, odd, *parameters = fn.external_source(batches(), num_outputs=23, batch=True)
        even, odd = fn.decoders.image(even), fn.decoders.image(odd)
        if resize:
            even, odd = (fn.resize(frame, size=PRETRAIN_FRAME_SIZE[::-1], interp_type=types.INTERP_CUBIC)
                         for frame in (even, odd))
        out = []
        for frame, start in ((even, 0), (odd, 7), (even, 14)):
            roi_start, roi_end, flip, brightness, contrast, saturation, hue = parameters[start : start + 7]
            image = fn.resize(frame, size=(IMG_DIM, IMG_DIM), roi_start=roi_start, roi_end=roi_end)
            image = fn.color_twist(image, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
            out.append(fn.crop_mirror_normalize(image, mirror=flip, mean=[255 * x for x in IMAGENET_MEAN],
                                                std=[255 * x for x in IMAGENET_STD], output_layout="CHW"))
        return tuple(out)

    return views().run
