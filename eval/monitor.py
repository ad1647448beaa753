"""Retrieval and linear accuracy of a backbone in training, cheap enough to be measured between epochs.

Shapes: N training and Q test videos; C channels of the high level; K classes.
"""
from __future__ import annotations

import argparse
import math
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from dataset.transforms import IMAGENET
from eval.features.extract import ClipSettings, extract_features, keep_readable, level_vectors
from eval.features.probe_heads import fit_standardizer
from eval.retrieval import nearest, recall_at
from eval.splits import EvalSplit, read_split
from utils.checkpoint import Progress
from utils.distributed import (DistContext, gather_objects, run_long_on_main, run_on_all_ranks, run_on_main,
                               share_buffers)
from utils.training_log import RunLog

LEVEL = "high"
RIDGE = 0.1  # penalty, in units of a channel's variance


class Monitor:
    """Retrieval and a linear classifier on features of one level, without any choice or random draw; in every process.

    All processes must make one together. The main process counts the frames of videos that the csv files give no number for.
    """

    def __init__(self, train_csv: str, test_csv: str, settings: ClipSettings, context: DistContext, *, batch: int = 32,
                 scale: dict[str, Any] = IMAGENET, num_workers: int = 0) -> None:
        split = EvalSplit(None, train_csv, test_csv)
        counts = run_long_on_main(context, lambda: {
            role: [video.num_frames for video in videos] for role, videos in read_split(split).items()})
        self.records = run_on_all_ranks(lambda: read_split(split, counts))
        self.context = context
        self.extract = partial(extract_features, settings=settings, context=context, scale=scale, batch=batch,
                               num_workers=num_workers)

    def __call__(self, backbone: nn.Module) -> dict[str, float]:
        """Returns {"monitor_R@1", "monitor_top1"}, each from 0 to 1, in every process; all must call this.

        `monitor_R@1`: share of test videos whose nearest training video has their class. `monitor_top1`: share that a ridge
        regression from the training videos' features to their classes gets right. The backbone, unwrapped, runs in eval
        mode and float32; its training modes, batch norm statistics and the random state are left as they were. Videos that
        cannot be read are left out and counted, as `monitor_skipped`.
        """
        vectors_and_labels, num_skipped = [], 0
        for role, videos in self.records.items():
            skipped: dict[int, str] = {}
            features = self.extract(backbone, videos, label=f"monitor, {role}", skipped=skipped)
            videos, features = keep_readable(videos, features, skipped)
            if self.context.is_main:
                vectors_and_labels += [level_vectors(features, LEVEL), np.array([video.label for video in videos])]
            num_skipped += len(skipped)
        values = run_on_main(self.context, lambda: monitor_metrics(*vectors_and_labels))
        return {**values, "monitor_skipped": num_skipped} if num_skipped else values

    def log_epoch(self, backbone: nn.Module, progress: Progress, flags: argparse.Namespace, log: RunLog) -> None:
        """Logs its values after every `--monitor_every`-th epoch and the last, unless an earlier start did so."""
        due = progress.epoch > 0 and (progress.epoch % flags.monitor_every == 0 or progress.epoch == flags.epochs)
        if progress.step or not due or any(gather_objects(log.has_monitored(progress.total_steps))):
            return
        share_buffers(backbone)
        values = self(backbone)
        log.write("monitor", progress.epoch - 1, progress.total_steps, values)
        log.say(f"epoch {progress.epoch}/{flags.epochs}  monitor: " + "  ".join(
            f"{name.removeprefix('monitor_')} {value:.3f}" for name, value in values.items()))


def monitor_metrics(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray,
                    test_labels: np.ndarray) -> dict[str, float]:
    """Returns both metrics of training vectors [N, C] and test vectors [Q, C]; NaN where no label is in both."""
    known = np.isin(test_labels, train_labels)
    if not known.any():
        return {"monitor_R@1": math.nan, "monitor_top1": math.nan}
    test, test_labels = test[known], test_labels[known]
    classes, targets = np.unique(train_labels, return_inverse=True)
    predicted = classes[ridge_scores(train, targets, test).argmax(axis=1)]
    return {"monitor_R@1": recall_at(nearest(test, train, 1), test_labels, train_labels)["R@1"],
            "monitor_top1": float((predicted == test_labels).mean())}


def ridge_scores(train: np.ndarray, targets: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Returns scores float64 [Q, K] of test vectors [Q, C]: ridge regression of one-hot classes on training vectors [N, C].

    Channels are standardized by the training videos; W = (X^T X / N + RIDGE I)^-1 X^T Y / N, with Y centered.
    """
    standardize, one_hot = fit_standardizer(train), np.eye(targets.max() + 1)[targets]
    x, queries = (standardize(vectors).astype(np.float64) for vectors in (train, test))
    share = one_hot.mean(axis=0)
    weights = np.linalg.solve(x.T @ x / len(x) + RIDGE * np.eye(x.shape[1]), x.T @ (one_hot - share) / len(x))
    return queries @ weights + share
