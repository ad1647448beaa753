"""Data sets of videos, their batches, and the loader.

Shapes: B videos in the batch of this rank, V clips of T frames, S = `img_dim`. Pixels stay uint8 RGB until they are on
the device. All random draws of a sample come from (seed, epoch, index of the video), so that it depends neither on the
worker or rank that reads it nor on their number.

For an unreadable video, `read_or_replace` raises InputError, reads another video, or reports the reason, as the data set
asks.
"""
from __future__ import annotations

import errno
import itertools
import multiprocessing
import multiprocessing.queues
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import PurePath
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from dataset.background import swap_backgrounds
from dataset.color import ColorDraws, apply_color_on_device
from dataset.frames import read_frame_list, read_frames
from dataset.records import VideoRecord
from dataset.sampling import NATURAL, order_frames, pretraining_indices, split_views, training_clip
from dataset.transforms import (IMAGENET, PRETRAIN_FRAME_SIZE, FinetuneAugmentation, PretrainAugmentation, TestCrops,
                                scale_clips)
from utils.errors import InputError

MAX_REPLACEMENTS = 20  # of one pretraining sample

T = TypeVar("T")


def read_or_replace(read: Callable[[int], T], index: int, replacements: Iterable[int] = (),
                    report: bool = False) -> tuple[T | None, int, dict[int, str]]:
    """Returns (result of `read`, index that was read, index -> reason of those that failed).

    The index is `index`, or the first of `replacements` that can be read. If none can be read, raises InputError, or
    with `report` returns None as the result.
    """
    bad_videos: dict[int, str] = {}
    for candidate in itertools.chain([index], replacements):
        try:
            return read(candidate), candidate, bad_videos
        except InputError as error:
            bad_videos[candidate] = str(error)
    if report:
        return None, index, bad_videos
    prefix = f"none of {len(bad_videos)} videos can be read; the first: " if len(bad_videos) > 1 else ""
    raise InputError(f"{prefix}{bad_videos[index]}")


class PretrainBatch(NamedTuple):
    """A batch of pretraining samples; a sample has the same fields, for one video."""

    clips: torch.Tensor         # uint8 [B, V + 1, T, S, S, 3]: the clips in order, then the overview
    draws: ColorDraws | None    # [B, V + 1, T] color changes still to apply on the device; None if applied
    videos: list[int]           # [B] index of the video that each sample shows
    bad_videos: dict[int, str]  # index -> reason of unreadable videos, which were replaced
    donors: list[float | None]  # [B] draws for `swap_backgrounds`, still to do; None for a video that keeps its own


def collate_pretraining(samples: Sequence[PretrainBatch]) -> PretrainBatch:
    """Returns one batch of single samples."""
    bad = {index: reason for sample in samples for index, reason in sample.bad_videos.items()}
    clips = default_collate([sample.clips for sample in samples])  # in a worker directly into shared memory
    draws = default_collate([sample.draws for sample in samples]) if samples[0].draws else None
    return PretrainBatch(clips, draws, [sample.videos[0] for sample in samples], bad,
                         [sample.donors[0] for sample in samples])


def prepare_views(batch: PretrainBatch, device: torch.device, channels_last: bool = False,
                  scale: Mapping[str, Any] = IMAGENET) -> torch.Tensor:
    """Returns float32 views [B, V + 1, 3, T, S, S]: moves a batch to the device, applies what is pending, scales.

    The place for whatever needs several videos of a batch, or the device.
    """
    clips = batch.clips.to(device, non_blocking=True)
    if any(draw is not None for draw in batch.donors):
        clips = swap_backgrounds(clips, batch.donors)
    if batch.draws:
        clips = apply_color_on_device(clips, batch.draws)
    return scale_clips(clips, channels_last=channels_last, **scale)


@dataclass(eq=False)
class PretrainVideos(Dataset):
    """Pretraining samples by (epoch, index): V + 1 augmented views of a video, each frame decoded once.

    An unreadable video is replaced by one drawn from (seed, epoch, index), in at most `MAX_REPLACEMENTS` tries.
    """

    records: Sequence[VideoRecord]
    num_clips: int
    clip_frames: int
    max_stride: float
    img_dim: int
    seed: int
    color_on_device: bool = False  # leave color changes to `prepare_views`
    half: bool = False             # see `read_frame_list`
    color_per_clip: bool = False   # one color draw for all frames of a view
    swap_background: float = 0     # probability of a swap by `prepare_views`, which then always changes the color too
    flip: bool = True

    def __post_init__(self) -> None:
        self.augment = PretrainAugmentation(self.img_dim, PRETRAIN_FRAME_SIZE, self.color_per_clip, self.flip)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> PretrainBatch:
        """Returns the sample of (epoch, index), with clips uint8 [V + 1, T, S, S, 3]."""
        rng = _generator(self.seed, *key)
        others = (int(rng.integers(len(self.records))) for _ in range(MAX_REPLACEMENTS))
        views, index, bad_videos = read_or_replace(lambda index: self.read_views(index, rng), key[1], others)
        draws = None
        if self.color_on_device or self.swap_background:
            clips, separate = zip(*(self.augment.before_color(view, rng) for view in views))
            draws = ColorDraws(*map(np.stack, zip(*separate)))
        else:
            clips = [self.augment(view, rng) for view in views]
        return PretrainBatch(torch.from_numpy(np.stack(clips)), draws, [index], bad_videos, [self.draw_donor(key)])

    def draw_donor(self, key: tuple[int, int]) -> float | None:
        """Returns the draw of (epoch, index) for `swap_backgrounds`, from a generator of its own: no other draw moves."""
        if not self.swap_background:
            return None
        chosen, donor = _generator(self.seed, *key, 0).random(2).tolist()
        return donor if chosen < self.swap_background else None

    def read_views(self, index: int, rng: np.random.Generator) -> list[list[np.ndarray]]:
        """Returns the frames of each of the V + 1 views, T frames each, uint8 [H, W, 3]."""
        path, num_frames = self.records[index].path, self.records[index].num_frames
        indices = pretraining_indices(num_frames, self.num_clips, self.clip_frames, self.max_stride, rng)
        frames = read_frame_list(path, indices, num_frames, PRETRAIN_FRAME_SIZE, half=self.half)
        views = split_views(np.arange(len(indices)), self.num_clips)
        return [[frames[number] for number in view] for view in views.tolist()]


class LabelledClips(NamedTuple):
    """A batch of training clips of a downstream task; a sample has the same fields, for one video."""

    clips: torch.Tensor   # uint8 [B, T, S, S, 3]
    labels: torch.Tensor  # int64 [B]
    videos: torch.Tensor  # int64 [B]: index of the requested video
    reasons: list[str]    # [B]: why the requested video was replaced, "" if it was not


@dataclass(eq=False)
class LabelledVideos(Dataset):
    """Training clips of a downstream task by (epoch, index): one random clip of a video, and its label."""

    records: Sequence[VideoRecord]
    clip_frames: int
    stride: int
    augment: FinetuneAugmentation
    seed: int
    skip_bad: bool = False  # replace an unreadable video by the next readable one, so that every batch is full

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> LabelledClips:
        """Returns the sample of (epoch, index), with a clip uint8 [T, S, S, 3]."""
        epoch, index = key
        others = ((index + step) % len(self) for step in range(1, len(self))) if self.skip_bad else ()
        clip, shown, bad_videos = read_or_replace(lambda other: self.read_clip(epoch, other), index, others)
        return LabelledClips(clip, self.records[shown].label, index, bad_videos.get(index, ""))

    def read_clip(self, epoch: int, index: int) -> torch.Tensor:
        """Returns the augmented clip uint8 [T, S, S, 3] of (epoch, index)."""
        record = self.records[index]
        rng = _generator(self.seed, epoch, index)
        indices = training_clip(record.num_frames, self.clip_frames, self.stride, rng)
        return torch.from_numpy(self.augment(read_frame_list(record.path, indices, record.num_frames), rng))


class TestFrames(NamedTuple):
    """All frames of the test clips of one video; see `TestViews`."""

    __test__ = False  # not a pytest class

    frames: torch.Tensor  # uint8 [n, h, w, 3]
    clips: torch.Tensor   # int64 [clips, T]: indices into `frames`
    video: int            # index of the video
    reason: str           # why it cannot be read and the tensors are empty, "" if it can


@dataclass(eq=False)
class TestVideos(Dataset):
    """Test clips of a downstream task by index; nothing is random but the clip order "shuffled".

    Its permutations are drawn from the seed and the names of the video and its folder, wherever the data set lies.
    """

    __test__ = False  # not a pytest class

    records: Sequence[VideoRecord]
    sample_clips: Callable[[int], np.ndarray]  # number of frames -> indices [clips, T], such as a partial `window_clips`
    crops: TestCrops
    skip_bad: bool = False                     # report an unreadable video in its sample
    clip_order: str = NATURAL                  # see `order_frames`
    seed: int = 0                              # of "shuffled"

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> TestFrames:
        """Returns the frames of video `index`, resized by `TestCrops.resize`."""
        found, _, bad_videos = read_or_replace(self.read_clips, index, report=self.skip_bad)
        frames, clips = found or (torch.empty(0, dtype=torch.uint8), torch.empty(0, dtype=torch.int64))
        return TestFrames(frames, clips, index, bad_videos.get(index, ""))

    def read_clips(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (frames uint8 [n, h, w, 3], clips int64 [clips, T]) of video `index`."""
        record = self.records[index]
        rng = np.random.default_rng([self.seed, *"/".join(PurePath(record.path).parts[-2:]).encode()])
        clips = order_frames(self.sample_clips(record.num_frames), self.clip_order, rng)
        distinct, positions = np.unique(clips, return_inverse=True)
        frames = read_frames(record.path, distinct, record.num_frames, shrink=self.crops.resize)
        return torch.from_numpy(frames), torch.from_numpy(positions.reshape(clips.shape))


class TestViews:
    """The views of a video, clips x crops, cropped on access, since all together may take gigabytes."""

    __test__ = False  # not a pytest class

    def __init__(self, frames: torch.Tensor, clips: torch.Tensor, crops: TestCrops) -> None:
        self.frames, self.clips, self.crops = frames.numpy(), clips.numpy(), crops

    def __len__(self) -> int:
        return len(self.clips) * self.crops.num_crops

    def __getitem__(self, views: slice) -> torch.Tensor:
        """Returns uint8 [M, T, S, S, 3]: a slice of the views, ordered by clip, then by crop."""
        numbers = [divmod(view, self.crops.num_crops) for view in range(*views.indices(len(self)))]
        return torch.from_numpy(np.stack([self.crops.cut(self.frames, crop)[self.clips[clip]] for clip, crop in numbers]))


class EpochBatchSampler(Sampler):
    """Batches of (epoch, index) for one rank.

    All ranks draw the same permutation of the videos from (seed, epoch) and cut it into global batches of
    batch_size * world_size, of which rank r takes the r-th part. The `num_dropped` videos that do not fill a global
    batch are left out of that epoch.
    """

    def __init__(self, num_videos: int, batch_size: int, rank: int, world_size: int, seed: int) -> None:
        self.global_batch = batch_size * world_size
        if num_videos < self.global_batch:
            raise InputError(f"{num_videos} usable video(s) do not fill one batch of {self.global_batch} ({batch_size} for "
                             f"each of {world_size} process(es)): use a smaller batch or more videos")
        self.steps_per_epoch, self.num_dropped = divmod(num_videos, self.global_batch)
        self.num_videos, self.batch_size, self.rank, self.seed = num_videos, batch_size, rank, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Sets the epoch of the next iteration, and how many of its batches to skip when resuming."""
        self.epoch, self.start_step = epoch, start_step

    def __len__(self) -> int:
        return self.steps_per_epoch - self.start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        order = _generator(self.seed, epoch).permutation(self.num_videos)
        for step in range(self.start_step, self.steps_per_epoch):
            begin = step * self.global_batch + self.rank * self.batch_size
            yield [(epoch, index) for index in order[begin : begin + self.batch_size].tolist()]


def build_loader(dataset: Dataset, batches: Iterable[Sequence], num_workers: int, device: torch.device,
                 collate: Callable[[Sequence], object] | None = None, timeout_s: float = 600) -> DataLoader:
    """Returns a DataLoader of `batches` (keys of `dataset`), with pinned memory for a CUDA device.

    `collate`: samples -> batch, None for torch's own. Workers persist over epochs and use one thread each. If no
    batch arrives within `timeout_s`, torch raises RuntimeError. An InputError raised in a worker arrives here as an
    InputError, see `utils.errors.one_line`. Global random state is left unchanged.
    """
    cv2.setNumThreads(0)  # OpenCV's own threads slow down work on small frames
    Finalize(None, _kill_workers, exitpriority=0)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        multiprocessing_context="fork" if num_workers else None,  # spawn, a spawned rank's default, imports all again
        pin_memory=device.type == "cuda",
        persistent_workers=num_workers > 0,
        worker_init_fn=_start_worker,
        collate_fn=collate,
        generator=torch.Generator(),
        timeout=timeout_s if num_workers else 0,
    )


def _generator(seed: int, *key: int) -> np.random.Generator:
    """Returns the generator of a sample (key: epoch, index) or of the order of an epoch (key: epoch)."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _start_worker(_worker_id: int) -> None:
    # A worker that hangs in a read, or is stopped, would outlive a training process that is killed, and keep the lock of the
    # run directory and the pipe whose end tells the launcher that the process has ended.
    torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGKILL)
    # Signals reach all processes of a job; the training process decides what they mean.
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)


def _end_worker(error: Exception, _batch: object) -> None:
    """Ends a worker that cannot pass a batch on; multiprocessing would print a traceback, and the batch be waited for."""
    number = next((number for number in (errno.ENOSPC, errno.EMFILE) if os.strerror(number) in str(error)), 1)
    os.write(2, f"DataLoader worker {os.getpid()}: cannot pass a batch on: {error}\n".encode() if number == 1 else b"")
    os._exit(number)


def _kill_workers() -> None:
    """Kills the workers at exit; they ignore SIGTERM."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler reports a killed worker as an error
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
