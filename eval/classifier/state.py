"""Checkpoints of a classifier's training: what they hold, and which of them can be resumed or tested."""
from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from eval.classifier.flags import TRAINING_FLAGS
from eval.classifier.model import VideoClassifier, decay_lr
from models.convert import check_keys
from utils.checkpoint import (FORMAT, FREE_FLAGS, Progress, canonical, random_state, read_checkpoint, reading_entries,
                              refuse_old_conversion, set_random_state)
from utils.distributed import DistContext, gather_objects
from utils.errors import InputError

KIND = "classifier"
HOLDOUT_FLAGS = ("val_holdout", "group", "seed")
# Flags that do not affect the trained weights, or whose content is compared instead of their text.
FREE_IN_TRAINING = FREE_FLAGS | {"epochs", "clips", "crops", "clip_order", "batch", "test_only", "train_csv", "test_csv",
                                 "splits", "shots", "shots_seeds", "weights", "net", "classes", "skip_bad"}
SPELLING = {"clip_frames": "--seq", "stride": "--ds", **TRAINING_FLAGS}
# What a run must have in common with the checkpoint that it tests, or resumes from, and the error where it has not.
SAME_TO_TEST = {
    "task": "{path}: its task is {then}, not {now}",
    "num_classes": "{csv}: has {now} classes, {path} was trained for {then}: is it another data set?",
    "levels": "{path}: its levels are {then}, not {now}",
    "videos": "{csv}: lists other videos or labels than {path} was trained on ({then_csv}): another data set, split "
              "or --shots?"}
SAME_TO_RESUME = SAME_TO_TEST | {
    "net": "{path}: its net is {then}, not {now}",
    "frame_counts": "{csv}: has other numbers of frames than {path} was trained with ({then_csv}): were the frames "
                    "extracted again?",
    "weights": "--weights: {path} started from other weights ({then[weights]}, not {now[weights]})"}


def classifier_state(model: VideoClassifier, optimizer: torch.optim.Optimizer, progress: Progress,
                     identity: Mapping[str, Any], flags: argparse.Namespace, context: DistContext) -> dict[str, Any]:
    """Returns the checkpoint of a run. Every process must call this.

    Resuming from it on a CPU is exact bit for bit with one process or two. More processes sum gradients in another order
    after a restart (DDP rebuilds its buckets in the first step), and GPUs in any order: the last bits differ there.
    `identity`: `ClassifierTask.identity`, "net", "weights" (what training started from, see `load_backbone`), "trained_on"
    (the device), and "skipped_held_out" (the reason for each unreadable held-out video).
    """
    return {"format": FORMAT, "kind": KIND, **identity, "model": model.state_dict(),
            "optimizer": optimizer.state_dict(), "epochs_done": progress.epoch, "progress": asdict(progress),
            "flags": vars(flags), "random": gather_objects(random_state(context.device))}


def read_finished(flags: argparse.Namespace) -> tuple[dict[str, Any], argparse.Namespace]:
    """Returns the checkpoint of `--test_only` and `flags` with its hold-out; InputError where its run is not finished."""
    path, checkpoint = flags.test_only, read_checkpoint(flags.test_only)
    with reading_entries(path, KIND, checkpoint):
        refuse_old_conversion(checkpoint, path)
        done, then = checkpoint["epochs_done"], checkpoint["flags"]
        if done < then["epochs"]:
            raise InputError(f"--test_only {path}: is after epoch {done} of {then['epochs']}; only the state after the last "
                             "one is tested")
        return checkpoint, argparse.Namespace(**{**vars(flags), **{name: then[name] for name in HOLDOUT_FLAGS}})


def restore_classifier(checkpoint: dict[str, Any], path: Path, model: VideoClassifier, optimizer: torch.optim.Optimizer,
                       identity: Mapping[str, Any], flags: argparse.Namespace, context: DistContext) -> Progress:
    """Sets everything to the checkpoint's state and returns its progress; InputError for a changed setting."""
    with reading_entries(path, KIND, checkpoint):
        check_identity(checkpoint, path, identity, SAME_TO_RESUME)
        then, now = checkpoint["flags"], vars(flags)
        for name in sorted(now.keys() - FREE_IN_TRAINING):
            if then.get(name) != now[name]:
                raise InputError(f"{SPELLING.get(name, f'--{name}')} {now[name]}: {path} was trained with "
                                  f"{then.get(name)}; a run is resumed with its own settings")
        if checkpoint["epochs_done"] > flags.epochs:
            raise InputError(f"--epochs {flags.epochs}: {path} has had {checkpoint['epochs_done']} already")
        if len(checkpoint["random"]) != context.world_size:
            raise InputError(f"{path}: was trained by {len(checkpoint['random'])} process(es), not {context.world_size}: "
                              "its batches and random states cannot be continued")
        check_keys(checkpoint["model"], model)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        decay_lr(optimizer, checkpoint["epochs_done"], flags.lr_decay_epochs)
        progress = Progress(**checkpoint["progress"])
        set_random_state(checkpoint["random"][context.rank], context.device)
    return progress


def check_identity(checkpoint: Mapping[str, Any], path: str | Path, identity: Mapping[str, Any],
                   messages: Mapping[str, str]) -> None:
    """Raises InputError for the first entry, of those in `messages`, that differs from `identity`."""
    for name, message in messages.items():
        then, now = canonical(checkpoint[name]), canonical(identity[name])
        if then != now if name != "weights" else then["checkpoint_sha256"] != now["checkpoint_sha256"]:
            raise InputError(message.format(path=path, then=then, now=now, csv=identity["train_csv"],
                                             then_csv=checkpoint["train_csv"]))
