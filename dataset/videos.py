"""Data sets of videos and the loaders that read them.

Shapes: B videos in this process's batch, V clips of T frames, S = ``img_dim``; pixels are uint8 RGB up to
the device. Every random draw of a sample comes from (seed, epoch, index of the video), so a sample does not
depend on which worker or process reads it, nor on how many there are.
"""
from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.util import Finalize
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from dataset.color import apply_color_on_device
from dataset.frames import read_frame_list, read_frames
from dataset.records import VideoRecord
from dataset.sampling import pretraining_indices, split_views, training_clip
from dataset.transforms import (PRETRAIN_FRAME_SIZE, ColorDraws, FinetuneAugmentation, PretrainAugmentation, TestCrops,
                                scale_clips, stack_draws)
from utils.errors import InputError
from utils.signals import leave_signals_to_parent

MAX_REPLACEMENTS = 20  # unreadable videos in a row that one sample may meet


class PretrainBatch(NamedTuple):
    """A batch as the loader hands it over; a sample has the same fields, for one video."""

    clips: torch.Tensor         # uint8 [B, V + 1, T, S, S, 3]: the clips in order, then the overview
    draws: ColorDraws | None    # [B, V + 1, T] color changes still to be made on the training device; None: made
    videos: list[int]           # [B] index of the video that each sample shows
    bad_videos: dict[int, str]  # index -> reason of those that could not be read, and that others stand in for


def collate_pretraining(samples: Sequence[PretrainBatch]) -> PretrainBatch:
    """Returns one batch of single samples."""
    bad = {index: reason for sample in samples for index, reason in sample.bad_videos.items()}
    clips = default_collate([sample.clips for sample in samples])  # in a loader process straight into shared memory
    draws = default_collate([sample.draws for sample in samples]) if samples[0].draws else None
    return PretrainBatch(clips, draws, [sample.videos[0] for sample in samples], bad)


def prepare_views(batch: PretrainBatch, device: torch.device, channels_last: bool = False) -> torch.Tensor:
    """Returns float32 views [B, V + 1, 3, T, S, S] on the device: moved there, color changes left to it made, scaled."""
    clips = batch.clips.to(device, non_blocking=True)
    if batch.draws:
        clips = apply_color_on_device(clips, batch.draws)
    return scale_clips(clips, channels_last=channels_last)


class PretrainVideos(Dataset):
    """Pretraining samples: V + 1 augmented views of a video, each frame decoded once."""

    def __init__(
        self,
        records: Sequence[VideoRecord],
        num_clips: int,
        clip_frames: int,
        max_stride: float,
        img_dim: int,
        seed: int,
        color_on_device: bool = False,
        half: bool = False,
    ) -> None:
        """``color_on_device``: leave color to `apply_color_on_device`, and hand over its draws.

        ``half``: as in `read_frame_list`.
        """
        self.half = half
        self.color_on_device = color_on_device
        self.records = records
        self.num_clips = num_clips
        self.clip_frames = clip_frames
        self.max_stride = max_stride
        self.augment = PretrainAugmentation(img_dim, PRETRAIN_FRAME_SIZE)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> PretrainBatch:
        """Returns the sample of (epoch, index), whose clips are uint8 [V + 1, T, S, S, 3].

        Another video, drawn from (seed, epoch, index) too, stands in for one that cannot be read. InputError when
        MAX_REPLACEMENTS in a row cannot.
        """
        epoch, index = key
        rng = _generator(self.seed, epoch, index)
        bad: dict[int, str] = {}
        for replacements_left in reversed(range(MAX_REPLACEMENTS + 1)):
            try:
                views = self.read_views(index, rng)
                break
            except InputError as error:
                bad[index] = str(error)
                if not replacements_left:
                    raise
                index = int(rng.integers(len(self.records)))
        draws = None
        if self.color_on_device:
            clips, separate = zip(*(self.augment.before_color(view, rng) for view in views))
            draws = stack_draws(separate)
        else:
            clips = [self.augment(view, rng) for view in views]
        return PretrainBatch(torch.from_numpy(np.stack(clips)), draws, [index], bad)

    def read_views(self, index: int, rng: np.random.Generator) -> list[list[np.ndarray]]:
        """Returns the frames of each of the V + 1 views, T frames each, uint8 [H, W, 3]."""
        path, num_frames = self.records[index].path, self.records[index].num_frames
        indices = pretraining_indices(num_frames, self.num_clips, self.clip_frames, self.max_stride, rng)
        frames = read_frame_list(path, indices, num_frames, PRETRAIN_FRAME_SIZE, half=self.half)
        views = split_views(np.arange(len(indices)), self.num_clips)
        return [[frames[number] for number in view] for view in views.tolist()]


class LabelledVideos(Dataset):
    """Training clips of a downstream task: one random clip of a video and its label."""

    def __init__(
        self,
        records: Sequence[VideoRecord],
        clip_frames: int,
        stride: int,
        augment: FinetuneAugmentation,
        seed: int,
    ) -> None:
        self.records = records
        self.clip_frames = clip_frames
        self.stride = stride
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, int]:
        """Returns (clip uint8 [T, S, S, 3], label) for (epoch, index)."""
        epoch, index = key
        record = self.records[index]
        rng = _generator(self.seed, epoch, index)
        indices = training_clip(record.num_frames, self.clip_frames, self.stride, rng)
        frames = read_frame_list(record.path, indices, record.num_frames)
        return torch.from_numpy(self.augment(frames, rng)), record.label


class TestViews:
    """The views of a video, clips x crops, each cut when it is asked for: all at once may take gigabytes.

    ``frames`` uint8 [n, h, w, 3] as ``TestCrops.resize`` gives them; ``clips`` int64 [clips, T]: which of them.
    """

    __test__ = False  # the name begins as pytest's test classes do

    def __init__(self, frames: torch.Tensor, clips: torch.Tensor, crops: TestCrops) -> None:
        self.frames = frames.numpy()
        self.clips = clips.numpy()
        self.crops = crops

    def __len__(self) -> int:
        return len(self.clips) * self.crops.num_crops

    def __getitem__(self, views: slice) -> torch.Tensor:
        """Returns uint8 [M, T, S, S, 3] of a slice of the views, of which the crops of one clip lie side by side."""
        numbers = [divmod(view, self.crops.num_crops) for view in range(*views.indices(len(self)))]
        cut = [self.crops.cut(self.frames, crop)[self.clips[clip]] for clip, crop in numbers]
        return torch.from_numpy(np.stack(cut))


class LabelledTestVideos(Dataset):
    """Test clips of a downstream task: all frames that a video's clips are made of, without any draw."""

    def __init__(
        self, records: Sequence[VideoRecord], sample_clips: Callable[[int], np.ndarray], crops: TestCrops
    ) -> None:
        """``sample_clips``: number of frames -> frame indices [clips, T], such as a partial window_clips."""
        self.records = records
        self.sample_clips = sample_clips
        self.crops = crops

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """Returns (frames uint8 [n, h, w, 3], clips int64 [clips, T], label, index); see ``TestViews``."""
        record = self.records[index]
        clips = self.sample_clips(record.num_frames)
        distinct, positions = np.unique(clips, return_inverse=True)
        frames = read_frames(record.path, distinct, record.num_frames, shrink=self.crops.resize)
        return torch.from_numpy(frames), torch.from_numpy(positions.reshape(clips.shape)), record.label, index


class EpochBatchSampler(Sampler):
    """Batches of (epoch, index) for one of several processes.

    All processes draw the same permutation of the videos from (seed, epoch) and cut it into global batches of
    batch_size * world_size; process r takes the r-th run of batch_size of each. What does not fill a global
    batch is left out of that epoch (``num_dropped`` videos).
    """

    def __init__(self, num_videos: int, batch_size: int, rank: int, world_size: int, seed: int) -> None:
        self.global_batch = batch_size * world_size
        if num_videos < self.global_batch:
            raise InputError(
                f"{num_videos} usable video(s) do not fill one batch of {self.global_batch} "
                f"({batch_size} for each of {world_size} process(es)): use a smaller batch or more videos"
            )
        self.num_videos = num_videos
        self.batch_size = batch_size
        self.rank = rank
        self.seed = seed
        self.set_epoch(0)

    @property
    def steps_per_epoch(self) -> int:
        return self.num_videos // self.global_batch

    @property
    def num_dropped(self) -> int:
        return self.num_videos % self.global_batch

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Sets the epoch of the next iteration and how many of its first batches to leave out (resuming)."""
        self.epoch = epoch
        self.start_step = start_step

    def __len__(self) -> int:
        return self.steps_per_epoch - self.start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        order = _generator(self.seed, epoch).permutation(self.num_videos)
        for step in range(self.start_step, self.steps_per_epoch):
            begin = step * self.global_batch + self.rank * self.batch_size
            yield [(epoch, index) for index in order[begin : begin + self.batch_size].tolist()]


def build_loader(
    dataset: Dataset, batches: EpochBatchSampler, num_workers: int, device: torch.device,
    collate: Callable[[Sequence], object] | None = None, timeout_s: float = 600,
) -> DataLoader:
    """Returns a loader of ``batches``: collated once, in the workers, pinned for a CUDA device.

    ``collate``: samples -> batch, None for torch's own. Workers live as long as the loader and keep to one thread
    each; where they hand over no batch for ``timeout_s``, torch raises a RuntimeError. An InputError raised in a worker
    arrives here as an InputError; ``utils.errors.one_line`` gives its message. The loader draws from no global random
    state.
    """
    _limit_threads()
    Finalize(None, _end_workers, exitpriority=0)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        multiprocessing_context="fork" if num_workers else None,  # "spawn", as in a spawned rank, imports all anew
        pin_memory=device.type == "cuda",
        persistent_workers=num_workers > 0,
        worker_init_fn=_start_worker,
        collate_fn=collate,
        generator=torch.Generator(),
        timeout=timeout_s if num_workers else 0,
    )


def _generator(seed: int, *key: int) -> np.random.Generator:
    """Returns the generator of a sample (key: epoch, index) or of an epoch's order (key: epoch)."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _start_worker(_worker_id: int) -> None:
    """What a worker process does first."""
    leave_signals_to_parent()
    _limit_threads()


def _end_workers() -> None:
    """At the end of this process, before it would send workers SIGTERM, to which they are deaf, and wait for them."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler takes a killed worker for an error
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def _limit_threads() -> None:
    """OpenCV's own threads cost more than they give on small frames; torch limits its own in workers."""
    cv2.setNumThreads(0)
