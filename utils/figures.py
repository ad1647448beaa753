"""Figures as files. They are plain `matplotlib.figure.Figure` objects, without pyplot's windows and global state."""
from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from utils.errors import InputError
from utils.files import write_atomically

FIGURE_SUFFIXES = (".png", ".jpg", ".svg", ".pdf")


def check_figure_path(path: Path) -> None:
    """Raises InputError unless `path`, of --out, has the suffix of a format that `save_figure` writes."""
    if path.suffix.lower() not in FIGURE_SUFFIXES:
        raise InputError(f"--out {path}: must end in one of {', '.join(FIGURE_SUFFIXES)}")


def save_figure(figure: Figure, path: Path, flag: str = "") -> None:
    """Writes `figure` in the format of `path`'s suffix; InputError, which names `flag`, where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: figure.savefig(file, format=path.suffix[1:].lower(), dpi=110))
    except OSError as error:
        raise InputError(f"{flag} {path}: cannot write the figure: {error.strerror}".lstrip()) from error
