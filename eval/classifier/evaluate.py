"""What finetuning and the end-to-end linear probe share: training and test of each split, and the result card.

Nothing is chosen by the test videos: what is tested is the state after the last epoch.

Shapes: N videos; K classes, which are the training set's labels in order.
"""
from __future__ import annotations

import argparse
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dataset.records import VideoRecord
from eval.classifier.model import VideoClassifier, level_channels, parameter_groups
from eval.classifier.state import fill_classifier, require_classifier, require_flags, require_identity
from eval.classifier.training import Trained, fit
from eval.compare import read_card
from eval.confusion import class_names, confusion_matrix, draw_confusion
from eval.features.extract import ClipSettings, expect_input, load_backbone, new_backbone, read_input
from eval.cli import read_clip_settings
from eval.holdout import draw_holdout
from eval.metrics import accuracies, named, per_class, predict, write_per_class, write_probabilities
from eval.result_card import CARD, Outcome, build_card, make_out_dir, markdown_table, write_card
from eval.splits import Split, find_splits, read_split
from utils.checkpoint import read_checkpoint
from utils.distributed import DistContext, run_on_all_ranks
from utils.errors import STOPPED, InputError
from utils.training_log import device_name, file_sha256

HOLDOUT_FLAGS = ("val_holdout", "group", "seed")


@dataclass(frozen=True)
class Task:
    """How a classifier is made and trained.

    The result card states `recipe`, flags (inner names), and `facts`, settings that no flag changes.
    """

    name: str
    levels: tuple[str, ...]
    freeze_backbone: bool
    build_head: Callable[[int, int], nn.Module]  # (channels, classes) -> head
    build_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    recipe: tuple[str, ...]
    facts: dict[str, Any]

    def build_model(self, backbone: nn.Module, num_classes: int) -> VideoClassifier:
        """The classifier: a head for each level on `backbone`."""
        heads = {level: self.build_head(level_channels(backbone, level), num_classes) for level in self.levels}
        return VideoClassifier(backbone, heads, self.freeze_backbone)


@dataclass(frozen=True)
class LabelledSplit:
    """The videos of a split, each with its class from 0 to K - 1 for a label, which `classes` [K] turns into the csv's.

    `names`: of each label of the csv. `train`: what is trained on; `held_out`: training videos that are
    not; `facts`: about them, for the card. `digests` stand for all training videos, held out or not: "videos" (see
    `digest_videos`), and "frame_counts".
    """

    split: Split
    classes: np.ndarray
    names: dict[int, str]
    train: list[VideoRecord]
    held_out: list[VideoRecord]
    test: list[VideoRecord]
    digests: dict[str, str]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Tested:
    """What a split gave: its outcome, the weights that training started from, and all settings, for the card."""

    outcome: Outcome
    weights: dict[str, Any]
    settings: dict[str, Any]


def supervise(context: DistContext, flags: argparse.Namespace, task: Task) -> int:
    """Everything from flags to the run directories, result.json and the printed table; returns the exit status."""
    begin, out = time.monotonic(), Path(flags.out)
    if flags.test_only:
        finished = run_on_all_ranks(lambda: read_finished(flags.test_only))
        # What is held out is what was held out in training.
        flags = argparse.Namespace(**{**vars(flags), **{name: finished["flags"][name] for name in HOLDOUT_FLAGS}})
    # All are read before the first is trained on.
    tested, splits = [], run_on_all_ranks(lambda: [read_labelled(split, flags) for split in find_splits(flags)])
    run_on_all_ranks(lambda: refuse_other_card(flags, task, out))
    for videos in splits:
        folder = out / f"split_{videos.split.name}" if videos.split.name else out
        run_on_all_ranks(lambda: make_out_dir(folder))
        result = run_split(context, flags, task, videos, folder)
        if isinstance(result, int):
            return result
        tested.append(result)
    if context.is_main:
        card = build_card(task.name, [result.outcome for result in tested], tested[0].settings, tested[0].weights,
                          context.device, time.monotonic() - begin)
        print(f"wrote {write_card(out, card)}\n")
        print(markdown_table(card, ("clips", "crops", "epochs", "seed")), flush=True)
    return 0


def refuse_other_card(flags: argparse.Namespace, task: Task, out: Path) -> None:
    """InputError where `--out` holds the result of another test than the one asked for, which would be replaced."""
    if not (out / CARD).exists():
        return
    if flags.test_only:
        raise InputError(f"--out {out}: holds a result already ({CARD}); name another for --test_only {flags.test_only}")
    card, clips = read_card(out), asdict(read_clip_settings(flags))
    then = {name: card["settings"].get(name) for name in clips}
    tested = [file_sha256(split.test_csv) for split in find_splits(flags)]
    before = [file["sha256"] for role, file in card["csv_files"].items() if role.startswith("test")]
    if (card["task"], then, before) != (task.name, clips, tested):
        raise InputError(f"--out {out}: holds the result of another test ({CARD}: {card['task']}, {then}); move it away, or "
                         "test a checkpoint of the run by --test_only and another --out")


def read_finished(path: str) -> dict[str, Any]:
    """The checkpoint at `path`; InputError unless it is the last one of a classifier's training."""
    checkpoint = read_checkpoint(path)
    require_classifier(checkpoint, path)
    done, epochs = checkpoint["epochs_done"], checkpoint["flags"]["epochs"]
    if done < epochs:
        raise InputError(f"--test_only {path}: is after epoch {done} of {epochs}; only the state after the last one is "
                         "tested")
    return checkpoint


def read_labelled(split: Split, flags: argparse.Namespace) -> LabelledSplit:
    """The videos of a split as the flags divide them."""
    records = read_split(split)
    classes = np.unique([video.label for video in records["train"]])
    names = class_names(flags.classes, split.train_csv, classes)
    digests = {"videos": digest_videos(records["train"], records["test"]),
               "frame_counts": sha256_lines(video.num_frames for video in records["train"])}
    train, test = ([replace(video, label=int(np.searchsorted(classes, video.label))) for video in records[role]]
                   for role in ("train", "test"))
    held, facts = np.zeros(len(train), bool), {}
    if flags.val_holdout is not None:
        holdout = draw_holdout(train, flags.group, flags.val_holdout, flags.seed, "--val_holdout")
        held, facts = holdout.held, {"holdout": holdout.facts}
    return LabelledSplit(
        split, classes, names, [video for video, out in zip(train, held) if not out],
        [video for video, out in zip(train, held) if out], test, digests, facts)


def digest_videos(train: Sequence[VideoRecord], test: Sequence[VideoRecord]) -> str:
    """SHA-256 of the training videos and their labels, wherever the whole data set lies.

    A video's path counts from the folder that training and test videos have in common: frames/train/run/run_001 is
    not frames/test/run/run_001.
    """
    common = os.path.commonpath([video.path for video in (*train, *test)])
    return sha256_lines(f"{os.path.relpath(video.path, common)}\t{video.label}" for video in train)


def sha256_lines(lines: Iterable[object]) -> str:
    """SHA-256 of a text of these lines."""
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def run_split(context: DistContext, flags: argparse.Namespace, task: Task, videos: LabelledSplit,
              folder: Path) -> Tested | int:
    """Train, unless only to be tested, and test; the exit status where training ended before its last epoch."""
    identity = {"task": task.name, "num_classes": len(videos.classes), "levels": list(task.levels),
                **videos.digests, "train_csv": videos.split.train_csv}
    if flags.test_only:
        path, checkpoint = Path(flags.test_only), run_on_all_ranks(lambda: read_finished(flags.test_only))
        require_identity(checkpoint, path, identity, ("task", "num_classes", "levels", "videos"))
        require_flags(checkpoint, path, task.recipe)
        backbone = new_backbone(checkpoint["net"], str(path))
        expect_input(backbone, read_input(checkpoint["weights"], str(path)))
        model = task.build_model(backbone, len(videos.classes))
        fill_classifier(model, checkpoint, path)
    else:
        model, (checkpoint, path, stopped) = train_split(context, flags, task, videos, identity, folder)
        epochs_done = checkpoint["epochs_done"] if checkpoint else 0
        if stopped or epochs_done < flags.epochs:
            say(context, f"{folder}: stopped after epoch {epochs_done} of {flags.epochs}, before the test; --resume "
                         "goes on")
            return STOPPED if stopped else 0
    outcome = test_split(context, flags, model, videos, folder)
    bad_videos = checkpoint["progress"]["bad_videos"]
    outcome.details.update({
        "num_classes": len(videos.classes), "num_train_videos": len(videos.train) - len(bad_videos), **videos.facts,
        "skipped_train_videos": list(bad_videos.values()),
        "skipped_held_out_videos": checkpoint["skipped_held_out"], "trained_on": checkpoint["trained_on"],
        "epochs_done": checkpoint["epochs_done"], "tested_checkpoint": str(path),
        "tested_checkpoint_sha256": file_sha256(path) if context.is_main else None})
    return Tested(outcome, checkpoint["weights"], card_settings(checkpoint, flags, task))


def train_split(context: DistContext, flags: argparse.Namespace, task: Task, videos: LabelledSplit,
                identity: dict[str, Any], folder: Path) -> tuple[VideoClassifier, Trained]:
    """The classifier after training, and where that left off."""
    backbone, weights = run_on_all_ranks(lambda: load_backbone(flags.weights, flags.net, flags.seed))
    torch.manual_seed(flags.seed)
    model = task.build_model(backbone, len(videos.classes)).to(context.device)
    if flags.channels_last:
        model.backbone.to(memory_format=torch.channels_last_3d)
    if context.device.type == "cuda" and context.world_size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    optimizer = task.build_optimizer(parameter_groups(model, flags.lr, getattr(flags, "backbone_lr", None)))
    centre, skipped_held_out = replace(read_clip_settings(flags), clips=1, crops=1), []

    def validate() -> dict[str, float]:
        probabilities, labels, skipped = classify(context, flags, model, videos.held_out, centre, "validation")
        skipped_held_out[:] = skipped.values()
        return {f"{metric}_{level}": value for level, rows in probabilities.items()
                for metric, value in accuracies(rows, labels).items()}

    return model, fit(model, optimizer, videos.train, {
        **identity, "net": weights["net"], "weights": weights, "trained_on": device_name(context.device),
        "skipped_held_out": skipped_held_out}, validate if videos.held_out else None, context, flags, folder)


def classify(context: DistContext, flags: argparse.Namespace, model: VideoClassifier, records: Sequence[VideoRecord],
             settings: ClipSettings, what: str) -> tuple[dict[str, np.ndarray], np.ndarray, dict[int, str]]:
    """(level -> probabilities [N, K], classes [N] of the videos that can be read, index -> reason of the others).

    The main process gets the probabilities, the others no level.
    """
    skipped: dict[int, str] = {}
    probabilities = predict(model, records, settings, context, batch=flags.batch, num_workers=flags.num_workers,
                            skipped=skipped if flags.skip_bad else None, label=what)
    kept = [index for index in range(len(records)) if index not in skipped]
    return ({level: rows[kept] for level, rows in probabilities.items()},
            np.array([records[index].label for index in kept]), skipped)


def test_split(context: DistContext, flags: argparse.Namespace, model: VideoClassifier, videos: LabelledSplit,
               folder: Path) -> Outcome:
    """Metrics of each level, in the main process; writes per_class_, confusion_ and probabilities_LEVEL files."""
    settings = read_clip_settings(flags)
    probabilities, labels, skipped = classify(context, flags, model, videos.test, settings, "test")
    metrics = {level: accuracies(rows, labels) for level, rows in probabilities.items()}
    tables = {level: [named(row, videos.classes, videos.names) for row in per_class(rows, labels)]
              for level, rows in probabilities.items()}
    tested = [video for index, video in enumerate(videos.test) if index not in skipped]
    if context.is_main:
        for level, rows in probabilities.items():
            write_probabilities(folder / f"probabilities_{level}.npz", tested, rows)
            write_per_class(folder / f"per_class_{level}.csv", tables[level])
            draw_confusion(folder / f"confusion_{level}.png",
                           confusion_matrix(labels, rows.argmax(axis=1), len(videos.classes)),
                           [videos.names[label] for label in videos.classes],
                           f"{level}: top-1 {100 * metrics[level]['top1']:.1f} %")
    return Outcome(videos.split, metrics, {
        "num_test_videos": len(tested), "skipped_test_videos": list(skipped.values()),
        "num_test_videos_shorter_than_clip": settings.count_short(tested), "per_class": tables})


def card_settings(checkpoint: dict[str, Any], flags: argparse.Namespace, task: Task) -> dict[str, Any]:
    """Every choice that the numbers depend on: of the test from the flags, of training from the checkpoint."""
    then = checkpoint["flags"]
    return {**asdict(read_clip_settings(flags)), "skip_bad": flags.skip_bad,
            **{name: then[name] for name in task.recipe}, "epochs": checkpoint["epochs_done"], **task.facts,
            "training_clip": f"{then['clip_frames']} frames, stride {then['stride']}, {then['img_dim']} px",
            "processes_in_training": len(checkpoint["random"])}


def say(context: DistContext, line: str) -> None:
    """A line on the terminal, once for all processes."""
    if context.is_main:
        print(line, flush=True)
