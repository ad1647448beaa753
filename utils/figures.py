"""Figures as files. They are plain `matplotlib.figure.Figure` objects, without pyplot's windows and global state."""
from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from utils.errors import InputError, os_error_as_input
from utils.files import write_atomically

FIGURE_SUFFIXES = (".png", ".jpg", ".svg", ".pdf")


def new_figure(title: str = "", **settings: object) -> Figure:
    """Returns an empty figure that draws text as it is written: `$` in a name does not begin mathematics.

    `title`: above it, with escapes for bytes of file names that are not text; `settings`: of `Figure`.
    """
    matplotlib.rcParams["text.parse_math"] = False
    warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from")  # drawn as boxes, as docs/operations.md says
    figure = Figure(**settings)
    if title:
        figure.suptitle(title.encode(errors="backslashreplace").decode(), fontsize=10)
    return figure


def check_figure_path(path: Path) -> None:
    """Raises InputError unless `path`, of --out, has the suffix of a format that `save_figure` writes."""
    if path.suffix.lower() not in FIGURE_SUFFIXES:
        raise InputError(f"--out {path}: must end in one of {', '.join(FIGURE_SUFFIXES)}")


def save_figure(figure: Figure, path: Path, flag: str = "") -> None:
    """Writes `figure` in the format of `path`'s suffix; InputError, which names `flag`, where it cannot be written."""
    with os_error_as_input(f"{flag} {path}: cannot write the figure".lstrip()):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: figure.savefig(file, format=path.suffix[1:].lower(), dpi=110))
