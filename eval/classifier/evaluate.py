"""Training and test of a classifier on each split, and the result card: finetuning and the end-to-end linear probe.

The state after the last epoch is tested; nothing is chosen on the test videos.

Shapes: N videos; K classes, which are the training set's labels in order.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from dataset.records import VideoRecord
from dataset.sampling import NATURAL
from dataset.transforms import read_input
from eval.classifier.model import VideoClassifier, level_channels, parameter_groups
from eval.classifier.state import HOLDOUT_FLAGS, KIND, SAME_TO_TEST, check_identity, read_finished
from eval.classifier.training import TrainedClassifier, fit_classifier
from eval.cli import read_clip_settings
from eval.features.backbone import load_backbone, new_backbone
from eval.features.extract import ClipSettings, Rows, keep_readable, predict
from eval.holdout import draw_holdout
from eval.metrics import accuracies, class_names, measure_classes
from eval.result_card import CARD, SplitResult, build_card, make_out_dir, read_card, write_card
from eval.splits import EvalSplit, find_splits, read_split
from models.convert import check_keys
from utils.checkpoint import reading_entries
from utils.distributed import DistContext, place_model, run_long_on_main, run_on_all_ranks
from utils.errors import STOPPED, InputError
from utils.files import file_sha256, write_atomically
from utils.training_log import device_name

RECIPE_FLAGS = ("batch_per_gpu", "lr", "weight_decay", "lr_decay_epochs", "flip", "amp", *HOLDOUT_FLAGS)


class ClassifierSplit(NamedTuple):
    """The videos of a split, labelled by class from 0 to K - 1."""

    csv_files: EvalSplit
    names: dict[int, str]        # label in the csv -> name, in order of the classes
    train: list[VideoRecord]
    held_out: list[VideoRecord]  # training videos that are not trained on
    test: list[VideoRecord]
    digests: dict[str, str]      # of all training videos, see `digest_videos`
    holdout: dict[str, Any]      # how `held_out` was drawn, for the card


class ClassifierTask(NamedTuple):
    """How a classifier is built and trained. The result card gets `constants` and the values of `flags`, inner names."""

    name: str
    levels: tuple[str, ...]
    freeze_backbone: bool
    build_head: Callable[[int, int], nn.Module]  # (channels, classes) -> head
    build_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    constants: dict[str, Any]
    flags: tuple[str, ...] = ()  # besides RECIPE_FLAGS

    def build_model(self, backbone: nn.Module, num_classes: int, scale: Mapping[str, Sequence[float]]) -> VideoClassifier:
        """Returns the classifier: `backbone`, whose input is scaled by `scale`, and a head for each level."""
        heads = {level: self.build_head(level_channels(backbone, level), num_classes) for level in self.levels}
        return VideoClassifier(backbone, heads, self.freeze_backbone, scale)

    def identity(self, videos: ClassifierSplit) -> dict[str, Any]:
        """Returns what is trained on what, for `classifier_state`."""
        return {"task": self.name, "levels": list(self.levels), "num_classes": len(videos.names), **videos.digests,
                "train_csv": videos.csv_files.train_csv}


def train_and_test(context: DistContext, flags: argparse.Namespace, task: ClassifierTask) -> int:
    """Returns the exit status; trains, unless `--test_only`, and tests on each split, and writes and prints the results."""
    start, out = time.monotonic(), Path(flags.out)
    results, settings, weights = [], None, None  # of each split; of the first split's training
    finished, flags = run_on_all_ranks(lambda: read_finished(flags)) if flags.test_only else (None, flags)
    # All csv files are read before training begins.
    splits = run_long_on_main(context, lambda: [read_classifier_split(split, flags) for split in find_splits(flags)])
    run_on_all_ranks(lambda: refuse_other_result(flags, task, out))
    for videos in splits:
        folder = out / f"split_{videos.csv_files.name}" if videos.csv_files.name else out
        run_on_all_ranks(lambda: make_out_dir(folder))
        trained = (run_on_all_ranks(lambda: load_finished(finished, flags.test_only, task, videos)) if finished else
                   train_split(context, flags, task, videos, folder))
        epochs_done = trained.checkpoint["epochs_done"] if trained.checkpoint else 0
        if not finished and (trained.stopped or epochs_done < flags.epochs):
            if context.is_main:
                print(f"{folder}: stopped after epoch {epochs_done} of {flags.epochs}, before the test; --resume "
                      "continues it", flush=True)
            return STOPPED if trained.stopped else 0
        results.append(test_split(context, flags, task, trained, videos, folder))
        settings = settings or {**read_clip_settings(flags).facts(), "skip_bad": flags.skip_bad,
                                **describe_training(trained, task)[0]}
        weights = weights or trained.checkpoint["weights"]
    if context.is_main:
        card = build_card(task.name, results, settings, weights, context.device, time.monotonic() - start)
        write_card(out, card, ("clips", "crops", "epochs", "seed"), results)
    return 0


def refuse_other_result(flags: argparse.Namespace, task: ClassifierTask, out: Path) -> None:
    """Raises InputError if `--out` holds the result of another test than the one asked for, which would be replaced."""
    if not (out / CARD).exists():
        return
    if flags.test_only:
        raise InputError(f"--out {out}: holds a result already ({CARD}); name another for --test_only {flags.test_only}")
    card, clips = read_card(out), asdict(read_clip_settings(flags))
    found = {name: card["settings"].get(name, getattr(ClipSettings, name)) for name in clips}
    test_files = [file["sha256"] for role, file in card["csv_files"].items() if role.startswith("test")]
    if (card["task"], found) != (task.name, clips) or test_files != [file_sha256(x.test_csv) for x in find_splits(flags)]:
        raise InputError(f"--out {out}: holds the result of another test ({CARD}: {card['task']}, {found}); move it away, "
                         "or test a checkpoint of the run by --test_only and another --out")


def read_classifier_split(split: EvalSplit, flags: argparse.Namespace) -> ClassifierSplit:
    """Returns the videos of a split, divided as the flags say."""
    records = read_split(split)
    digests = digest_videos(records["train"], records["test"])
    names = class_names(flags.classes, split.train_csv, [video.label for video in records["train"]])
    classes = {label: index for index, label in enumerate(names)}
    train, test = ([replace(video, label=classes[video.label]) for video in records[role]] for role in ("train", "test"))
    if flags.val_holdout is None:
        return ClassifierSplit(split, names, train, [], test, digests, {})
    held, facts = draw_holdout(train, flags.group, flags.val_holdout, flags.seed, "--val_holdout")
    kept, held_out = ([train[i] for i in np.flatnonzero(part)] for part in (~held, held))
    return ClassifierSplit(split, names, kept, held_out, test, digests, {"holdout": facts})


def digest_videos(train: Sequence[VideoRecord], test: Sequence[VideoRecord]) -> dict[str, str]:
    """Returns SHA-256 of the training "videos" with their labels, wherever the data set lies, and of their "frame_counts".

    Paths are relative to the folder common to all videos: frames/train/run/run_001 is not frames/test/run/run_001.
    """
    common = os.path.commonpath([video.path for video in (*train, *test)])
    texts = {"videos": "".join(f"{os.path.relpath(video.path, common)}\t{video.label}\n" for video in train),
             "frame_counts": "".join(f"{video.num_frames}\n" for video in train)}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}


def load_finished(checkpoint: dict[str, Any], path: str, task: ClassifierTask, videos: ClassifierSplit) -> TrainedClassifier:
    """Returns the classifier of `--test_only`; InputError unless it was trained for this task on these videos."""
    with reading_entries(path, KIND):
        check_identity(checkpoint, path, task.identity(videos), SAME_TO_TEST)
        weights = checkpoint["weights"]
        model = task.build_model(new_backbone(weights["net"], path), len(videos.names), read_input(weights, path))
        trained = TrainedClassifier(model, checkpoint, Path(path))
        check_keys(checkpoint["model"], model)
        model.load_state_dict(checkpoint["model"])
        json.dumps(describe_training(trained, task))  # the card needs them after the test
    return trained


def train_split(context: DistContext, flags: argparse.Namespace, task: ClassifierTask, videos: ClassifierSplit,
                folder: Path) -> TrainedClassifier:
    """Returns the classifier after training, which may have been stopped."""
    backbone, weights = run_on_all_ranks(lambda: load_backbone(flags.weights, flags.net, flags.seed,
                                                                flags.input_frames))
    torch.manual_seed(flags.seed)
    model = place_model(task.build_model(backbone, len(videos.names), weights["input"]), context, flags.channels_last)
    optimizer = task.build_optimizer(parameter_groups(model, flags.lr, getattr(flags, "backbone_lr", None)))
    center, skipped_held_out = replace(read_clip_settings(flags), clips=1, crops=1, clip_order=NATURAL), []

    def validate() -> dict[str, float]:
        found, _, labels, skipped_held_out[:] = classify(context, flags, model, videos.held_out, center, "validation")
        return {f"{metric}_{level}": value for level, rows in found.items()
                for metric, value in accuracies(rows, labels).items()}

    identity = {**task.identity(videos), "net": weights["net"], "weights": weights,
                "trained_on": device_name(context.device), "skipped_held_out": skipped_held_out}
    return fit_classifier(model, optimizer, videos.train, identity, validate if videos.held_out else None, context, flags,
                          folder)


def classify(context: DistContext, flags: argparse.Namespace, model: VideoClassifier, records: Sequence[VideoRecord],
             settings: ClipSettings, label: str) -> tuple[Rows, list[VideoRecord], np.ndarray, list[str]]:
    """Returns (level -> probabilities [N, K], in the main process; the readable videos; their classes [N]; why the others
    cannot be read)."""
    skipped: dict[int, str] = {}
    probabilities = predict(model, records, settings, context, scale=model.scale, batch=flags.batch,
                            num_workers=flags.num_workers, skipped=skipped if flags.skip_bad else None, label=label)
    readable, probabilities = keep_readable(records, probabilities, skipped)
    return probabilities, readable, np.array([video.label for video in readable]), list(skipped.values())


def test_split(context: DistContext, flags: argparse.Namespace, task: ClassifierTask, trained: TrainedClassifier,
               videos: ClassifierSplit, folder: Path) -> SplitResult:
    """Returns the metrics of each level, in the main process; writes per_class_LEVEL and probabilities_LEVEL."""
    settings, (_, details) = read_clip_settings(flags), describe_training(trained, task)
    metrics, tables, figures = {}, {}, []
    probabilities, tested, labels, skipped = classify(context, flags, trained.model, videos.test, settings, "test")
    for level, rows in probabilities.items():
        metrics[level], tables[level], figure = measure_classes(rows, labels, videos.names, level,
                                                                folder / f"confusion_{level}.png")
        figures.append(figure)
        write_atomically(folder / f"per_class_{level}.csv", pd.DataFrame(tables[level], dtype=object).to_csv(index=False))
        write_atomically(folder / f"probabilities_{level}.npz", partial(  # paths [N], classes [N], float32 [N, K]
            np.savez, videos=np.array([video.path for video in tested]), classes=labels,
            probabilities=rows.astype(np.float32)))
    return SplitResult(videos.csv_files, metrics, {
        "num_test_videos": len(tested), "skipped_test_videos": skipped,
        "num_test_videos_shorter_than_clip": settings.count_short(tested), "per_class": tables,
        "num_classes": len(videos.names),
        "num_train_videos": len(videos.train) - len(details["skipped_train_videos"]), **videos.holdout, **details,
        "tested_checkpoint_sha256": file_sha256(trained.path) if context.is_main else None}, figures)


def describe_training(trained: TrainedClassifier, task: ClassifierTask) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (settings, facts) of the training that gave the tested checkpoint, for the result card."""
    checkpoint, flags = trained.checkpoint, trained.checkpoint["flags"]
    settings = {**{name: flags[name] for name in (*task.flags, *RECIPE_FLAGS)}, "epochs": checkpoint["epochs_done"],
                **task.constants,
                "training_clip": f"{flags['clip_frames']} frames, stride {flags['stride']}, {flags['img_dim']} px",
                "processes_in_training": len(checkpoint["random"])}
    return settings, {
        "skipped_train_videos": list(checkpoint["progress"]["bad_videos"].values()),
        "skipped_held_out_videos": checkpoint["skipped_held_out"], "trained_on": checkpoint["trained_on"],
        "epochs_done": checkpoint["epochs_done"], "tested_checkpoint": str(trained.path)}
