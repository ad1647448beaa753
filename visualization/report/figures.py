"""Figures of a report: charts, images and videos as data URIs, so that the page loads nothing.

Shapes: T frames of a clip; P videos side by side.
"""
from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from dataset.frames import read_frames
from dataset.records import VideoRecord
from eval.features.extract import ClipSettings
from utils.errors import InputError
from visualization.cam import encode_video

STYLE = {"svg.fonttype": "none", "svg.hashsalt": "report", "text.parse_math": False, "font.size": 8, "lines.linewidth": 1.3,
         "legend.frameon": False, "axes.grid": True, "grid.alpha": 0.3, "axes.spines.right": False, "axes.spines.top": False,
         "axes.prop_cycle": 3 * cycler(color=matplotlib.color_sequences["tab10"][:6])
         + cycler(linestyle=6 * ["-", "--", "-."])}  # 18 lines that differ
TILE_SIZE = (160, 120)  # width, height of a video, px
GAP_PX, GAP_COLOR = 4, 128
VIDEO_FPS = 8
MAX_WEBP_PX = 16383


class ChartLine(NamedTuple):
    """A line of a chart; its `chance` level is dotted in the same color and named by `note` in the legend."""

    name: str
    places: Sequence[float]
    values: Sequence[float]
    chance: float | None = None
    note: str = ""


def draw_lines(axes: Axes, lines: Sequence[ChartLine], marks: Sequence[tuple[float, str]], percent: bool = False) -> None:
    """Draws lines with gaps at non-finite values, their last values in the legend; and vertical `marks` (place, label)."""
    for line in lines:
        values = np.where(np.isfinite(line.values), line.values, np.nan)
        label = f"{line.name}  {format_value(line.values[-1], percent)}" + (f" ({line.note})" if line.note else "")
        [drawn] = axes.plot(line.places, values, label=label, marker="o" if len(values) == 1 else None)
        if line.chance is not None:
            axes.axhline(line.chance, color=drawn.get_color(), linewidth=0.9, linestyle=":")
    for row, (place, label) in enumerate(sorted(marks)):
        axes.axvline(place, color="grey", linewidth=0.7, linestyle="--")
        axes.annotate(label, (place, 1), (3, 3 + 9 * row), xycoords=axes.get_xaxis_transform(), textcoords="offset points")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1))


def line_chart(title: str, lines: Sequence[ChartLine], place_name: str, *, marks: Sequence[tuple[float, str]] = (),
               level: tuple[float, str] | None = None, percent: bool = False, from_zero: bool = True) -> dict[str, str]:
    """Returns {"title", "text", "uri"} of a chart of the lines with any finite value, with their legend below.

    `place_name`: what is on the horizontal axis. `level`: a horizontal line (value, label) of its own. `from_zero`: unless
    there are negative values. "text" describes the chart for those who do not see it.
    """
    lines = [line for line in lines if np.isfinite(line.values).any()]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 2.3 + 0.15 * (len(lines) + len(marks))), layout="constrained")
        axes = figure.add_subplot(xlabel=place_name)
        draw_lines(axes, lines, marks, percent)
        if level:
            axes.axhline(level[0], color="grey", linewidth=0.9, linestyle=":", label=level[1])
        if from_zero and axes.dataLim.y0 >= 0:
            axes.set_ylim(bottom=0)
        figure.legend(loc="outside lower left", labelspacing=0.3)
        file = io.BytesIO()
        figure.savefig(file, format="svg")
    ends = [f"{line.name} from {format_value(line.values[0], percent)} to {format_value(line.values[-1], percent)}"
            for line in lines]
    return {"title": title, "text": f"{title} over {place_name}: {'; '.join(ends)}",
            "uri": data_uri(file.getvalue(), "image/svg+xml")}


def format_value(value: float, percent: bool) -> str:
    """Returns a value, or a fraction as a percentage, as text."""
    return f"{100 * value:.1f} %" if percent else f"{value:.3g}"


def data_uri(data: bytes, kind: str) -> str:
    """Returns `data` as a URI of the MIME type `kind`."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def webp_uri(image: Image.Image) -> str:
    """Returns an image as a WebP data URI, smaller than PNG and JPEG."""
    file = io.BytesIO()
    image.thumbnail((MAX_WEBP_PX, MAX_WEBP_PX))
    image.save(file, "WEBP", quality=90)
    return data_uri(file.getvalue(), "image/webp")


def file_uri(path: Path) -> str:
    """Returns an image (as WebP) or MP4 file as a data URI. InputError where it cannot be read."""
    try:
        if path.suffix == ".mp4":
            return data_uri(path.read_bytes(), "video/mp4")
        with Image.open(path) as image:
            return webp_uri(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not a readable image'}") from error


def side_by_side(records: Sequence[VideoRecord], settings: ClipSettings) -> tuple[str, str]:
    """Returns the test clips of P videos side by side as (video, its middle frame), two data URIs."""
    clips = [read_frames(record.path, settings.sampler()(record.num_frames)[0], record.num_frames, TILE_SIZE)
             for record in records]
    gap = np.full((*clips[0].shape[:2], GAP_PX, 3), GAP_COLOR, np.uint8)
    frames = np.concatenate([part for clip in clips for part in (gap, clip)][1:], axis=2)  # [T, H, W P + gaps, 3]
    return data_uri(encode_video(frames, VIDEO_FPS), "video/mp4"), webp_uri(Image.fromarray(frames[len(frames) // 2]))
