"""The checkpoints of a classifier's training: what they hold, and which of them a run may go on from or test."""
from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from eval.classifier import VideoClassifier
from utils.checkpoint import FORMAT, FREE_FLAGS, canonical, random_state, set_random_state
from utils.distributed import Process, gather_objects
from utils.errors import AgreedError
from utils.progress import Progress

KIND = "classifier"
# Flags that do not touch the weights that training ends with, or whose content is compared instead of their text.
FREE_IN_TRAINING = FREE_FLAGS | {"epochs", "clips", "crops", "batch", "test_only", "train_csv", "test_csv", "splits",
                                 "weights", "net", "classes", "skip_bad"}
SPELLING = {"batch_per_gpu": "--train_batch", "clip_frames": "--seq", "stride": "--ds", "weight_decay": "--wd",
            "lr_decay_epochs": "--lr_decay", "trained_part": "--train"}


def classifier_state(model: VideoClassifier, optimizer: torch.optim.Optimizer, progress: Progress,
                     identity: Mapping[str, Any], flags: argparse.Namespace, process: Process) -> dict[str, Any]:
    """All that a run needs to go on as if it had not stopped. Every process must call this.

    `identity`: "task", "net", "levels", "num_classes", "videos" (digest of the training list), "train_csv", and
    "weights", what `load_backbone` tells of the weights that training starts from.
    """
    return {"format": FORMAT, "kind": KIND, **identity, "model": model.state_dict(),
            "optimizer": optimizer.state_dict(), "epochs_done": progress.epoch, "progress": progress.state_dict(),
            "flags": vars(flags), "random": gather_objects(random_state(process.device))}


def restore(path: Path, checkpoint: dict[str, Any], model: VideoClassifier, optimizer: torch.optim.Optimizer,
            identity: Mapping[str, Any], flags: argparse.Namespace, process: Process) -> Progress:
    """Set everything to the checkpoint's state; returns how far it is. InputError for a changed setting."""
    require_classifier(checkpoint, path)
    require_identity(checkpoint, path, identity, ("task", "net", "num_classes", "levels", "videos", "weights"))
    then, now = checkpoint["flags"], vars(flags)
    for name in sorted(now.keys() - FREE_IN_TRAINING):
        if then.get(name) != now[name]:
            raise AgreedError(f"{SPELLING.get(name, f'--{name}')} {now[name]}: {path} was trained with "
                              f"{then.get(name)}; a run goes on with the settings that it began with")
    if checkpoint["epochs_done"] > flags.epochs:
        raise AgreedError(f"--epochs {flags.epochs}: {path} has had {checkpoint['epochs_done']} already")
    if len(checkpoint["random"]) != process.world_size:
        raise AgreedError(f"{path}: was trained by {len(checkpoint['random'])} process(es), here are "
                          f"{process.world_size}: its batches and random states would not go on")
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    set_random_state(checkpoint["random"][process.rank], process.device)
    return Progress(**checkpoint["progress"])


def require_classifier(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """AgreedError unless the checkpoint at `path` is one of a classifier's training."""
    wanted = {"task", "net", "levels", "num_classes", "videos", "train_csv", "weights", "model", "optimizer",
              "epochs_done", "progress", "flags", "random"}
    if checkpoint.get("format") != FORMAT or checkpoint.get("kind") != KIND or not wanted <= checkpoint.keys():
        raise AgreedError(f"{path}: no checkpoint of eval.finetune or eval.linear_probe --end_to_end (format "
                         f"{checkpoint.get('format')!r}, kind {checkpoint.get('kind')!r})")


def require_identity(checkpoint: Mapping[str, Any], path: str | Path, identity: Mapping[str, Any],
                     names: Sequence[str]) -> None:
    """AgreedError, on the first of `names` that differs, unless the checkpoint's weights are those of `identity`."""
    for name in names:
        then, now = canonical(checkpoint[name]), canonical(identity[name])
        if name == "weights":
            same = then["checkpoint_sha256"] == now["checkpoint_sha256"]
            difference = f"--weights {now['weights']}: {path} started from other weights ({then['weights']})"
        else:
            same = then == now
            difference = {
                "num_classes": f"{identity['train_csv']}: has {now} classes, {path} was trained for {then}: is it "
                               "another data set?",
                "videos": f"{identity['train_csv']}: lists other videos or labels than {path} was trained on "
                          f"({checkpoint['train_csv']}): another data set or split?",
            }.get(name, f"{path}: its {name} is {then}, asked for is {now}")
        if not same:
            raise AgreedError(difference)
