"""One pretraining sample on one core: the plain pipeline (Pillow and torchvision, frame by frame) against ours.

    python -m benchmarks.input [--quick]

A sample is 32 frames of 340x256 (JPEG, quality 90), decoded, resized to 200x150, and made into three views of 16
frames at 112 px with crop, flip, channel splitting, color jitter and normalization. Every pipeline gets the same
draws, so that the pixels can be compared as well as the times.
"""
from __future__ import annotations

import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as plain

from benchmarks.measure import milliseconds, quick_flag, ratio, table, time_in_turns
from dataset.frames import decode_image, read_folder, read_frames
from dataset.color import apply_color_on_device
from dataset.records import VideoRecord
from dataset.sampling import pretraining_indices, split_views
from dataset.transforms import (FLIP_PROBABILITY, IMAGENET_MEAN, IMAGENET_STD, PRETRAIN_FRAME_SIZE, PRETRAIN_JITTER,
                                PRETRAIN_MIN_AREA, ColorDraws, PretrainAugmentation, draw_channels, draw_crop,
                                draw_jitter, scale_clips, stack_draws)
from dataset.videos import PretrainVideos

CLIPS, CLIP_FRAMES, MAX_STRIDE, IMG_DIM = 2, 16, 3.0, 112
NUM_FRAMES = 80
ADJUST = (plain.adjust_brightness, plain.adjust_contrast, plain.adjust_saturation, plain.adjust_hue)


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """Returns random levels [height, width, 3] with a falling spectrum and the gray of photos: as hard to decode."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width)
    frequency[0, 0] = np.inf  # no mean
    fields = [np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) / frequency**1.5, (height, width))
              for _ in range(4)]
    gray, *colors = (field / field.std() for field in fields)
    return 128 + 40 * np.stack([0.85 * gray + 0.5 * color for color in colors], axis=-1)


def write_video(folder: Path, size: tuple[int, int], seed: int, num_frames: int = NUM_FRAMES) -> str:
    """Writes a video of a texture that drifts before another one, in frames of `size`; returns its folder."""
    scene, veil = texture(256 + 64, 340 + 64, seed), texture(256, 340, seed + 1)
    folder.mkdir()
    for index in range(num_frames):
        down, right = (int(32 + 32 * np.sin(index / period)) for period in (31, 23))
        levels = 0.7 * scene[down:down + 256, right:right + 340] + 0.3 * veil
        frame = Image.fromarray(np.clip(128 + 1.3 * (levels - 128), 0, 255).astype(np.uint8))
        frame.resize(size, Image.Resampling.BICUBIC).save(folder / f"image_{index + 1:05d}.jpg", quality=90)
    return str(folder)


def plain_sample(path: str, seed: int) -> torch.Tensor:
    """Returns the sample [V + 1, 3, T, S, S] of the plain pipeline."""
    rng = np.random.default_rng(seed)
    indices = pretraining_indices(NUM_FRAMES, CLIPS, CLIP_FRAMES, MAX_STRIDE, rng)
    frames = [Image.open(f"{path}/image_{index + 1:05d}.jpg").convert("RGB")
              .resize(PRETRAIN_FRAME_SIZE, Image.Resampling.BICUBIC) for index in indices]
    views = []
    for view in split_views(np.arange(len(indices)), CLIPS):
        width, height = PRETRAIN_FRAME_SIZE
        box = draw_crop(height, width, PRETRAIN_MIN_AREA, rng)
        flip = rng.random() < FLIP_PROBABILITY
        draws = ColorDraws(draw_channels(CLIP_FRAMES, rng), *draw_jitter(CLIP_FRAMES, PRETRAIN_JITTER, rng))
        images = []
        for number, channel, factors, order in zip(view, *(draw.tolist() for draw in draws)):
            image = plain.resized_crop(frames[number], box.top, box.left, box.height, box.width, [IMG_DIM, IMG_DIM],
                                       InterpolationMode.BILINEAR)
            if flip:
                image = plain.hflip(image)
            if channel >= 0:
                image = Image.merge("RGB", [image.getchannel(channel)] * 3)
            for kind in order:
                image = ADJUST[kind](image, factors[kind])
            images.append(plain.normalize(plain.to_tensor(image), IMAGENET_MEAN, IMAGENET_STD))
        views.append(torch.stack(images, dim=1))
    return torch.stack(views)


class OurSamples:
    """Our pipeline by its parts."""

    def __init__(self, path: str, half: bool = False) -> None:
        """`half`: with `--decode half`."""
        self.videos = PretrainVideos([VideoRecord(path, NUM_FRAMES)], CLIPS, CLIP_FRAMES, MAX_STRIDE, IMG_DIM, 0,
                                     half=half)
        self.augment = PretrainAugmentation(IMG_DIM)

    def with_color(self, seed: int) -> torch.Tensor:
        """Returns uint8 [V + 1, T, S, S, 3]: what a loader hands over with `--augment_on cpu`."""
        rng = np.random.default_rng(seed)
        return torch.from_numpy(np.stack([self.augment(view, rng) for view in self.videos.read_views(0, rng)]))

    def before_color(self, seed: int) -> tuple[torch.Tensor, ColorDraws]:
        """Returns uint8 [V + 1, T, S, S, 3] and draws: what a loader hands over with `--augment_on device`."""
        rng = np.random.default_rng(seed)
        clips, draws = zip(*(self.augment.before_color(view, rng) for view in self.videos.read_views(0, rng)))
        return torch.from_numpy(np.stack(clips)), ColorDraws(*map(torch.from_numpy, stack_draws(draws)))


def grey_levels(views: torch.Tensor) -> torch.Tensor:
    """Returns normalized views [V + 1, 3, T, S, S] as levels 0 to 255."""
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (views * std + mean) * 255


def color_on_device_ms(sample: tuple[torch.Tensor, ColorDraws], device: torch.device, turns: int) -> str:
    """Returns the milliseconds a sample of the color changes and normalization on `device`, in its usual batch."""
    batch = 64 if device.type == "cuda" else 1
    clips = sample[0].expand(batch, -1, -1, -1, -1, -1).contiguous().to(device)
    draws = ColorDraws(*(draw.expand(batch, *draw.shape).contiguous() for draw in sample[1]))

    def job() -> None:
        scale_clips(apply_color_on_device(clips, draws))
        if device.type == "cuda":
            torch.cuda.synchronize()

    return milliseconds([second / batch for second in time_in_turns({"color": job}, turns)["color"]])


def main() -> None:
    quick = quick_flag(__doc__)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    turns = 5 if quick else 25
    with tempfile.TemporaryDirectory() as folder:
        full = write_video(Path(folder) / "full", (340, 256), 0)
        small = write_video(Path(folder) / "small", PRETRAIN_FRAME_SIZE, 0)
        ours, ours_half, ours_small = OurSamples(full), OurSamples(full, half=True), OurSamples(small)
        kib, kib_small = (sum(file.stat().st_size for file in Path(path).iterdir()) / NUM_FRAMES / 1024
                          for path in (full, small))
        seed = iter(range(10**9))
        numbers = np.arange(CLIPS * CLIP_FRAMES)
        files = [data for _, data in read_folder(full, numbers.tolist(), NUM_FRAMES)]
        seconds = time_in_turns({
            "plain": lambda: plain_sample(full, next(seed)),
            "cpu": lambda: scale_clips(ours.with_color(next(seed))),
            "device": lambda: ours.before_color(next(seed)),
            "half cpu": lambda: scale_clips(ours_half.with_color(next(seed))),
            "half device": lambda: ours_half.before_color(next(seed)),
            "small cpu": lambda: scale_clips(ours_small.with_color(next(seed))),
            "small device": lambda: ours_small.before_color(next(seed)),
            "decode": lambda: read_frames(full, numbers, NUM_FRAMES, PRETRAIN_FRAME_SIZE),
            "decode half": lambda: read_frames(full, numbers, NUM_FRAMES, PRETRAIN_FRAME_SIZE, half=True),
            "decode small": lambda: read_frames(small, numbers, NUM_FRAMES, PRETRAIN_FRAME_SIZE),
            "jpeg": lambda: [decode_image(data, "") for data in files],
            "jpeg half": lambda: [decode_image(data, "", half=True) for data in files],
        }, turns)
        off_cpu, off_half, off_device = [], [], []
        for number in range(3 if quick else 10):
            wanted = grey_levels(plain_sample(full, number))
            on_device = scale_clips(apply_color_on_device(*ours.before_color(number)))
            off_cpu.append((grey_levels(scale_clips(ours.with_color(number))) - wanted).abs().mean().item())
            off_half.append((grey_levels(scale_clips(ours_half.with_color(number))) - wanted).abs().mean().item())
            off_device.append((grey_levels(on_device) - wanted).abs().mean().item())
        devices = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
        shares = {device.type: color_on_device_ms(ours.before_color(0), device, turns) for device in devices}

    rows = [[name, milliseconds(seconds[key]), f"{1 / np.median(seconds[key]):.1f}",
             f"{ratio(seconds['plain'], seconds[key]):.1f}x"]
            for name, key in [("plain pipeline", "plain"), ("ours, all on the CPU", "cpu"),
                              ("ours, a loader's share with `--augment_on device`", "device"),
                              ("ours, all on the CPU, `--decode half`", "half cpu"),
                              ("ours, a loader's share with both", "half device"),
                              ("ours, all on the CPU, frames stored at 200x150", "small cpu"),
                              ("ours, a loader's share, frames stored at 200x150", "small device"),
                              ("of ours: reading 32 frames, resized to 200x150", "decode"),
                              ("of ours: reading 32 frames at 170x128, with `--decode half`", "decode half"),
                              ("of ours: reading 32 frames stored at 200x150", "decode small"),
                              ("the floor: libjpeg-turbo alone, 32 frames in memory", "jpeg"),
                              ("the floor with `--decode half`", "jpeg half")]]
    print(table(["one core", "ms a sample", "samples/s", "against plain"], rows))
    print(f"\nFrames of {kib:.0f} KiB, {kib_small:.0f} KiB at 200x150; medians of {turns} turns. Mean absolute difference "
          f"to the plain pipeline's views: {np.mean(off_cpu):.2f} grey levels with color on the CPU, "
          f"{np.mean(off_device):.2f} with color on the device, {np.mean(off_half):.2f} with color on the CPU and `--decode "
          "half`. Color and normalization on the device take "
          + ", ".join(f"{ms} ms a sample on {name}" for name, ms in shares.items()) + ".")


if __name__ == "__main__":
    main()
