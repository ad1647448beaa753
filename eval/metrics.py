"""Class probabilities of whole test videos, and what is counted from them.

Shapes: N videos, each of several views (clips x crops); M views in one forward; K classes.
"""
from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from dataset.records import VideoRecord
from dataset.transforms import scale_clips
from eval.features.clip_means import ClipSettings, mean_over_views
from utils.distributed import DistContext
from utils.errors import AgreedError
from utils.files import write_atomically

TOP = (1, 5)


def predict(
    model: nn.Module, records: Sequence[VideoRecord], settings: ClipSettings, context: DistContext, *,
    batch: int, num_workers: int, skipped: dict[int, str] | None = None, label: str = "test",
) -> dict[str, np.ndarray]:
    """Level -> probabilities float64 [N, K]: the softmax of each view, averaged over the video's clips and crops.

    Row i belongs to records[i]; the main process gets them, the others no level. Every clip has as many crops, so that
    the mean over all views is the mean over clips and then over crops. How, and what is refused, tells
    `mean_over_views`; no autocast.
    """
    rows = mean_over_views(model, partial(view_probabilities, model), "class probabilities", records, settings, context,
                           batch=batch, num_workers=num_workers, skipped=skipped, label=label)
    if skipped and len(skipped) == len(records):
        raise AgreedError(f"none of the {len(records)} {label} videos can be read; the first: {skipped[0]}")
    return rows


def view_probabilities(model: nn.Module, views: Tensor) -> dict[str, np.ndarray]:
    """Level -> float64 [M, K] from uint8 views [M, T, S, S, 3]; the softmax is taken in float32."""
    logits = model(scale_clips(views))
    return {level: x.float().softmax(dim=1).double().cpu().numpy() for level, x in logits.items()}


def ranks_of_truth(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """int64 [N]: how many classes come before the true one, most probable first, equal ones in class order."""
    truth = np.take_along_axis(probabilities, labels[:, None], axis=1)
    earlier = np.arange(probabilities.shape[1]) < labels[:, None]
    return ((probabilities > truth) | ((probabilities == truth) & earlier)).sum(axis=1)


def accuracies(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """{"top1", "top5", "mean_class"}, each from 0 to 1, from probabilities [N, K] and classes [N].

    `mean_class` is top-1, averaged over the classes that occur. Top-5 is left out where it says nothing, with not
    more than five classes.
    """
    ranks = ranks_of_truth(probabilities, labels)
    found = {f"top{k}": float((ranks < k).mean()) for k in TOP if k == 1 or k < probabilities.shape[1]}
    return {**found, "mean_class": float(np.mean([(ranks[labels == c] == 0).mean() for c in np.unique(labels)]))}


def per_class(probabilities: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """A row for each class that occurs: its videos, its top-1, and the class that most others are taken for."""
    predicted = probabilities.argmax(axis=1)
    rows = []
    for label in np.unique(labels).tolist():
        mine = predicted[labels == label]
        counts = np.bincount(mine[mine != label], minlength=1)
        rows.append({"class": label, "videos": len(mine), "top1": float((mine == label).mean()),
                     "taken_for": int(counts.argmax()) if counts.any() else None,
                     "taken_for_videos": int(counts.max())})
    return rows


def named(row: dict[str, Any], classes: np.ndarray, names: Mapping[int, str]) -> dict[str, Any]:
    """A row of `per_class` with labels of the csv in place of class indices, and the class's name."""
    def label(index: int | None) -> int | None:
        return None if index is None else int(classes[index])

    return {**row, "class": label(row["class"]), "taken_for": label(row["taken_for"]),
            "name": names[label(row["class"])]}


def write_probabilities(path: Path, records: Sequence[VideoRecord], probabilities: np.ndarray) -> None:
    """Write an npz file: "videos" (paths) [N], "classes" [N] and "probabilities" float32 [N, K]."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        np.savez(file, videos=np.array([record.path for record in records]),
                 classes=np.array([record.label for record in records]),
                 probabilities=probabilities.astype(np.float32))
    os.replace(partial, path)


def write_per_class(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows of `per_class` as csv; a class never mistaken has an empty `taken_for`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())
