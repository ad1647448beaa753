"""Figures of a report: charts as inline SVG, images and videos as data URIs, so that the page loads nothing.

Shapes: T frames of a clip; P videos side by side.
"""
from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from cycler import cycler
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from dataset.frames import read_frames
from dataset.records import VideoRecord
from eval.features.extract import ClipSettings
from utils.errors import InputError
from visualization.cam import encode_video

# Color names of report.css, which are different in light and dark -> what matplotlib draws, replaced by the name afterwards.
COLORS = {"c0": "#1f5fa8", "c1": "#c2571a", "c2": "#1e7f57", "c3": "#9b3b8c", "c4": "#8a6d00", "c5": "#4f5b66",
          "soft": "#5c6166", "faint": "#e3e4e0"}
LINES = (cycler(color=2 * list(COLORS.values())[:6])
         + cycler(linestyle=3 * ["-", (0, (7, 2)), (0, (3, 1)), (0, (7, 2, 1, 2))]))  # 12 lines that differ
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "report", "text.parse_math": False, "font.size": 7.5, "legend.frameon": False,
    "axes.prop_cycle": LINES, "lines.linewidth": 1.3, "axes.edgecolor": COLORS["soft"], "grid.color": COLORS["faint"],
    "axes.grid": True, "axes.grid.axis": "y", "axes.spines.left": False, "axes.spines.right": False,
    "axes.spines.top": False, "ytick.left": False, "xtick.bottom": False,
}
WIDTH, PLOT, LEFT, RIGHT, BOTTOM, ROW = 5.2, 1.75, 0.5, 0.12, 0.4, 0.15  # inches: chart, plotted area, margins, text line
LEGEND_CHARACTERS = 90  # of a line of the legend

TILE_SIZE = (160, 120)  # width, height of a video, px
GAP_PX, GAP_COLOR = 4, 128
VIDEO_FPS = 8
WEBP_QUALITY, MAX_WEBP_PX = 80, 16383
PHOTOGRAPHS = ("retrieval",)  # images stored as photographs; all others are drawings, stored losslessly


class ChartLine(NamedTuple):
    """A line of a chart; its `chance` level is dotted in the same color and named by `note` in the legend."""

    name: str
    places: Sequence[float]
    values: Sequence[float]
    chance: float | None = None
    note: str = ""
    drawstyle: str = "default"  # of matplotlib


class Chart(NamedTuple):
    """A chart as SVG content of `width` x `height` units, and a description for those who do not see it."""

    title: str
    description: str
    width: float
    height: float
    svg: Markup


def draw_lines(axes: Axes, lines: Sequence[ChartLine], marks: Sequence[tuple[float, str]], percent: bool = False) -> None:
    """Draws lines with gaps at non-finite values, and vertical `marks` (place, label), each label in a row above."""
    for line in lines:
        values = np.where(np.isfinite(line.values), line.values, np.nan)
        label = f"{line.name}  {format_value(line.values[-1], percent)}" + (f" ({line.note})" if line.note else "")
        [drawn] = axes.plot(line.places, values, label=label, drawstyle=line.drawstyle,
                            marker="o" if len(values) == 1 else None)
        if line.chance is not None:
            axes.axhline(line.chance, color=drawn.get_color(), linewidth=0.9, linestyle=":")
    for row, (place, label) in enumerate(sorted(marks)):
        axes.axvline(place, color=COLORS["soft"], linewidth=0.7, linestyle="--")
        axes.annotate(label, (place, 1), (3, 3 + 9 * row), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                      horizontalalignment="left" if place < sum(axes.get_xlim()) / 2 else "right")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1))


def line_chart(title: str, lines: Sequence[ChartLine], place_name: str, *, marks: Sequence[tuple[float, str]] = (),
               level: tuple[float, str] | None = None, percent: bool = False, extent: tuple[float, float] | None = None,
               from_zero: bool = True) -> Chart:
    """Returns a chart of the lines with any finite value, with a legend of their last values below.

    `place_name`: what is on the horizontal axis, from `extent[0]` to `extent[1]` where other charts reach further than
    these lines. `level`: a horizontal line (value, label) of its own. `from_zero`: unless there are negative values.
    """
    lines = [line for line in lines if np.isfinite(line.values).any()]
    places = [place for line in lines for place in line.places] + list(extent or ())
    marks = [mark for mark in marks if min(places) <= mark[0] <= max(places)]
    with matplotlib.rc_context(STYLE):
        figure = Figure()
        axes = figure.add_axes((0, 0, 1, 1), xlabel=place_name)
        if min(places) < max(places):
            axes.set_xlim(min(places), max(places))
        draw_lines(axes, lines, marks, percent)
        if level:
            axes.axhline(level[0], color=COLORS["soft"], linewidth=0.9, linestyle=":", label=level[1])
        if from_zero and axes.dataLim.y0 >= 0:
            axes.set_ylim(bottom=0)
        handles, labels = axes.get_legend_handles_labels()
        columns = max(1, min(len(labels), LEGEND_CHARACTERS // (max(map(len, labels), default=0) + 8)))
        below = BOTTOM + ROW * math.ceil(len(labels) / columns)
        height = below + PLOT + 0.1 + ROW * len(marks)
        figure.set_size_inches(WIDTH, height)
        axes.set_position((LEFT / WIDTH, below / height, (WIDTH - LEFT - RIGHT) / WIDTH, PLOT / height))
        figure.legend(handles, labels, loc="lower left", ncols=columns, borderaxespad=0, borderpad=0, labelspacing=0.3)
        ends = [f"{line.name} from {format_value(line.values[0], percent)} to {format_value(line.values[-1], percent)}"
                for line in lines]
        return Chart(title, f"{title} over {place_name}: {'; '.join(ends)}", 72 * WIDTH, round(72 * height, 1),
                     svg_content(figure))


def svg_content(figure: Figure) -> Markup:
    """Returns the paths and texts that matplotlib draws, in the colors and the font of the page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True)
    content = ""
    for part in re.findall(r"<defs>\s*<path.*?</defs>|<(?:path|use) [^>]*/>|<text.*?</text>", file.getvalue(), re.DOTALL):
        part = re.sub(r'font[^"]*sans-serif(; )?| (transform="rotate\(-0|clip-path=")[^"]*"|\n', "", part)
        content += part if part.startswith("<text") else re.sub(r"(\.\d)\d+", r"\1", part)
    for name, color in COLORS.items():
        content = content.replace(color, f"var(--{name})")
    return Markup(content)


def format_value(value: float, percent: bool) -> str:
    """Returns a value, or a fraction as a percentage, as text."""
    return f"{100 * value:.1f} %" if percent else f"{value:.3g}"


def data_uri(data: bytes, kind: str) -> str:
    """Returns `data` as a URI of the MIME type `kind`."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def webp_uri(image: Image.Image | Figure, lossless: bool = False) -> str:
    """Returns an image as a WebP data URI, smaller than PNG and JPEG; a figure where SVG would have too many points."""
    file = io.BytesIO()
    if isinstance(image, Figure):
        image.savefig(file, format="webp", pil_kwargs={"lossless": lossless})
    else:
        image.thumbnail((MAX_WEBP_PX, MAX_WEBP_PX))
        image.save(file, "WEBP", lossless=lossless, quality=WEBP_QUALITY)
    return data_uri(file.getvalue(), "image/webp")


def file_uri(path: Path) -> str:
    """Returns an image (as WebP) or MP4 file as a data URI. InputError where it cannot be read."""
    try:
        if path.suffix == ".mp4":
            return data_uri(path.read_bytes(), "video/mp4")
        with Image.open(path) as image:
            return webp_uri(image.convert("RGB"), lossless=path.stem not in PHOTOGRAPHS)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not a readable image'}") from error


def side_by_side(records: Sequence[VideoRecord], settings: ClipSettings) -> tuple[str, str]:
    """Returns the test clips of P videos side by side as (video, its middle frame), two data URIs."""
    clips = [read_frames(record.path, settings.sampler()(record.num_frames)[0], record.num_frames, TILE_SIZE)
             for record in records]
    gap = np.full((*clips[0].shape[:2], GAP_PX, 3), GAP_COLOR, np.uint8)
    frames = np.concatenate([part for clip in clips for part in (gap, clip)][1:], axis=2)  # [T, H, W P + gaps, 3]
    return data_uri(encode_video(frames, VIDEO_FPS), "video/mp4"), webp_uri(Image.fromarray(frames[len(frames) // 2]))
