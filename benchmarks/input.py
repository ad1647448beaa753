"""One pretraining sample on one core: a plain pipeline (Pillow and torchvision, frame by frame) against ours.

    python -m benchmarks.input [--quick]

A sample is 32 frames of 340x256 (JPEG, quality 90), decoded, resized to 200x150, and made into three views of 16
frames at 112 px with crop, flip, channel splitting, color jitter and normalization. All pipelines make the same random
draws, so that pixels can be compared as well as times.
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

from benchmarks.measure import format_table, milliseconds, quick_flag, ratio, time_in_turns
from dataset.color import draw_channels, draw_jitter
from dataset.frames import decode_image, read_folder, read_frames
from dataset.records import VideoRecord
from dataset.sampling import pretraining_indices, split_views
from dataset.transforms import (FLIP_PROBABILITY, IMAGENET_MEAN, IMAGENET_STD, PRETRAIN_FRAME_SIZE, PRETRAIN_JITTER,
                                PRETRAIN_MIN_AREA, draw_crop)
from dataset.videos import PretrainBatch, PretrainVideos, collate_pretraining, prepare_views

CLIPS, CLIP_FRAMES, MAX_STRIDE, IMG_DIM = 2, 16, 3.0, 112
NUM_FRAMES = 80
ADJUST = (plain.adjust_brightness, plain.adjust_contrast, plain.adjust_saturation, plain.adjust_hue)
CPU = torch.device("cpu")


def texture(height: int, width: int, seed: int) -> np.ndarray:
    """Returns random levels [height, width, 3] with the spectrum and saturation of photos: as hard to decode."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width)
    frequency[0, 0] = np.inf  # no mean
    fields = [np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) / frequency**1.5, (height, width))
              for _ in range(4)]
    gray, *colors = (field / field.std() for field in fields)
    return 128 + 40 * np.stack([0.85 * gray + 0.5 * color for color in colors], axis=-1)


def write_video(folder: Path, size: tuple[int, int], seed: int, num_frames: int = NUM_FRAMES) -> str:
    """Writes a frame folder with a texture that drifts behind another one, in frames of `size`; returns its path."""
    scene, veil = texture(256 + 64, 340 + 64, seed), texture(256, 340, seed + 1)
    folder.mkdir()
    for index in range(num_frames):
        down, right = (int(32 + 32 * np.sin(index / period)) for period in (31, 23))
        levels = 0.7 * scene[down:down + 256, right:right + 340] + 0.3 * veil
        frame = Image.fromarray(np.clip(128 + 1.3 * (levels - 128), 0, 255).astype(np.uint8))
        frame.resize(size, Image.Resampling.BICUBIC).save(folder / f"image_{index + 1:05d}.jpg", quality=90)
    return str(folder)


def plain_sample(path: str, number: int) -> torch.Tensor:
    """Returns the views [V + 1, 3, T, S, S] of the plain pipeline, with the draws of `our_sample(..., number)`."""
    rng = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(number, 0)))
    indices = pretraining_indices(NUM_FRAMES, CLIPS, CLIP_FRAMES, MAX_STRIDE, rng)
    frames = [Image.open(f"{path}/image_{index + 1:05d}.jpg").convert("RGB")
              .resize(PRETRAIN_FRAME_SIZE, Image.Resampling.BICUBIC) for index in indices]
    views = []
    for view in split_views(np.arange(len(indices)), CLIPS):
        width, height = PRETRAIN_FRAME_SIZE
        box = draw_crop(height, width, PRETRAIN_MIN_AREA, rng)
        flip = rng.random() < FLIP_PROBABILITY
        channels, (factors, orders) = draw_channels(CLIP_FRAMES, rng), draw_jitter(CLIP_FRAMES, PRETRAIN_JITTER, rng)
        images = []
        for index, channel, factor, order in zip(view, channels.tolist(), factors.tolist(), orders.tolist()):
            image = plain.resized_crop(frames[index], box.top, box.left, box.height, box.width, [IMG_DIM, IMG_DIM],
                                       InterpolationMode.BILINEAR)
            image = plain.hflip(image) if flip else image
            if channel >= 0:
                image = Image.merge("RGB", [image.getchannel(channel)] * 3)
            for kind in order:
                image = ADJUST[kind](image, factor[kind])
            images.append(plain.normalize(plain.to_tensor(image), IMAGENET_MEAN, IMAGENET_STD))
        views.append(torch.stack(images, dim=1))
    return torch.stack(views)


def our_videos(path: str, augment_on: str = "cpu", decode: str = "full") -> PretrainVideos:
    """Returns the data set of one video, with these values of `--augment_on` and `--decode`."""
    return PretrainVideos([VideoRecord(path, NUM_FRAMES)], CLIPS, CLIP_FRAMES, MAX_STRIDE, IMG_DIM, 0,
                          augment_on == "device", decode == "half")


def our_sample(videos: PretrainVideos, number: int) -> torch.Tensor:
    """Returns the views [V + 1, 3, T, S, S] of our pipeline, all of it on the CPU."""
    return prepare_views(collate_pretraining([videos[number, 0]]), CPU)[0]


def gray_levels(views: torch.Tensor) -> torch.Tensor:
    """Returns normalized views [V + 1, 3, T, S, S] as levels 0 to 255."""
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (views * std + mean) * 255


def device_ms(sample: PretrainBatch, device: torch.device, turns: int) -> str:
    """Returns the milliseconds per sample of color changes and normalization on `device`, in its usual batch size."""
    batch = collate_pretraining([sample] * (64 if device.type == "cuda" else 1))
    batch = batch._replace(clips=batch.clips.to(device))

    def color_and_scale() -> None:
        prepare_views(batch, device)
        if device.type == "cuda":
            torch.cuda.synchronize()

    seconds = time_in_turns({"color": color_and_scale}, turns)["color"]
    return milliseconds([second / len(batch.clips) for second in seconds])


def main() -> None:
    quick = quick_flag(__doc__)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    turns = 5 if quick else 25
    with tempfile.TemporaryDirectory() as folder:
        full = write_video(Path(folder) / "full", (340, 256), 0)
        small = write_video(Path(folder) / "small", PRETRAIN_FRAME_SIZE, 0)
        kib, kib_small = (sum(file.stat().st_size for file in Path(path).iterdir()) / NUM_FRAMES / 1024
                          for path in (full, small))
        kinds = {"": (full, "full"), ", `--decode half`": (full, "half"), ", frames stored at 200x150": (small, "full")}
        ours = {kind: (our_videos(path, "cpu", decode), our_videos(path, "device", decode))
                for kind, (path, decode) in kinds.items()}
        numbers = np.arange(CLIPS * CLIP_FRAMES)
        files = [data for _, data in read_folder(full, numbers.tolist(), NUM_FRAMES)]
        samples = iter(range(10**9))
        jobs = {"plain pipeline": lambda: plain_sample(full, next(samples))}
        for kind, (on_cpu, on_device) in ours.items():
            jobs[f"ours, all on the CPU{kind}"] = lambda videos=on_cpu: our_sample(videos, next(samples))
            jobs[f"ours, CPU time of a worker with `--augment_on device`{kind}"] = (
                lambda videos=on_device: videos[next(samples), 0])
        for kind, (path, decode) in kinds.items():
            jobs[f"of ours: reading 32 frames, resized to 200x150{kind}"] = lambda path=path, decode=decode: read_frames(
                path, numbers, NUM_FRAMES, PRETRAIN_FRAME_SIZE, half=decode == "half")
        for kind, half in (("", False), (", `--decode half`", True)):
            jobs[f"lower bound: libjpeg-turbo alone, 32 frames in memory{kind}"] = lambda half=half: [
                decode_image(data, "", half=half) for data in files]
        seconds = time_in_turns(jobs, turns)

        compared = {"color on the CPU": ours[""][0], "color on the device": ours[""][1],
                    "color on the CPU and `--decode half`": ours[", `--decode half`"][0]}
        differences: dict[str, list[float]] = {name: [] for name in compared}
        for number in range(3 if quick else 10):
            expected = gray_levels(plain_sample(full, number))
            for name, videos in compared.items():
                differences[name].append((gray_levels(our_sample(videos, number)) - expected).abs().mean().item())
        devices = [CPU] + [torch.device("cuda")] * torch.cuda.is_available()
        on_devices = [f"{device_ms(ours[''][1][0, 0], device, turns)} ms a sample on {device.type}" for device in devices]

    print(format_table(["one core", "ms a sample", "samples/s", "against plain"], [
        [name, milliseconds(times), f"{1 / np.median(times):.1f}", f"{ratio(seconds['plain pipeline'], times):.1f}x"]
        for name, times in seconds.items()]))
    print(f"\nFrames of {kib:.0f} KiB, {kib_small:.0f} KiB at 200x150; medians of {turns} turns. Mean absolute difference "
          "to the views of the plain pipeline: "
          + ", ".join(f"{np.mean(values):.2f} gray levels with {name}" for name, values in differences.items())
          + f". Color and normalization on the device take {', '.join(on_devices)}.")


if __name__ == "__main__":
    main()
