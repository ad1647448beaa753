from __future__ import annotations

import math

import numpy as np
import pytest

from dataset.sampling import order_frames, pretraining_indices, split_views, training_clip, uniform_clips, window_clips


class Scripted:
    """Stands for a generator: hands out one given fraction of each range, and notes the ranges asked for."""

    def __init__(self, stride_fraction: float, start_fraction: float) -> None:
        self.stride_fraction, self.start_fraction = stride_fraction, start_fraction

    def uniform(self, low: float, high: float) -> float:
        self.stride_range = (low, high)
        return low + self.stride_fraction * (high - low)

    def integers(self, low: int, high: int, endpoint: bool) -> int:
        assert endpoint
        self.start_range = (low, high)
        return low + round(self.start_fraction * (high - low))


@pytest.mark.parametrize("num_frames", [33, 40, 64, 95, 96, 97, 300])
@pytest.mark.parametrize(("num_clips", "clip_frames"), [(2, 16), (4, 8), (3, 8)])
@pytest.mark.parametrize("max_stride", [1.0, 1.7, 3.0])
@pytest.mark.parametrize("fractions", [(0, 0), (1, 1), (0.37, 0.5), (0.9, 0.1)])
def test_indices_follow_the_formula(
    num_frames: int, num_clips: int, clip_frames: int, max_stride: float, fractions: tuple[float, float]
) -> None:
    script = Scripted(*fractions)
    indices = pretraining_indices(num_frames, num_clips, clip_frames, max_stride, script)
    total = num_clips * clip_frames
    assert script.stride_range == (1.0, min(max_stride, num_frames / total))
    stride = script.uniform(*script.stride_range)
    assert script.start_range == (0, max(0, math.floor(num_frames - stride * total)))
    start = script.integers(*script.start_range, endpoint=True)
    assert indices.tolist() == [min(round(start + stride * k), num_frames - 1) for k in range(total)]
    assert indices.dtype == np.int64


@pytest.mark.parametrize("num_frames", [33, 50, 96, 250])
def test_many_draws_stay_in_range_and_use_all_of_it(num_frames: int) -> None:
    rng = np.random.default_rng(0)
    draws = np.stack([pretraining_indices(num_frames, 2, 16, 3.0, rng) for _ in range(4000)])
    assert draws.min() == 0 and draws.max() == num_frames - 1
    steps = np.diff(draws)
    longest = min(3.0, num_frames / 32)
    assert steps.min() >= 0 and steps.max() <= math.ceil(longest)
    strides = (draws[:, -1] - draws[:, 0]) / 31
    assert strides.min() < 1 + 0.1 * (longest - 1) + 1 / 31
    assert strides.max() > longest - 0.1 * (longest - 1) - 2 / 31
    # Given stride s the start is uniform over floor(n - 32 s) + 1 places, about half of which is its mean.
    expected = np.mean([max(0, math.floor(num_frames - s * 32)) / 2 for s in np.linspace(1, longest, 10001)])
    assert draws[:, 0].mean() == pytest.approx(
        expected, abs=5 * draws[:, 0].std() / math.sqrt(len(draws)) + 0.01
    )


def test_the_end_is_clamped_to_the_last_frame() -> None:
    indices = pretraining_indices(33, 2, 16, 3.0, Scripted(0.0, 1.0))
    assert indices.tolist() == list(range(1, 33))
    indices = pretraining_indices(97, 2, 16, 3.0, Scripted(0.99, 1.0))
    assert indices[-1] <= 96


@pytest.mark.parametrize("num_clips", [2, 3, 4])
def test_views_are_the_clips_in_order_then_the_overview(num_clips: int) -> None:
    indices = np.arange(10, 10 + num_clips * 8)
    views = split_views(indices, num_clips)
    assert views.shape == (num_clips + 1, 8)
    assert views[:num_clips].ravel().tolist() == indices.tolist()
    assert views[num_clips].tolist() == [10 + num_clips * m for m in range(8)]


def test_training_clip_takes_every_start_that_fits() -> None:
    rng = np.random.default_rng(0)
    clips = np.stack([training_clip(20, 4, 3, rng) for _ in range(2000)])
    assert (np.diff(clips) == 3).all()
    starts, counts = np.unique(clips[:, 0], return_counts=True)
    assert starts.tolist() == list(range(11))
    expected, probability = 2000 / 11, 1 / 11
    assert (np.abs(counts - expected) < 5 * math.sqrt(2000 * probability * (1 - probability))).all()


def test_a_short_video_repeats_its_last_frame() -> None:
    expected = [0, 2, 4, 4, 4]
    assert training_clip(5, 5, 2, np.random.default_rng(0)).tolist() == expected
    assert uniform_clips(5, 5, 2, 1).tolist() == [expected]
    assert window_clips(5, 5, 2).tolist() == [expected]
    assert uniform_clips(1, 2, 1, 3).tolist() == [[0, 0]] * 3


@pytest.mark.parametrize(
    ("num_clips", "starts"), [(1, [8]), (2, [0, 16]), (3, [0, 8, 16]), (5, [0, 4, 8, 12, 16])]
)
def test_uniform_clips_span_the_video(num_clips: int, starts: list[int]) -> None:
    clips = uniform_clips(23, 4, 2, num_clips)
    assert clips.tolist() == [[start, start + 2, start + 4, start + 6] for start in starts]


@pytest.mark.parametrize("num_frames", [15, 16, 17, 24, 25, 31, 64, 101])
@pytest.mark.parametrize(("clip_frames", "stride"), [(16, 1), (8, 2), (4, 3), (1, 1), (1, 4)])
def test_windows_cover_the_whole_video(num_frames: int, clip_frames: int, stride: int) -> None:
    clips = window_clips(num_frames, clip_frames, stride)
    step = max(1, clip_frames * stride // 2)
    starts = clips[:, 0]
    assert starts[0] == 0 and clips[-1, -1] == clips.max() == num_frames - 1
    assert (
        (np.diff(starts)[:-1] == step).all()
        and (np.diff(starts) > 0).all()
        and (np.diff(starts) <= step).all()
    )


def test_orders_of_frames() -> None:
    clips, rng = np.array([[0, 1, 2, 3], [2, 3, 4, 4]]), np.random.default_rng(0)
    assert np.array_equal(order_frames(clips, "natural", rng), clips)
    assert order_frames(clips, "reversed", rng).tolist() == [[3, 2, 1, 0], [4, 4, 3, 2]]
    assert order_frames(clips, "frozen", rng).tolist() == [[1] * 4, [3] * 4]
    shuffled = [order_frames(clips, "shuffled", rng) for _ in range(200)]
    assert all(np.array_equal(np.sort(each, axis=1), clips) for each in shuffled)
    assert len({tuple(each[0]) for each in shuffled}) == 24, "every permutation"
    assert any(not np.array_equal(each[1], [*each[0] + 2]) for each in shuffled), "one for each clip"
