"""Rendered action videos: determinism, appearances, pairs in time, and that only motion reveals the class."""
from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from dataset.synthetic.actions import (
    CLASSES, POOL_PER_KIND, draw_appearance, draw_course, render_video,
)

SMALL = (100, 75)
Videos = dict[str, list[tuple[np.ndarray, int]]]  # by split: video, label


@pytest.mark.parametrize("shared_looks", [False, True])
def test_a_video_depends_only_on_its_seed(shared_looks: bool) -> None:
    first, again, other = (render_video("swing", seed, 4, (48, 36), shared_looks) for seed in (5, 5, 6))
    assert first.shape == (4, 36, 48, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_longer_video_starts_like_the_shorter() -> None:
    assert np.array_equal(render_video("spin", 3, 6, (48, 36))[:4], render_video("spin", 3, 4, (48, 36)))


def test_appearances_come_from_a_pool_unless_unique() -> None:
    pool = {draw_appearance((0, number), shared=True) for number in range(400)}
    assert len(pool) == POOL_PER_KIND ** 3 == 8
    own = [draw_appearance((0, number)) for number in range(400)]
    for kind in ("background", "texture", "coloring"):
        assert len({getattr(appearance, kind) for appearance in own}) == 400


def test_all_classes_share_every_draw_but_the_motion() -> None:
    animated = {"slide": ["x", "y"], "spin": ["turn"], "pulse": ["length"], "burst": ["gap"],
                "swing": ["x", "y", "turn"]}
    courses = {name: draw_course(name, 8, 40, 4 / 3) for name in animated}
    for name, moved in animated.items():
        for other, also_moved in animated.items():
            for key in set(courses[name]) - set(moved) - set(also_moved):
                assert np.array_equal(courses[name][key], courses[other][key]), (name, other, key)


@pytest.mark.parametrize("name", CLASSES)
def test_figure_stays_in_view_and_in_its_ranges(name: str) -> None:
    for seed in range(50):
        course = draw_course(name, seed, 64, 4 / 3)
        assert 0.1 < course["x"].min() and course["x"].max() < 4 / 3 - 0.1
        assert 0.1 < course["y"].min() and course["y"].max() < 0.9
        assert 0.36 - 1e-9 <= course["length"].min() and course["length"].max() <= 0.64 + 1e-9
        assert 0 <= course["gap"].min() and course["gap"].max() <= 0.6 + 1e-9


def color_histogram(video: np.ndarray) -> np.ndarray:
    """16 bins per channel of the middle frame, `[48]`."""
    frame = video[len(video) // 2]
    return np.concatenate([np.histogram(frame[..., channel], 16, (0, 256))[0] for channel in range(3)])


def thumbnail(video: np.ndarray) -> np.ndarray:
    """The middle frame at 16x12 px, `[576]`."""
    return cv2.resize(video[len(video) // 2], (16, 12), interpolation=cv2.INTER_AREA).ravel()


def motion_statistics(video: np.ndarray) -> np.ndarray:
    """Four signals over time (frame difference: energy and its center; area of the figure): log standard deviation,
    spectrum, and skewness of the slope, whose sign flips when time is reversed."""
    difference = np.abs(np.diff(video.mean(axis=-1), axis=0))
    height, width = difference.shape[1:]
    energy = difference.mean(axis=(1, 2))
    center_x = (difference.mean(axis=1) * np.arange(width)).mean(axis=1) / energy
    center_y = (difference.mean(axis=2) * np.arange(height)).mean(axis=1) / energy
    value = video[1:].max(axis=-1)
    area = ((value < 58) | (value > 207)).mean(axis=(1, 2))
    features = [np.log(energy.mean())]
    for signal in (energy, area, center_x, center_y):
        spread = signal.std() + 1e-9
        slope = np.diff(signal)
        skewness = np.cbrt((slope ** 3).mean() / (np.abs(slope) ** 3).mean())
        spectrum = np.abs(np.fft.rfft((signal - signal.mean()) / spread))[1:16]
        features += [np.log(spread), 5 * skewness, *np.sqrt(spectrum)]
    return np.array(features)


def binomial_tail(hits: int, trials: int, chance: float) -> float:
    """P(at least `hits` of `trials`) for guesses that are correct with probability `chance`."""
    return sum(math.comb(trials, right) * chance ** right * (1 - chance) ** (trials - right)
               for right in range(hits, trials + 1))


@pytest.fixture(scope="module")
def labelled_videos() -> Videos:
    return {split: [(render_video(name, (0, number, split == "test", label), 48, SMALL), label)
                    for label, name in enumerate(CLASSES) for number in range(count)]
            for split, count in (("train", 10), ("test", 8))}


def nearest_neighbor_tail(videos: Videos, describe: Callable[[np.ndarray], np.ndarray]) -> float:
    """Probability that guessing is correct at least as often as the label of the nearest training video.

    If a description is independent of the class, each answer is correct with probability 1 / classes, so that the
    number of correct ones is binomial."""
    train = np.array([describe(video) for video, _ in videos["train"]], float)
    test = np.array([describe(video) for video, _ in videos["test"]], float)
    labels, truth = (np.array([label for _, label in videos[split]]) for split in ("train", "test"))
    scale = train.std(axis=0) + 1e-9
    distance = np.square((train[:, None] - test[None]) / scale).sum(axis=-1)
    hits = int((labels[distance.argmin(axis=0)] == truth).sum())
    return binomial_tail(hits, len(truth), 1 / len(CLASSES))


@pytest.mark.parametrize("describe", [color_histogram, thumbnail])
def test_a_single_frame_does_not_reveal_the_class(labelled_videos: Videos,
                                           describe: Callable[[np.ndarray], np.ndarray]) -> None:
    assert nearest_neighbor_tail(labelled_videos, describe) > 0.01  # no better than 1 in 100 guessers


def test_motion_reveals_the_class(labelled_videos: Videos) -> None:
    assert nearest_neighbor_tail(labelled_videos, motion_statistics) < 1e-12
