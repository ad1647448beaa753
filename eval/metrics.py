"""What is counted from class scores of test videos: accuracies, rows per class, and the confusion matrix with its figure.

Shapes: N videos; K classes.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import InputError
from utils.files import read_lines

TOP = (1, 5)
CLASS_FILE = "classes.txt"
MAX_NUMBERED = 20  # up to this number of classes, the cells of the figure show their value


def ranks_of_truth(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns int64 [N]: how many classes come before the true one, highest score first, equal ones in class order."""
    truth = np.take_along_axis(scores, labels[:, None], axis=1)
    earlier = np.arange(scores.shape[1]) < labels[:, None]
    return ((scores > truth) | ((scores == truth) & earlier)).sum(axis=1)


def accuracies(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Returns {"top1", "top5", "mean_class"}, each from 0 to 1, from scores [N, K] and classes [N].

    `mean_class` is top-1 averaged over the classes that occur. Top-5 is left out with five classes or fewer, of which it
    would be 1. (scikit-learn's `top_k_accuracy_score` breaks ties the other way, so that top-1 would not be argmax's.)
    """
    ranks = ranks_of_truth(scores, labels)
    found = {f"top{k}": float((ranks < k).mean()) for k in TOP if k == 1 or k < scores.shape[1]}
    return {**found, "mean_class": float(np.mean([(ranks[labels == c] == 0).mean() for c in np.unique(labels)]))}


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns int64 [K, K]: videos of class i (row) predicted as class j (column), from labels and predictions [N]."""
    return np.bincount(labels * num_classes + predicted, minlength=num_classes ** 2).reshape(num_classes, num_classes)


def per_class(matrix: np.ndarray, names: dict[int, str]) -> list[dict[str, Any]]:
    """Returns a row for each class that occurs: its videos, its top-1, and the class it is most often mistaken for.

    `matrix`: confusion matrix; `names`: label in the csv -> name, in the order of the classes.
    """
    labels, totals, wrong = list(names), matrix.sum(axis=1), matrix * ~np.eye(len(matrix), dtype=bool)
    return [{"class": labels[i], "videos": int(totals[i]), "top1": float(matrix[i, i] / totals[i]),
             "taken_for": labels[wrong[i].argmax()] if wrong[i].any() else None, "taken_for_videos": int(wrong[i].max()),
             "name": names[labels[i]]} for i in np.flatnonzero(totals).tolist()]


def draw_confusion(path: Path, matrix: np.ndarray, names: dict[int, str], title: str) -> None:
    """Writes the figure of a confusion matrix [K, K]: rows in per cent of the class's videos, grey for a class without."""
    from matplotlib import colormaps  # here, as most users of this file draw nothing

    from utils.figures import new_figure, save_figure

    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.ma.masked_where(np.broadcast_to(totals == 0, matrix.shape), 100 * matrix / np.maximum(totals, 1))
    side = max(4.0, 0.18 * len(names)) + 2.5
    figure = new_figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    colors = colormaps["Blues"].with_extremes(bad="0.85")
    image = axes.imshow(shares, cmap=colors, vmin=0, vmax=100, interpolation="nearest")
    axes.set_xticks(range(len(names)), names.values(), rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names.values(), fontsize=8)
    axes.set(xlabel="predicted", ylabel="class", title=title)
    if len(names) <= MAX_NUMBERED:
        for row, column in zip(*np.nonzero(matrix)):
            axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", fontsize=7,
                      color="white" if shares[row, column] > 60 else "black")
    figure.colorbar(image, ax=axes, shrink=0.6, label="% of the class's videos")
    save_figure(figure, path)


def measure_classes(scores: np.ndarray, labels: np.ndarray, names: dict[int, str], level: str,
                    figure: Path) -> tuple[dict[str, float], list[dict[str, Any]], Callable[[], None]]:
    """Returns (`accuracies`, `per_class` rows, what writes the figure of confusions) of scores [N, K] and classes [N]."""
    found, matrix = accuracies(scores, labels), confusion_matrix(labels, scores.argmax(axis=1), len(names))
    title = f"{level}: top-1 {100 * found['top1']:.1f} %"
    return found, per_class(matrix, names), partial(draw_confusion, figure, matrix, names, title)


def add_classes_flag(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--classes", metavar="FILE",
                       help=f"class names, one a line, label 0 first (default: {CLASS_FILE} beside the csv, if it is "
                            "there; else the labels)")


def class_names(file: str | None, train_csv: str, labels: Iterable[int]) -> dict[int, str]:
    """Returns label -> name, in order: from `file`, or classes.txt beside the csv, or the number itself."""
    labels = sorted(set(map(int, labels)))
    path = Path(file) if file else Path(train_csv).parent / CLASS_FILE
    if not file and not path.exists():
        return {label: str(label) for label in labels}
    names = [name for _, name in read_lines(path)]
    if labels and len(names) <= labels[-1]:
        raise InputError(f"{path}: names {len(names)} class(es), one a line, but {train_csv} has labels up to {labels[-1]}")
    return {label: names[label] for label in labels}
