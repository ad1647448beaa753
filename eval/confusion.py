"""Which classes are taken for which: the counts, and their picture.

Shapes: N videos; K classes.
"""
from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from utils.errors import InputError
from utils.figures import save_figure

CLASS_FILE = "classes.txt"
NUMBERED_CLASSES = 20  # up to so many, the cells of the picture show their number


def add_classes_flag(group: argparse._ArgumentGroup) -> None:
    """The flag --classes."""
    group.add_argument("--classes", metavar="FILE",
                       help=f"class names, one a line, label 0 first (default: {CLASS_FILE} beside --train_csv, "
                            "if it is there; else the labels)")


def class_names(file: str | None, train_csv: str, labels: Iterable[int]) -> dict[int, str]:
    """The name of each of `labels`: from `file`, or classes.txt beside the csv, or the number itself."""
    labels = sorted(set(map(int, labels)))
    path = Path(file) if file else Path(train_csv).parent / CLASS_FILE
    if not file and not path.exists():
        return {label: str(label) for label in labels}
    try:
        names = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot read the class names: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: class names: not UTF-8 text") from error
    if labels and len(names) <= labels[-1]:
        raise InputError(f"{path}: names {len(names)} class(es), one a line, but {train_csv} has labels up to "
                         f"{labels[-1]}")
    return {label: names[label].strip() for label in labels}


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """int64 [K, K]: videos of class i (row) that are taken for class j (column), from labels and predictions [N]."""
    return np.bincount(labels * num_classes + predicted, minlength=num_classes ** 2).reshape(num_classes, num_classes)


def draw_confusion(path: Path, matrix: np.ndarray, names: Sequence[str], title: str) -> None:
    """Write the picture of a confusion matrix [K, K], each row in per cent of its class's videos.

    A class without videos has a grey row. Everything is readable at full size whatever K.
    """
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.ma.masked_where(np.broadcast_to(totals == 0, matrix.shape), 100 * matrix / np.maximum(totals, 1))
    side = max(4.0, 0.18 * len(names)) + 2.5
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    colors = colormaps["Blues"].with_extremes(bad="0.85")
    image = axes.imshow(shares, cmap=colors, vmin=0, vmax=100, interpolation="nearest")
    ticks = np.arange(len(names))
    axes.set_xticks(ticks, names, rotation=90, fontsize=8)
    axes.set_yticks(ticks, names, fontsize=8)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    axes.set_title(title)
    if len(names) <= NUMBERED_CLASSES:
        for row, column in zip(*np.nonzero(matrix)):
            axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", fontsize=7,
                      color="white" if shares[row, column] > 60 else "black")
    figure.colorbar(image, ax=axes, shrink=0.6, label="% of the class's videos")
    save_figure(figure, path)
