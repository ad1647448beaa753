"""Rendered action videos: determinism, appearances, camera, arrow of time, and that only motion reveals the class."""
from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from dataset.synthetic import actions
from dataset.synthetic.actions import (
    ARROW_OF_TIME, CLASSES, MOTIONS, PERIOD_FRAMES, POOL_PER_KIND, camera_matrix, draw_appearance, draw_course, render_video,
)

SMALL = (100, 75)
ASPECT = 4 / 3
ANIMATED = {"slide": "travel", "swing": "travel across turn", "orbit": "travel across", "zigzag": "travel across",
            "spin": "turn", "rock": "turn", "pulse": "size", "shake": "travel", "grow": "size", "speed_up": "travel",
            "split": "gap", "bounce": "travel", "drop": "travel", "burst": "gap", "spin_down": "turn"}
DRAWN = {"travel": {"x", "y"}, "across": {"x", "y"}, "turn": {"turn"}, "size": {"length"}, "gap": {"gap"}}
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


def test_each_class_animates_only_what_it_names() -> None:
    courses = {name: draw_course(name, 8, 40, ASPECT) for name in CLASSES}
    for key in courses["slide"]:
        moved = {name for name in CLASSES if any(key in DRAWN[kind] for kind in ANIMATED[name].split())}
        idle = [courses[name][key] for name in CLASSES if name not in moved]
        assert all(np.array_equal(idle[0], other) for other in idle), key
        assert not any(np.allclose(idle[0], courses[name][key]) for name in moved), key
    for name in CLASSES:
        assert set(MOTIONS[name](np.zeros(1))) == set(ANIMATED[name].split())


def test_one_seed_gives_every_class_the_same_scene() -> None:
    first = render_video("rock", 2, 2, SMALL)
    other_seed = render_video("rock", 3, 2, SMALL)
    for name in CLASSES:
        equal = (render_video(name, 2, 2, SMALL) == first).all(axis=-1).mean()
        assert equal > 0.3 > 10 * (render_video(name, 2, 2, SMALL) == other_seed).all(axis=-1).mean(), name


@pytest.mark.parametrize("name", CLASSES)
def test_figure_stays_in_view_and_in_its_ranges(name: str) -> None:
    for seed in range(50):
        course = draw_course(name, seed, 64, 4 / 3)
        assert 0.1 < course["x"].min() and course["x"].max() < 4 / 3 - 0.1
        assert 0.1 < course["y"].min() and course["y"].max() < 0.9
        assert 0.36 - 1e-9 <= course["length"].min() and course["length"].max() <= 0.64 + 1e-9
        assert 0 <= course["gap"].min() and course["gap"].max() <= 0.6 + 1e-9


def steps(points: list[np.ndarray]) -> np.ndarray:
    """Mean distance in frame heights that the points of a frame, `[3, P]`, move to the next, `[F - 1]`."""
    return np.linalg.norm(np.diff(np.stack(points)[:, :2], axis=0), axis=1).mean(axis=-1)


@pytest.mark.parametrize("name", CLASSES)
def test_the_figure_moves_faster_than_the_camera_which_moves_all_the_time(name: str) -> None:
    grid = np.stack([*map(np.ravel, np.meshgrid(np.linspace(0, ASPECT, 7), np.linspace(0, 1, 5))), np.ones(35)])
    corners = np.array([[0, ASPECT, 0, ASPECT], [0, 0, 1, 1], [1, 1, 1, 1]])
    for seed in range(10):
        course = draw_course(name, seed, 64, ASPECT)
        background, figure = [], []
        for values in zip(*course.values()):
            at = dict(zip(course, values))
            camera = camera_matrix(at, ASPECT)
            background.append(camera @ grid)
            seen = np.linalg.solve(camera, corners)
            assert -0.3 < seen[:2].min() and seen[0].max() < ASPECT + 0.3 and seen[1].max() < 1.3  # inside the scene
            across, along = np.meshgrid([-0.35, 0.35], [-0.4, -0.1, 0.1, 0.4])
            along = at["length"] * (along + np.sign(along) * at["gap"] / 2).ravel()
            across = at["length"] * across.ravel()
            cos, sin = np.cos(at["turn"]), np.sin(at["turn"])
            figure.append(np.stack([at["x"] + cos * along - sin * across, at["y"] + sin * along + cos * across]))
        camera_steps = steps(background)
        assert 0.003 < min(camera_steps[start:start + 15].mean() for start in range(48))  # 3.4 % of the height per clip
        assert steps(figure).mean() > 2 * camera_steps.mean()


def test_the_camera_moves_background_and_figure_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(6):
        video, course = render_video("pulse", seed, 9, SMALL)[8], draw_course("pulse", seed, 9, ASPECT)
        with monkeypatch.context() as patch:
            patch.setattr(actions, "CAMERA_REACH", dict.fromkeys(actions.CAMERA_REACH, 0.0))
            still = render_video("pulse", seed, 9, SMALL)[8]
        scale = np.diag([75, 75, 1])
        camera = scale @ camera_matrix({key: values[8] for key, values in course.items()}, ASPECT) @ np.linalg.inv(scale)
        expected, inside = (cv2.warpAffine(image, camera[:2], SMALL) for image in (still, np.ones_like(still)))
        error, static = (np.abs(image.astype(int) - video)[inside == 1].mean() for image in (expected, still))
        assert error < 2 and static > 10, seed


def velocities(name: str, period_frames: float, phase: np.ndarray) -> np.ndarray:
    """What a class animates in a clip of 16 frames, as changes per frame, `[len(phase), 5, 15]`."""
    motion = MOTIONS[name](np.arange(16) / period_frames + phase[:, None])
    weights = {"travel": 1, "across": 1, "turn": 0.25, "size": 0.14, "gap": 0.12}  # to mean displacement of the figure
    return np.stack([np.diff(motion.get(kind, np.zeros((len(phase), 16)))) * weight for kind, weight in weights.items()],
                    axis=1)


@pytest.mark.parametrize("name", CLASSES)
def test_only_a_class_with_an_arrow_of_time_differs_from_itself_reversed(name: str) -> None:
    phase = np.linspace(0, 8, 480, endpoint=False)
    mirrors = [(flip, flip * hand, hand, 1, 1) for flip, hand in itertools.product((1, -1), repeat=2)]  # random per video
    known = np.concatenate([velocities(name, period, phase) * np.array(mirror)[:, None]
                            for period in np.linspace(*PERIOD_FRAMES, 7) for mirror in mirrors]).reshape(-1, 75)
    rng = np.random.default_rng(0)
    for period in rng.uniform(*PERIOD_FRAMES, size=40):
        [clip] = velocities(name, period, rng.uniform(0, 8, size=1))
        mismatch = np.linalg.norm(known + clip[:, ::-1].ravel(), axis=1).min() / np.linalg.norm(clip)
        assert mismatch > 0.22 if name in ARROW_OF_TIME else mismatch < 0.2


@pytest.mark.parametrize("name", CLASSES)
def test_no_class_jumps(name: str) -> None:
    cycles = np.arange(0, 8, 0.005)
    for kind, values in MOTIONS[name](cycles).items():
        assert np.abs(np.diff(values)).max() < 0.06 * (7 if kind == "turn" else 2), kind


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
