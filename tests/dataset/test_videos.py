from __future__ import annotations

import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset.frames import read_frames
from dataset.background import swap_backgrounds
from dataset.color import apply_color_on_device
from dataset.records import VideoRecord
from dataset.sampling import uniform_clips, window_clips
from dataset.transforms import FinetuneAugmentation, TestCrops, scale_clips
from dataset.videos import (
    EpochBatchSampler,
    LabelledVideos,
    PretrainBatch,
    PretrainVideos,
    TestVideos,
    TestViews,
    build_loader,
    collate_pretraining,
    prepare_views,
)
from utils.errors import InputError, one_line

CPU = torch.device("cpu")


@pytest.fixture
def records(tmp_path: Path, write_coded_video: Callable) -> list[VideoRecord]:
    lengths = (20, 33, 60, 100, 41, 47, 80)
    return [
        VideoRecord(write_coded_video(tmp_path / f"v{index}", length), length, index % 3)
        for index, length in enumerate(lengths)
    ]


def pretrain_videos(
    records: list[VideoRecord], seed: int = 0, num_clips: int = 2, img_dim: int = 16
) -> PretrainVideos:
    return PretrainVideos(records, num_clips, clip_frames=8, max_stride=3.0, img_dim=img_dim, seed=seed)


@pytest.mark.parametrize("num_clips", [2, 3])
def test_views_hold_the_frames_of_the_sampling(
    records: list[VideoRecord], read_codes: Callable, num_clips: int
) -> None:
    """The whole path through JPEG, with the augmentation alone left out."""
    usable = [record for record in records if record.num_frames > num_clips * 8]
    videos = pretrain_videos(usable, num_clips=num_clips)
    videos.augment = lambda frames, rng: frames
    starts = set()
    for epoch in range(4):
        for index, record in enumerate(usable):
            views = read_codes(videos[epoch, index].clips.numpy())
            assert views.shape == (num_clips + 1, 8)
            frames = views[:-1].ravel()
            assert views[-1].tolist() == frames[::num_clips].tolist()
            steps = np.diff(frames)
            longest = min(3.0, record.num_frames / (num_clips * 8))
            assert steps.min() >= (frames[-1] != record.num_frames - 1) and steps.max() <= np.ceil(longest)
            assert frames[-1] < record.num_frames
            starts.add((index, int(frames[0])))
    assert len(starts) > 2 * len(usable)


def test_a_sample_is_a_uint8_tensor_that_repeats_itself(records: list[VideoRecord]) -> None:
    videos = pretrain_videos(records)
    sample = videos[3, 2].clips
    assert videos[3, 2].videos == [2] and videos[3, 2].bad_videos == {}
    assert sample.shape == (3, 8, 16, 16, 3) and sample.dtype == torch.uint8 and len(videos) == 7
    assert torch.equal(sample, pretrain_videos(records)[3, 2].clips)


def test_color_on_the_device_gets_the_draws_of_the_cpu_path(records: list[VideoRecord]) -> None:
    """Through workers and collation: the same crops, flips and color changes for the same (seed, epoch, video)."""
    usable = [record for record in records if record.num_frames > 16]
    on_cpu, on_device = (
        PretrainVideos(usable, 2, 8, 3.0, 16, seed=0, color_on_device=place) for place in (False, True)
    )
    batches = EpochBatchSampler(len(usable), 2, 0, 1, seed=0)
    for num_workers in (0, 2):
        expected = list(build_loader(on_cpu, batches, num_workers, CPU, collate_pretraining))
        given = list(build_loader(on_device, batches, num_workers, CPU, collate_pretraining))
        for a, b in zip(expected, given, strict=True):
            assert a.draws is None and a.videos == b.videos and b.draws.factors.shape == (2, 3, 8, 4)
            off = (apply_color_on_device(b.clips, b.draws).int() - a.clips.int()).abs().float().mean()
            assert off < 2 < (b.clips.int() - a.clips.int()).abs().float().mean()


@pytest.mark.parametrize("color_on_device", [False, True])
def test_views_are_recolored_where_left_to_the_device_and_scaled(
    records: list[VideoRecord], color_on_device: bool
) -> None:
    videos = PretrainVideos(records[2:4], 2, 8, 3.0, 16, seed=0, color_on_device=color_on_device)
    batch = collate_pretraining([videos[0, 0], videos[0, 1]])
    pixels = apply_color_on_device(batch.clips, batch.draws) if color_on_device else batch.clips
    for channels_last in (False, True):
        views = prepare_views(batch, CPU, channels_last)
        assert views.shape == (2, 3, 3, 8, 16, 16) and views.is_contiguous() == (not channels_last)
        assert torch.equal(views, scale_clips(pixels))


def test_backgrounds_are_swapped_before_color_by_draws_of_each_video(records: list[VideoRecord]) -> None:
    usable = [record for record in records if record.num_frames > 16]

    def samples(probability: float, epoch: int, seed: int = 0) -> list[PretrainBatch]:
        videos = PretrainVideos(usable, 2, 8, 3.0, 16, seed, color_on_device=True, swap_background=probability)
        return [videos[epoch, index] for index in range(len(usable))]

    kept, mixed, swapped = (samples(probability, epoch=1) for probability in (0, 0.5, 1))
    for a, b, c in zip(kept, mixed, swapped, strict=True):  # no other draw moves, and the donor's is the same
        for other in (b, c):
            assert torch.equal(a.clips, other.clips) and all(map(np.array_equal, a.draws, other.draws))
        assert a.donors == [None] and b.donors in ([None], c.donors) and 0 <= c.donors[0] < 1
    draws = [tuple(sample.donors[0] for sample in samples(1, epoch, seed)) for epoch in (1, 2) for seed in (0, 1)]
    assert len(set(sum(draws, ()))) == 4 * len(usable) and draws[0] == tuple(sample.donors[0] for sample in swapped)
    chosen = [sample.donors[0] is not None for epoch in range(20) for sample in samples(0.5, epoch)]
    assert 0.35 < np.mean(chosen) < 0.65

    for few in (kept, swapped):
        batch = collate_pretraining(few)
        pixels = swap_backgrounds(batch.clips, batch.donors) if few is swapped else batch.clips
        assert torch.equal(prepare_views(batch, CPU), scale_clips(apply_color_on_device(pixels, batch.draws)))
    on_cpu = PretrainVideos(usable, 2, 8, 3.0, 16, 0, swap_background=1)[1, 0]  # leaves color to the device too
    assert torch.equal(on_cpu.clips, swapped[0].clips) and all(map(np.array_equal, on_cpu.draws, swapped[0].draws))


def test_no_two_draws_repeat(records: list[VideoRecord]) -> None:
    """One video under several indices, epochs and seeds: every view of every sample is another one."""
    views = [
        view.numpy().tobytes()
        for seed in (0, 1)
        for epoch in range(3)
        for index in range(3)
        for view in pretrain_videos([records[3]] * 3, seed)[epoch, index].clips
    ]
    assert len(set(views)) == len(views) == 54


def test_an_unreadable_video_is_replaced_by_another(records: list[VideoRecord], tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    records[2] = VideoRecord(gone, 60)
    videos = pretrain_videos(records)
    shown = set()
    for epoch in range(6):
        sample = videos[epoch, 2]
        assert list(sample.bad_videos) == [2] and gone in sample.bad_videos[2] and sample.videos != [2]
        assert torch.equal(sample.clips, videos[epoch, 2].clips)
        shown |= set(sample.videos)
    assert len(shown) > 2
    batch = collate_pretraining([videos[0, 1], videos[0, 2]])
    assert batch.clips.shape[0] == 2 and batch.videos == [1, videos[0, 2].videos[0]] and list(batch.bad_videos) == [2]
    with pytest.raises(InputError, match="gone"):
        pretrain_videos([VideoRecord(gone, 60)] * 3)[0, 0]


def batches_of(
    num_workers: int, records: list[VideoRecord], epochs: tuple[int, ...] = (0, 1)
) -> list[torch.Tensor]:
    sampler = EpochBatchSampler(len(records), batch_size=2, rank=0, world_size=1, seed=5)
    loader = build_loader(pretrain_videos(records, seed=5), sampler, num_workers, CPU, collate_pretraining)
    out = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        out += [batch.clips for batch in loader]
    return out


def test_batches_are_the_same_bytes_with_any_number_of_workers(records: list[VideoRecord]) -> None:
    state = torch.get_rng_state()
    alone, two = batches_of(0, records), batches_of(2, records)
    assert len(alone) == len(two) == 6
    assert alone[0].shape == (2, 3, 8, 16, 16, 3) and alone[0].dtype == torch.uint8
    assert all(torch.equal(first, second) for first, second in zip(alone, two))
    assert not any(torch.equal(first, second) for first, second in zip(alone[:3], alone[3:]))
    assert torch.equal(torch.get_rng_state(), state)


def test_ranks_share_out_each_global_batch() -> None:
    alone = EpochBatchSampler(29, batch_size=6, rank=0, world_size=1, seed=7)
    ranks = [EpochBatchSampler(29, batch_size=2, rank=rank, world_size=3, seed=7) for rank in range(3)]
    seen = []
    for epoch in (0, 1):
        for sampler in (alone, *ranks):
            sampler.set_epoch(epoch)
        whole = list(alone)
        assert len(whole) == len(alone) == len(ranks[0]) == 4 and alone.num_dropped == 5
        assert [sum(parts, []) for parts in zip(*ranks)] == whole
        flat = [index for batch in whole for _, index in batch]
        assert len(set(flat)) == 24 and set(flat) <= set(range(29))
        assert all(key_epoch == epoch for batch in whole for key_epoch, _ in batch)
        seen.append(flat)
    assert seen[0] != seen[1] and set(seen[0]) != set(seen[1])


def test_an_epoch_can_be_resumed() -> None:
    sampler = EpochBatchSampler(20, batch_size=3, rank=0, world_size=2, seed=0)
    sampler.set_epoch(4)
    whole = list(sampler)
    sampler.set_epoch(4, start_step=2)
    assert list(sampler) == whole[2:] and len(sampler) == 1
    sampler.set_epoch(5)
    assert len(sampler) == sampler.steps_per_epoch == 3 and list(sampler) != whole


def test_order_depends_on_the_seed() -> None:
    orders = [list(EpochBatchSampler(50, 50, 0, 1, seed)) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_too_few_videos_for_one_global_batch() -> None:
    with pytest.raises(InputError) as caught:
        EpochBatchSampler(7, batch_size=4, rank=0, world_size=2, seed=0)
    assert "7 usable video(s)" in str(caught.value) and "batch of 8" in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_users_mistake_arrives_as_one_line(records: list[VideoRecord], num_workers: int) -> None:
    missing = Path(records[0].path) / "image_00001.jpg"
    for file in missing.parent.iterdir():
        file.unlink()
    with pytest.raises(InputError) as caught:
        batches_of(num_workers, [records[0]] * 2)
    assert one_line(caught.value) == (f"none of 2 videos can be read; the first: {missing.parent}: no frames in it, "
                                      "expected files such as image_00001.jpg")


def test_training_clips_carry_their_label(records: list[VideoRecord], read_codes: Callable) -> None:
    videos = LabelledVideos(records, clip_frames=8, stride=3, augment=lambda frames, rng: np.stack(frames), seed=0)
    starts = set()
    for epoch in range(6):
        clip, label = videos[epoch, 3][:2]
        codes = read_codes(clip.numpy())
        assert label == 0 and (np.diff(codes) == 3).all()
        starts.add(codes[0])
    assert len(starts) > 3
    codes = read_codes(videos[0, 0][0].numpy())  # 20 frames are two short of a clip
    assert codes.tolist() == [0, 3, 6, 9, 12, 15, 18, 19]


def test_training_clips_repeat_themselves_and_differ_by_epoch(records: list[VideoRecord]) -> None:
    videos = LabelledVideos(records, clip_frames=4, stride=1, augment=FinetuneAugmentation(16), seed=0)
    assert videos[0, 2][0].shape == (4, 16, 16, 3)
    assert torch.equal(videos[0, 2][0], videos[0, 2][0])
    assert len({videos[epoch, 2][0].numpy().tobytes() for epoch in range(8)}) == 8


@pytest.mark.parametrize("num_crops", [1, 10])
def test_test_videos_give_all_clips_and_crops(records: list[VideoRecord], num_crops: int) -> None:
    crops = TestCrops(14, num_crops)
    videos = TestVideos(records, partial(window_clips, clip_frames=8, stride=2), crops)
    for index, record in enumerate(records):
        frames, clips_of_frames, row, reason = videos[index]
        views = TestViews(frames, clips_of_frames, crops)
        clips = window_clips(record.num_frames, 8, 2)
        wanted = np.concatenate([crops(read_frames(record.path, clip, record.num_frames)) for clip in clips])
        assert np.array_equal(views[:].numpy(), wanted) and (row, reason) == (index, "")
        half = len(views) // 2
        assert len(views) == len(wanted) and np.array_equal(views[half:].numpy(), wanted[half:])


def test_an_unreadable_test_video_is_reported(records: list[VideoRecord], tmp_path: Path) -> None:
    records[1] = VideoRecord(str(tmp_path / "gone"), 33, 1)
    clips, crops = partial(uniform_clips, clip_frames=4, stride=2, num_clips=5), TestCrops(14, 1)
    sample = TestVideos(records, clips, crops, skip_bad=True)[1]
    assert sample.video == 1 and "gone" in sample.reason and len(sample.frames) == len(sample.clips) == 0
    with pytest.raises(InputError, match="gone"):
        TestVideos(records, clips, crops)[1]


def test_test_videos_with_uniform_clips(records: list[VideoRecord]) -> None:
    videos = TestVideos(
        records, partial(uniform_clips, clip_frames=4, stride=2, num_clips=5), TestCrops(14, 5)
    )
    assert TestViews(*videos[1][:2], TestCrops(14, 5))[:].shape == (25, 4, 14, 14, 3) and len(videos) == 7


def test_the_order_of_test_clips_depends_on_seed_and_video_alone(records: list[VideoRecord], read_codes: Callable) -> None:
    def shown(videos: list[VideoRecord], order: str, seed: int = 0, num_workers: int = 0) -> list[np.ndarray]:
        clips = partial(uniform_clips, clip_frames=8, stride=2, num_clips=3)
        loader = build_loader(TestVideos(videos, clips, TestCrops(16, 1), clip_order=order, seed=seed),
                              [[i] for i in range(len(videos))], num_workers, CPU)
        return [read_codes(frames[0].numpy())[clips[0].numpy()] for frames, clips, *_ in loader]

    natural, shuffled = shown(records, "natural"), shown(records, "shuffled")
    for record, one, other, reverse in zip(records, natural, shuffled, shown(records, "reversed")):
        assert np.array_equal(one, uniform_clips(record.num_frames, 8, 2, 3)) and np.array_equal(reverse, one[:, ::-1])
        assert np.array_equal(np.sort(other, axis=1), one) and not np.array_equal(other, one)
    for again in (shown(records, "shuffled", num_workers=2), shown(records[::-1], "shuffled")[::-1]):
        assert all(map(np.array_equal, again, shuffled))
    assert not any(map(np.array_equal, shown(records, "shuffled", seed=1), shuffled))


def test_a_long_test_video_is_never_in_memory_as_stored(tmp_path: Path, write_coded_video: Callable) -> None:
    record = VideoRecord(write_coded_video(tmp_path / "long", 120, size=(320, 240)), 120, 0)
    videos = TestVideos([record], partial(window_clips, clip_frames=8, stride=1), TestCrops(16, 1))
    tracemalloc.start()
    frames, clips, _, _ = videos[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert frames.shape == (120, 18, 24, 3) and clips.shape == (29, 8)
    stored = 120 * 320 * 240 * 3
    assert frames.numel() < peak < stored / 5


def test_frames_of_two_sizes_in_a_test_video_are_an_error(tmp_path: Path, write_coded_video: Callable) -> None:
    folder = Path(write_coded_video(tmp_path / "v", 40))
    other = Path(write_coded_video(tmp_path / "w", 40, size=(48, 64)))
    (other / "image_00040.jpg").rename(folder / "image_00040.jpg")
    videos = TestVideos(
        [VideoRecord(str(folder), 40, 0)], partial(window_clips, clip_frames=8, stride=1), TestCrops(16, 1)
    )
    with pytest.raises(InputError, match="48x64.*64x48"):
        videos[0]


def test_a_worker_that_hangs_ends_with_its_process() -> None:
    """The worker kills the process and hangs; the pipe that both print to closes only once both have ended."""
    program = """
import os, signal, time, torch
from dataset.videos import build_loader

class Hanging:
    def __getitem__(self, _):
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)

list(build_loader(Hanging(), [[0]], 1, torch.device("cpu")))
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, timeout=40)
    assert result.returncode == -signal.SIGKILL
