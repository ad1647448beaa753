"""Class activation maps as images: colored over their frames as JPEG files, and side by side as a video.

Shapes: row 0 is a clip in natural order, row 1 its time reversal, each in its own time; T frames of S x S px. Frames are
uint8 RGB `[2, T, S, S, 3]`, maps float `[2, T, S, S]`.
"""
from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import av
import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from dataset.frames import video_name
from utils.errors import InputError
from utils.figures import new_figure
from utils.files import write_atomically

CODEC = "libx264"
JPEG_QUALITY = 95
MAX_NAME_BYTES = 200  # of a video's name; file systems take 255 with number and suffix
NUMBERED = re.compile(r"\d{4,}_")  # how names from `cam_name` begin
PANEL_PX = 224  # least side of a panel in the video; smaller frames are enlarged
GAP_PX, TITLE_PX, CURVE_PX = 4, 28, 180
PANELS = {"natural order": "tab:red", "reversed order, back in time": "tab:blue", "mean of both": "black"}


def to_color_levels(maps: np.ndarray, scale: str) -> np.ndarray:
    """Returns uint8, shaped as `maps` [..., S, S]: 0 for the least value, 255 for the greatest; all 0 where they are equal.

    `scale` "clip": least and greatest of all `maps`, so that colors can be compared throughout; "frame": of each frame.
    """
    axes = {"clip": None, "frame": (-2, -1)}[scale]
    low, high = maps.min(axis=axes, keepdims=True), maps.max(axis=axes, keepdims=True)
    return np.round((maps - low) / np.where(high > low, high - low, 1) * 255).astype(np.uint8)


def overlay(frames: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Returns uint8 RGB [T, S, S, 3]: half the frame, half the JET color of its level, from blue (0) to red (255)."""
    colored = np.stack([cv2.applyColorMap(level, cv2.COLORMAP_JET)[..., ::-1] for level in levels])
    return ((frames.astype(np.uint16) + colored + 1) // 2).astype(np.uint8)


def write_cams(folder: Path, name: str, frames: np.ndarray, maps: np.ndarray, evidence: np.ndarray, *,
               scale: str, folders: tuple[str, str], fps: int) -> Path:
    """Writes FOLDER/NAME.mp4, whose path is returned, and a JPEG file of each frame of both orders.

    FOLDER/`folders[0]`/NAME/image_00001.jpg ... show the natural clip, FOLDER/`folders[1]`/NAME/... the reversed one in
    its own time. Both orders share their color scale (`to_color_levels`); `evidence`
    [T, S, S], their mean in natural time, has its own.
    """
    overlays = np.stack([overlay(*row) for row in zip(frames, to_color_levels(maps, scale))])
    for kind, images in zip(folders, overlays):
        (folder / kind / name).mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(images, start=1):
            _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            (folder / kind / name / f"image_{number:05d}.jpg").write_bytes(data.tobytes())

    # All in natural time, so that the panels play in step.
    panels = [frames[0], overlays[0], overlays[1][::-1], overlay(frames[0], to_color_levels(evidence, scale))]
    ranges = [f"{x.min():+.2g} to {x.max():+.2g}" if scale == "clip" else "own scale" for x in (maps, maps, evidence)]
    titles = ["frames", *(f"{title} ({blue_to_red})" for title, blue_to_red in zip(PANELS, ranges))]
    curves = np.stack([x.mean(axis=(1, 2)) for x in (maps[0], maps[1][::-1], evidence)])
    write_atomically(folder / f"{name}.mp4", encode_video(compose_images(panels, titles, curves), fps))
    return folder / f"{name}.mp4"


def cam_name(number: int, video: str) -> str:
    """Returns the name of a video's maps: its number, and as much of its own name as file systems take."""
    return f"{number:04d}_{video_name(video).encode()[:MAX_NAME_BYTES].decode(errors='ignore')}"


def remove_cams(folder: Path) -> int:
    """Removes what `write_cams` left in `folder` under names from `cam_name`; returns the number of videos."""
    videos = [path for path in folder.glob("*.mp4") if NUMBERED.match(path.name)]
    for path in (*videos, *folder.glob("*.mp4.partial")):
        path.unlink()
    for path in folder.glob("*/*"):
        if NUMBERED.match(path.name) and path.is_dir():
            for image in path.glob("image_*.jpg"):
                image.unlink()
            with contextlib.suppress(OSError):  # it holds something else
                path.rmdir()
    return len(videos)


def compose_images(panels: Sequence[np.ndarray], titles: Sequence[str], curves: np.ndarray) -> Iterator[np.ndarray]:
    """Yields T images, uint8 RGB of even sides: panels side by side, and below them curves with a cursor.

    `panels`: uint8 [T, S, S, 3] each, all in the same time; `titles`: one for each; `curves` [3, T].
    """
    side = panels[0].shape[1] * max(1, -(-PANEL_PX // panels[0].shape[1]))
    lefts = [number * (side + GAP_PX) for number in range(len(panels))]
    width, height = ((px + 1) // 2 * 2 for px in (lefts[-1] + side, TITLE_PX + side + CURVE_PX))
    figure = new_figure(figsize=(width / 100, height / 100), dpi=100)
    canvas, axes = FigureCanvasAgg(figure), figure.add_axes((0.07, 45 / height, 0.91, (CURVE_PX - 60) / height))
    for left, title in zip(lefts, titles):
        figure.text((left + 4) / width, 1 - 18 / height, title, fontsize=6.5)
    numbers = np.arange(1, curves.shape[1] + 1)
    for values, (title, color) in zip(curves, PANELS.items()):
        axes.plot(numbers, values, marker=".", label=title, color=color)
    axes.axhline(0, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xlabel("frame", fontsize=8)
    axes.set_ylabel("mean evidence", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7)
    canvas.draw()
    background = np.array(canvas.buffer_rgba())[..., :3]
    columns = np.rint(axes.transData.transform([(number, 0) for number in numbers])[:, 0]).astype(int).tolist()
    top, bottom = (height - round(y) for y in (axes.bbox.y1, axes.bbox.y0))
    for frames, column in zip(zip(*panels), columns):
        image = background.copy()
        for left, frame in zip(lefts, frames):
            image[TITLE_PX:TITLE_PX + side, left:left + side] = cv2.resize(frame, (side, side))
        yield cv2.line(image, (column, top), (column, bottom), (90, 90, 90), 1)


def require_h264() -> None:
    """Raises InputError where this PyAV cannot write H.264."""
    if CODEC not in av.codecs_available:
        raise InputError(f"PyAV {av.__version__} has no {CODEC} to write videos with; its wheel has: "
                         "pip install --force-reinstall av")


def encode_video(images: Iterable[np.ndarray], fps: int) -> bytes:
    """Returns uint8 RGB images of one even size as an MP4 file that browsers play: H.264, yuv420p, index first."""
    file = io.BytesIO()
    # To put the index first, FFmpeg opens what it has written once more, to read it.
    with av.open(file, "w", format="mp4", options={"movflags": "faststart"},
                 io_open=lambda *_: io.BytesIO(file.getvalue())) as container:
        stream = container.add_stream(CODEC, rate=fps, options={"crf": "18"})
        stream.pix_fmt = "yuv420p"
        for number, image in enumerate(images):
            if number == 0:
                stream.height, stream.width = image.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
