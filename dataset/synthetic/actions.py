"""Procedural action videos: what each class does, and how a video of it is rendered.

A textured figure of two halves acts in front of a background with one or two resting distractors, seen by a moving camera
(pan, roll, zoom), which is slower than the figure. The class is what the figure does, and only that: appearance, camera,
place, direction, angle, size, gap between the halves, period and start phase are drawn from the same distributions for every
class. What a class does not animate (the angle in `slide`, for example) runs slowly through the range that other classes
play through quickly, so that neither a single frame nor a pose reveals class or video. The classes in `ARROW_OF_TIME` look
different when played backwards, the others do not.

Every video has an appearance of its own, by which a contrastive loss can distinguish videos without any motion. With shared
looks, all videos share a pool of 2 backgrounds x 2 textures x 2 colorings, fewer than a batch has videos.

Shapes: F frames, H height, W width in px. Images are RGB `[H, W, 3]`. Lengths are in frame heights, angles in radians,
time in frames, unless a name or docstring says otherwise.
"""
from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

POOL_PER_KIND = 2
PERIOD_FRAMES = (12.0, 18.0)  # 16 frames at a stride of 1 or more span at least 0.8 of a period
IDLE_PERIOD_FRAMES = (60.0, 100.0)
CAMERA_PERIOD_FRAMES = (50.0, 90.0)
CAMERA_REACH = {"x": 0.12, "y": 0.12, "turn": np.deg2rad(6), "zoom": 0.07}  # largest amplitudes
SCENE_MARGIN = 0.3  # of the background beyond each border, for the camera
FIGURE_LENGTH = (0.36, 0.64)
DISTRACTOR_LENGTH = (0.18, 0.3)
MAX_GAP = 0.6  # between the halves, in figure lengths
TRAVEL = 0.23
BOUNCE_RATIO = 0.45  # of the heights of successive bounces
BOUNCE_ENDS = np.cumsum([1, 2 * BOUNCE_RATIO ** 0.5, 2 * BOUNCE_RATIO, 1.3])  # fall, bounces, lift; unit: the fall
ARM = 0.32
IDLE_TURN = np.deg2rad(45)


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


def ease(phase: np.ndarray) -> np.ndarray:
    """Returns a smooth step from 0 to 1, at rest at both ends; `phase` is clipped to [0, 1]."""
    return (1 - np.cos(np.pi * np.clip(phase, 0, 1))) / 2


def bounces(cycles: np.ndarray) -> np.ndarray:
    """Returns a height in [0, 1] of period 1: a fall from 1, two ever lower bounces, and a smooth lift to the top."""
    phase = BOUNCE_ENDS[-1] * (cycles % 1)
    height = ease((phase - BOUNCE_ENDS[2]) / (BOUNCE_ENDS[3] - BOUNCE_ENDS[2]))
    for number, end in enumerate(BOUNCE_ENDS[:3]):
        peak = BOUNCE_RATIO ** number
        height = np.maximum(height, peak - (phase - end + np.sqrt(peak)) ** 2)  # gravity falls 1 in a time of 1
    return height


def drops(cycles: np.ndarray) -> np.ndarray:
    """Returns a height in [0, 1] of period 1: an accelerating fall to a sudden stop, a rest, and a smooth lift."""
    phase = cycles % 1
    return np.where(phase < 0.3, 1 - (phase / 0.3) ** 2, ease((phase - 0.48) / 0.52))


def bursts(cycles: np.ndarray) -> np.ndarray:
    """Returns a gap in [0, 1] of period 1: suddenly fast, slowing down up to 1, a smooth return, and a rest at 0."""
    phase = cycles % 1
    return np.where(phase < 0.4, 1 - (1 - phase / 0.4) ** 3, 1 - ease((phase - 0.4) / 0.45))


def runs_down(cycles: np.ndarray) -> np.ndarray:
    """Returns turns that advance by 1 per cycle: suddenly fast, and slowing down to rest."""
    return np.floor(cycles) + 1 - (1 - cycles % 1) ** 2


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
    "orbit": lambda cycles: {"travel": 0.2 * sine(cycles), "across": 0.2 * sine(cycles + 0.25)},
    "zigzag": lambda cycles: {"travel": TRAVEL * triangle(cycles / 2), "across": 0.15 * triangle(2 * cycles)},
    "spin": lambda cycles: {"turn": 2 * np.pi * cycles / 1.5},
    "rock": lambda cycles: {"turn": _rock(cycles)},
    "pulse": lambda cycles: {"size": triangle(cycles)},
    "shake": lambda cycles: {"travel": 0.09 * sine(2.5 * cycles)},
    "grow": lambda cycles: {"size": sawtooth(cycles)},
    "speed_up": lambda cycles: {"travel": TRAVEL * hops(1.25 * cycles)},
    "split": lambda cycles: {"gap": sawtooth(cycles)},
    "bounce": lambda cycles: {"travel": TRAVEL * (1 - 2 * bounces(0.75 * cycles))},
    "drop": lambda cycles: {"travel": TRAVEL * (1 - 2 * drops(0.85 * cycles))},
    "burst": lambda cycles: {"gap": 2 * bursts(0.85 * cycles) - 1},
    "spin_down": lambda cycles: {"turn": 1.2 * np.pi * runs_down(0.85 * cycles)},
}
ARROW_OF_TIME = ("grow", "speed_up", "split", "bounce", "drop", "burst", "spin_down")
CLASSES = tuple(MOTIONS)


class Appearance(NamedTuple):
    """Numbers of the background, texture and coloring: below `POOL_PER_KIND` shared by all videos, others unique."""

    background: int
    texture: int
    coloring: int


def draw_appearance(seed: int | Sequence[int], shared: bool = False) -> Appearance:
    """Returns the appearance of the video with this seed, the same for every class."""
    low, high = (0, POOL_PER_KIND) if shared else (POOL_PER_KIND, 2 ** 31)
    return Appearance(*np.random.default_rng([0, *np.atleast_1d(seed)]).integers(low, high, size=3).tolist())


def draw_course(class_name: str, seed: int | Sequence[int], frames: int, aspect: float) -> dict[str, np.ndarray]:
    """Returns the figure's `x`, `y` (center), `turn`, `length`, `gap` (in figure lengths) in the scene, and the camera's
    pan `camera_x`, `camera_y`, roll `camera_turn` and magnification `camera_zoom`, each `[F]`; `aspect` is W / H."""
    rng = np.random.default_rng([1, *np.atleast_1d(seed)])
    now = np.arange(frames)
    cycles = now / rng.uniform(*PERIOD_FRAMES) + rng.uniform()
    idle = {name: triangle(now / rng.uniform(*IDLE_PERIOD_FRAMES) + rng.uniform())
            for name in ("travel", "turn", "size", "gap")}
    heading, first_turn = rng.uniform(0, 2 * np.pi, size=2)
    hand, reach = rng.choice((-1.0, 1.0)), rng.uniform(0.9, 1.1)  # either handedness in every class
    home_x, home_y = aspect * rng.uniform(0.45, 0.55), rng.uniform(0.46, 0.54)
    camera = {name: most * rng.uniform(0.6, 1) * sine(now / rng.uniform(*CAMERA_PERIOD_FRAMES) + rng.uniform())
              for name, most in CAMERA_REACH.items()}

    act = {"travel": TRAVEL * idle["travel"], "across": np.zeros(frames), "turn": IDLE_TURN * idle["turn"],
           "size": idle["size"], "gap": idle["gap"], **MOTIONS[class_name](cycles)}
    travel, across = reach * act["travel"], reach * hand * act["across"]
    return {"x": home_x + travel * np.cos(heading) - across * np.sin(heading),
            "y": home_y + travel * np.sin(heading) + across * np.cos(heading),
            "turn": first_turn + hand * act["turn"],
            "length": FIGURE_LENGTH[0] * (FIGURE_LENGTH[1] / FIGURE_LENGTH[0]) ** ((act["size"] + 1) / 2),
            "gap": MAX_GAP * (act["gap"] + 1) / 2,
            "camera_x": camera["x"], "camera_y": camera["y"], "camera_turn": camera["turn"],
            "camera_zoom": 1 + camera["zoom"]}


def similarity(x: float, y: float, turn: float = 0.0, scale: float = 1.0) -> np.ndarray:
    """Returns the `[3, 3]` matrix that scales and turns about the origin, then moves the origin to (x, y)."""
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    return np.array([[cos, -sin, x], [sin, cos, y], [0, 0, 1]])


def camera_matrix(at: Mapping[str, float], aspect: float) -> np.ndarray:
    """Returns the `[3, 3]` matrix from the scene to the frame, for one frame's values of `draw_course`."""
    return (similarity(aspect / 2 + at["camera_x"], 0.5 + at["camera_y"], at["camera_turn"], at["camera_zoom"])
            @ similarity(-aspect / 2, -0.5))


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
    hsv = np.stack([hues % 180, [120, 80, 160, 60], [90, 160, 15, 255]], axis=1)
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


def _paint(image: np.ndarray, halves: tuple[np.ndarray, np.ndarray], pose: np.ndarray, gap_px: float) -> np.ndarray:
    """Returns the float32 image with the figure, its halves `gap_px` apart before `pose`, `[3, 3]` in px, is applied."""
    middle = (halves[0].shape[0] - 1) / 2
    layer = np.zeros((*image.shape[:2], 4), np.float32)
    for half, along in zip(halves, (-gap_px / 2, gap_px / 2)):
        matrix = pose @ similarity(along - middle, -middle)
        layer += cv2.warpAffine(half, matrix[:2], image.shape[1::-1], flags=cv2.INTER_LINEAR)
    return image * (1 - np.minimum(layer[..., 3:], 1)) + layer[..., :3]


@functools.lru_cache(maxsize=2 * POOL_PER_KIND ** 3)
def _scene(appearance: Appearance, num_distractors: int, height: int, width: int) -> np.ndarray:
    """Returns background and distractors, float32 `[H + 2m, W + 2m, 3]`, with a margin of m px for the camera."""
    rng = np.random.default_rng([3, appearance.background])  # draws the distractors' places too
    margin = round(SCENE_MARGIN * height)
    blend = _noise(rng, height + 2 * margin, width + 2 * margin, int(rng.integers(3, 9)), 5)[..., None]
    colors = _coloring(appearance.coloring)
    scene = colors[0] * (1 - blend) + colors[1] * blend
    halves = _figure_halves(appearance.texture, appearance.coloring, height)
    for _ in range(num_distractors):
        around = rng.uniform(0, 2 * np.pi)  # on an oval near the border
        x_px, y_px = margin + width * (0.5 + 0.4 * np.cos(around)), margin + height * (0.5 + 0.4 * np.sin(around))
        pose = similarity(x_px, y_px, rng.uniform(0, 2 * np.pi), rng.uniform(*DISTRACTOR_LENGTH) / FIGURE_LENGTH[1])
        scene = _paint(scene, halves, pose, FIGURE_LENGTH[1] * height * MAX_GAP * rng.uniform())
    return scene


def render_video(class_name: str, seed: int | Sequence[int], frames: int = 64, size: tuple[int, int] = (100, 75),
                 shared_looks: bool = False) -> np.ndarray:
    """Returns frames uint8 `[F, H, W, 3]`, RGB. `size` is (W, H) in px, `seed` one or several integers >= 0, which gives
    every class the same appearance, camera, place, direction, period and phase."""
    width, height = size
    appearance = draw_appearance(seed, shared_looks)
    num_distractors = 1 + int(np.random.default_rng([4, *np.atleast_1d(seed)]).integers(2))
    scene = _scene(appearance, num_distractors, height, width)
    halves = _figure_halves(appearance.texture, appearance.coloring, height)
    margin, full = round(SCENE_MARGIN * height), FIGURE_LENGTH[1]
    course = draw_course(class_name, seed, frames, width / height)
    video = np.empty((frames, height, width, 3), np.uint8)
    for index in range(frames):
        at = {name: float(values[index]) for name, values in course.items()}
        camera = similarity(0, 0, scale=height) @ camera_matrix(at, width / height)  # scene in heights to frame in px
        background = cv2.warpAffine(scene, (camera @ similarity(-margin / height, -margin / height, scale=1 / height))[:2],
                                    size)
        pose = camera @ similarity(at["x"], at["y"], at["turn"], at["length"] / full / height)
        image = _paint(background, halves, pose, at["gap"] * full * height)
        video[index] = np.clip(np.round(image), 0, 255)
    return video
