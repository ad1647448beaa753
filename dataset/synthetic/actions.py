"""Procedural action videos: what each class does, and how a video of it is rendered.

A textured figure of two halves acts in front of a slowly drifting background with one or two resting distractors. The
class is what the figure does, and only that: appearance, place, direction, angle, size, gap between the halves, period and
start phase are drawn from the same distributions for every class. What a class does not animate (the angle in `slide`, for
example) runs slowly through the range that other classes play through quickly, so that neither a single frame nor a pose
reveals class or video. `shrink`, `slow_down` and `merge` are `grow`, `speed_up` and `split` played backwards.

All videos share a pool of 2 backgrounds x 2 textures x 2 colorings, fewer than a batch has videos: with an appearance of
its own (the hard variant), a contrastive loss can distinguish a video without any motion.

Shapes: F frames, H height, W width in px. Images are RGB `[H, W, 3]`. Lengths are in frame heights, angles in radians,
time in frames, unless a name or docstring says otherwise.
"""
from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

POOL_PER_KIND = 2
PERIOD_FRAMES = (12.0, 18.0)  # 16 frames at a stride of 1 or more span at least 0.8 of a period
IDLE_PERIOD_FRAMES = (60.0, 100.0)
CAMERA_PERIOD_FRAMES = (100.0, 160.0)
FIGURE_LENGTH = (0.28, 0.45)
MAX_GAP = 0.9  # between the halves, in figure lengths
TRAVEL = 0.26
ARM = 0.32
IDLE_TURN = np.deg2rad(45)
CAMERA_RADIUS = (0.06, 0.10)


def triangle(cycles: np.ndarray) -> np.ndarray:
    """Returns a triangle wave in [-1, 1] of period 1."""
    return 4 * np.abs(cycles % 1 - 0.5) - 1


def sawtooth(cycles: np.ndarray) -> np.ndarray:
    """Returns a wave in [-1, 1] of period 1 that rises during 85 % of it and drops back in the rest."""
    phase = cycles % 1
    return np.where(phase < 0.85, 2 * phase / 0.85 - 1, 1 - 2 * (phase - 0.85) / 0.15)


def hops(cycles: np.ndarray) -> np.ndarray:
    """Returns a path between -1 and 1, one hop per cycle: accelerating from rest to a sudden stop."""
    return (1 - 2 * (np.floor(cycles) % 2)) * (2 * (cycles % 1) ** 3 - 1)


def sine(cycles: np.ndarray) -> np.ndarray:
    """Returns a sine wave in [-1, 1] of period 1."""
    return np.sin(2 * np.pi * cycles)


def _rock(cycles: np.ndarray) -> np.ndarray:
    return np.deg2rad(50) * sine(cycles)


# The classes. Each maps time in periods `[F]` to what it animates: `travel` along the video's direction and `across` it,
# `turn`, `size` and `gap` (these two from -1, smallest, to 1, largest). The order gives the labels.
MOTIONS = {
    "slide": lambda cycles: {"travel": TRAVEL * triangle(0.7 * cycles)},
    "swing": lambda cycles: {"travel": ARM * np.sin(_rock(cycles)), "across": ARM * (np.cos(_rock(cycles)) - 0.8),
                             "turn": _rock(cycles)},
    "orbit": lambda cycles: {"travel": 0.22 * sine(cycles), "across": 0.22 * sine(cycles + 0.25)},
    "zigzag": lambda cycles: {"travel": TRAVEL * triangle(cycles / 2), "across": 0.16 * triangle(2 * cycles)},
    "spin": lambda cycles: {"turn": 2 * np.pi * cycles / 1.5},
    "rock": lambda cycles: {"turn": _rock(cycles)},
    "pulse": lambda cycles: {"size": triangle(cycles)},
    "shake": lambda cycles: {"travel": 0.09 * sine(3 * cycles)},
    "grow": lambda cycles: {"size": sawtooth(cycles)},
    "shrink": lambda cycles: {"size": sawtooth(-cycles)},
    "speed_up": lambda cycles: {"travel": TRAVEL * hops(1.25 * cycles)},
    "slow_down": lambda cycles: {"travel": TRAVEL * hops(-1.25 * cycles)},
    "split": lambda cycles: {"gap": sawtooth(cycles)},
    "merge": lambda cycles: {"gap": sawtooth(-cycles)},
}
CLASSES = tuple(MOTIONS)


class Appearance(NamedTuple):
    """Numbers of the background, texture and coloring: below `POOL_PER_KIND` shared by all videos, others unique."""

    background: int
    texture: int
    coloring: int


def draw_appearance(seed: int | Sequence[int], unique: bool) -> Appearance:
    """Returns the appearance of the video with this seed, the same for every class."""
    low, high = (POOL_PER_KIND, 2 ** 31) if unique else (0, POOL_PER_KIND)
    return Appearance(*np.random.default_rng([0, *np.atleast_1d(seed)]).integers(low, high, size=3).tolist())


def draw_course(class_name: str, seed: int | Sequence[int], frames: int, aspect: float) -> dict[str, np.ndarray]:
    """Returns the figure's `x`, `y` (center), `turn`, `length`, `gap` (in figure lengths) and the drift `camera_x`,
    `camera_y`, each `[F]`; `aspect` is W / H."""
    rng = np.random.default_rng([1, *np.atleast_1d(seed)])
    now = np.arange(frames)
    cycles = now / rng.uniform(*PERIOD_FRAMES) + rng.uniform()
    idle = {name: triangle(now / rng.uniform(*IDLE_PERIOD_FRAMES) + rng.uniform())
            for name in ("travel", "turn", "size", "gap")}
    heading, first_turn = rng.uniform(0, 2 * np.pi, size=2)
    hand, reach = rng.choice((-1.0, 1.0)), rng.uniform(0.9, 1.1)  # either handedness in every class
    home_x, home_y, radius = aspect * rng.uniform(0.43, 0.57), rng.uniform(0.45, 0.55), rng.uniform(*CAMERA_RADIUS)
    camera = hand * now / rng.uniform(*CAMERA_PERIOD_FRAMES) + rng.uniform()

    act = {"travel": TRAVEL * idle["travel"], "across": np.zeros(frames), "turn": IDLE_TURN * idle["turn"],
           "size": idle["size"], "gap": idle["gap"], **MOTIONS[class_name](cycles)}
    travel, across = reach * act["travel"], reach * hand * act["across"]
    return {"x": home_x + travel * np.cos(heading) - across * np.sin(heading),
            "y": home_y + travel * np.sin(heading) + across * np.cos(heading),
            "turn": first_turn + hand * act["turn"],
            "length": FIGURE_LENGTH[0] * (FIGURE_LENGTH[1] / FIGURE_LENGTH[0]) ** ((act["size"] + 1) / 2),
            "gap": MAX_GAP * (act["gap"] + 1) / 2,
            "camera_x": radius * sine(camera), "camera_y": radius * sine(camera + 0.25)}


def _noise(rng: np.random.Generator, height: int, width: int, cells: int, octaves: int) -> np.ndarray:
    """Returns cloud noise, float32 `[height, width]`, uniform over [0, 1); the coarsest octave has `cells` rows."""
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        rows = cells * 2 ** octave
        grid = rng.normal(size=(rows, max(2, round(rows * width / height)))).astype(np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) / 2 ** octave
    ranks = total.ravel().argsort(kind="stable").argsort()
    return (ranks.reshape(total.shape) / ranks.size).astype(np.float32)


def _coloring(number: int) -> np.ndarray:
    """Returns RGB colors, float32 `[4, 3]`: background dark and light, which lie between figure dark and light."""
    hues = 180 * (number * 0.618034 % 1) + np.array([0, 20, 90, 110])  # multiples of the golden ratio lie apart
    hsv = np.stack([hues % 180, [120, 80, 160, 60], [105, 140, 15, 255]], axis=1)
    return cv2.cvtColor(hsv[None].astype(np.uint8), cv2.COLOR_HSV2RGB)[0].astype(np.float32)


@functools.lru_cache(maxsize=POOL_PER_KIND ** 2)
def _figure_halves(texture: int, coloring: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the figure's halves at full length, float32 `[S, S, 4]`: RGB times coverage, coverage in [0, 1]."""
    rng = np.random.default_rng([2, texture])
    full = FIGURE_LENGTH[1] * height
    side, fine = int(np.ceil(full)) + 4, 8  # drawn 8 times as large, then averaged, for smooth edges
    corners = (np.arange(9) + rng.uniform(-0.35, 0.35, size=9)) / 9 * 2 * np.pi
    outline = rng.uniform(0.75, 1, size=(9, 1)) * np.stack([np.cos(corners), 0.9 * np.sin(corners)], axis=1)
    outline = (outline - (outline.max(0) + outline.min(0)) / 2) * full / np.ptp(outline[:, 0])
    mask = cv2.fillPoly(np.zeros((side * fine, side * fine), np.float32),
                        [np.round((outline + side / 2) * fine).astype(np.int32)], 1.0)
    mask = cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA)[..., None]
    blend = np.clip(4 * _noise(rng, side, side, 4, 2) - 1.5, 0, 1)[..., None]
    colors = _coloring(coloring)
    patch = np.dstack([colors[2] * (1 - blend) + colors[3] * blend, np.ones_like(mask)]) * mask
    left = (np.arange(side) < side / 2)[None, :, None]
    return patch * left, patch * ~left


def _paint(image: np.ndarray, halves: tuple[np.ndarray, np.ndarray], x_px: float, y_px: float, turn: float,
           scale: float, gap_px: float) -> np.ndarray:
    """Returns the float32 image with the figure, its halves `gap_px` apart, scaled, turned and painted at (x_px, y_px)."""
    middle = (halves[0].shape[0] - 1) / 2
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    layer = np.zeros((*image.shape[:2], 4), np.float32)
    for half, along in zip(halves, (-gap_px / 2, gap_px / 2)):
        matrix = np.array([[cos, -sin, x_px + cos * (along - middle) + sin * middle],
                           [sin, cos, y_px + sin * (along - middle) - cos * middle]])
        layer += cv2.warpAffine(half, matrix, image.shape[1::-1], flags=cv2.INTER_LINEAR)
    return image * (1 - np.minimum(layer[..., 3:], 1)) + layer[..., :3]


@functools.lru_cache(maxsize=2 * POOL_PER_KIND ** 3)
def _scene(appearance: Appearance, num_distractors: int, height: int, width: int) -> np.ndarray:
    """Returns background and distractors, float32 `[H + 2m, W + 2m, 3]`, with a margin of m px for the camera's drift."""
    rng = np.random.default_rng([3, appearance.background])  # draws the distractors' places too
    margin = int(np.ceil(CAMERA_RADIUS[1] * height)) + 1
    blend = _noise(rng, height + 2 * margin, width + 2 * margin, int(rng.integers(2, 6)), 5)[..., None]
    colors = _coloring(appearance.coloring)
    scene = colors[0] * (1 - blend) + colors[1] * blend
    halves = _figure_halves(appearance.texture, appearance.coloring, height)
    for _ in range(num_distractors):
        around = rng.uniform(0, 2 * np.pi)  # on an oval near the border
        x_px, y_px = margin + width * (0.5 + 0.4 * np.cos(around)), margin + height * (0.5 + 0.4 * np.sin(around))
        scale = (FIGURE_LENGTH[0] / FIGURE_LENGTH[1]) ** rng.uniform()
        gap_px = FIGURE_LENGTH[1] * height * MAX_GAP * rng.uniform()
        scene = _paint(scene, halves, x_px, y_px, rng.uniform(0, 2 * np.pi), scale, gap_px)
    return scene


def render_video(class_name: str, seed: int | Sequence[int], frames: int = 64, size: tuple[int, int] = (200, 150),
                 unique_looks: bool = False) -> np.ndarray:
    """Returns frames uint8 `[F, H, W, 3]`, RGB. `size` is (W, H) in px, `seed` one or several integers >= 0, which gives
    every class the same appearance, place, direction, period and phase."""
    width, height = size
    appearance = draw_appearance(seed, unique_looks)
    num_distractors = 1 + int(np.random.default_rng([4, *np.atleast_1d(seed)]).integers(2))
    scene = _scene(appearance, num_distractors, height, width)
    halves = _figure_halves(appearance.texture, appearance.coloring, height)
    margin, full = (scene.shape[0] - height) / 2, FIGURE_LENGTH[1]
    course = draw_course(class_name, seed, frames, width / height)
    video = np.empty((frames, height, width, 3), np.uint8)
    for index in range(frames):
        at = {name: float(values[index]) for name, values in course.items()}
        drift = np.array([[1, 0, at["camera_x"] * height - margin], [0, 1, at["camera_y"] * height - margin]])
        image = _paint(cv2.warpAffine(scene, drift, size), halves, at["x"] * height, at["y"] * height, at["turn"],
                       at["length"] / full, at["gap"] * full * height)
        video[index] = np.clip(np.round(image), 0, 255)
    return video
