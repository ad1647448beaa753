"""Class probabilities of whole test videos, and what is counted from them.

Shapes: N videos, each of several views (clips x crops); M views in one forward; K classes.
"""
from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dataset.records import VideoRecord
from dataset.transforms import TestCrops, normalize
from dataset.videos import LabelledTestVideos, build_loader
from eval.features import ClipSettings, ViewsOrReason, batch_views, fill_up, group_by_video
from utils.distributed import Process, gather_objects
from utils.errors import AgreedError
from utils.runlog import replace_text

TOP = (1, 5)


def predict(
    model: nn.Module, records: Sequence[VideoRecord], settings: ClipSettings, process: Process, *,
    batch: int, num_workers: int, skipped: dict[int, str] | None = None, label: str = "test",
) -> dict[str, np.ndarray]:
    """Level -> probabilities float64 [N, K]: the softmax of each view, averaged over the video's clips and crops.

    Row i belongs to records[i]. Every clip has as many crops, so that the mean over all views is the mean over
    clips and then over crops. Eval mode, full float32 (no TF32, no autocast), `batch` views at a time; workers
    and processes change not a bit of a row. Of several processes each reads every world_size-th video; all must
    call this with the same weights, and all get all rows. That every row is filled exactly once is checked.

    A video that cannot be read is an InputError with its path; where `skipped` is given, its row is NaN and the
    dictionary gets index -> reason. Probabilities that are not finite are an InputError too.
    """
    was_training = model.training
    model.to(process.device).eval()
    videos = LabelledTestVideos(records, settings.sampler(), TestCrops(settings.img_dim, settings.crops))
    own = [[index] for index in range(process.rank, len(records), process.world_size)]
    loader = build_loader(ViewsOrReason(videos, skipped is not None), own, num_workers, process.device)
    bad: dict[int, str] = {}
    filled: list[tuple[int, dict[str, np.ndarray]]] = []

    def readable() -> Iterator[tuple[int, Tensor]]:
        for index, views, reason in tqdm(loader, desc=label, unit="video", leave=False,
                                         disable=None if process.is_main else True):
            if reason[0]:
                bad[int(index)] = reason[0]
            else:
                yield int(index), views[0]

    with torch.inference_mode(), torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        per_view = ((owners, view_probabilities(model, fill_up(views, batch).to(process.device, non_blocking=True)))
                    for owners, views in batch_views(readable(), batch))
        for index, rows in group_by_video(per_view):
            filled.append((index, {level: values.mean(axis=0) for level, values in rows.items()}))
    model.train(was_training)

    parts = gather_objects((filled, bad))
    if skipped is not None:
        for _, part_bad in parts:
            skipped.update(part_bad)
    return rows_by_index([item for part, _ in parts for item in part], records, set(skipped or ()))


def view_probabilities(model: nn.Module, views: Tensor) -> dict[str, np.ndarray]:
    """Level -> float64 [M, K] from uint8 views [M, T, S, S, 3]; the softmax is taken in float32."""
    logits = model(normalize(views).contiguous())
    return {level: x.float().softmax(dim=1).double().cpu().numpy() for level, x in logits.items()}


def rows_by_index(
    filled: Sequence[tuple[int, dict[str, np.ndarray]]], records: Sequence[VideoRecord], skipped: set[int],
) -> dict[str, np.ndarray]:
    """Level -> float64 [N, K] from all processes' (index, level -> [K]); NaN for a skipped video."""
    if not filled:
        raise AgreedError(f"none of the {len(records)} test videos can be read, such as {records[0].path}")
    times_filled = np.zeros(len(records), np.int64)
    rows = {level: np.full((len(records), len(row)), np.nan) for level, row in filled[0][1].items()}
    for index, levels in filled:
        times_filled[index] += 1
        for level, row in levels.items():
            if not np.isfinite(row).all():
                raise AgreedError(f"{records[index].path}: its class probabilities are not finite at level {level}: "
                                  "are the weights those of a run that diverged?")
            rows[level][index] = row
    expected = [int(index not in skipped) for index in range(len(records))]
    assert times_filled.tolist() == expected, "rows filled other than once"
    return rows


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


def named(row: dict[str, Any], classes: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
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
    replace_text(path, text.getvalue())
