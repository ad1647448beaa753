"""The checkpoints of a classifier's training: what they hold, and which of them a run may go on from or test."""
from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from eval.classifier.model import VideoClassifier
from models.convert import check_keys
from utils.checkpoint import FORMAT, FREE_FLAGS, canonical, random_state, set_random_state
from utils.checkpoint_form import is_count, is_progress
from utils.distributed import DistContext, gather_objects
from utils.errors import AgreedError
from utils.progress import Progress

KIND = "classifier"
# What a checkpoint holds beside its format and kind.
ENTRIES = {"task": str, "net": str, "levels": list, "num_classes": int, "videos": str, "frame_counts": str,
           "train_csv": str, "weights": dict, "trained_on": str, "skipped_held_out": list, "model": dict,
           "optimizer": dict, "epochs_done": int, "progress": dict, "flags": dict, "random": list}
# Flags that do not touch the weights that training ends with, or whose content is compared instead of their text.
FREE_IN_TRAINING = FREE_FLAGS | {"epochs", "clips", "crops", "batch", "test_only", "train_csv", "test_csv", "splits",
                                 "weights", "net", "classes", "skip_bad"}
SPELLING = {"batch_per_gpu": "--train_batch", "clip_frames": "--seq", "stride": "--ds", "weight_decay": "--wd",
            "lr_decay_epochs": "--lr_decay", "trained_part": "--train"}


def classifier_state(model: VideoClassifier, optimizer: torch.optim.Optimizer, progress: Progress,
                     identity: Mapping[str, Any], flags: argparse.Namespace, context: DistContext) -> dict[str, Any]:
    """All that a run needs to go on as if it had not stopped. Every process must call this.

    On a CPU it goes on bit for bit in one process or two. More add up their gradients in another order after a start
    (DDP arranges its buckets anew in the first step), and GPUs add up in any order: the last bits differ there.

    `identity`: "task", "net", "levels", "num_classes", "videos" and "frame_counts" (digests of the training list),
    "train_csv", "weights", what `load_backbone` tells of the weights that training starts from, "trained_on", the
    device, and "skipped_held_out", why each of the held-out videos that cannot be read is one.
    """
    return {"format": FORMAT, "kind": KIND, **identity, "model": model.state_dict(),
            "optimizer": optimizer.state_dict(), "epochs_done": progress.epoch, "progress": progress.state_dict(),
            "flags": vars(flags), "random": gather_objects(random_state(context.device))}


def restore(path: Path, checkpoint: dict[str, Any], model: VideoClassifier, optimizer: torch.optim.Optimizer,
            identity: Mapping[str, Any], flags: argparse.Namespace, context: DistContext) -> Progress:
    """Set everything to the checkpoint's state; returns how far it is. InputError for a changed setting."""
    require_classifier(checkpoint, path)
    require_identity(checkpoint, path, identity,
                     ("task", "net", "num_classes", "levels", "videos", "frame_counts", "weights"))
    then, now = checkpoint["flags"], vars(flags)
    for name in sorted(now.keys() - FREE_IN_TRAINING):
        if then.get(name) != now[name]:
            raise AgreedError(f"{SPELLING.get(name, f'--{name}')} {now[name]}: {path} was trained with "
                              f"{then.get(name)}; a run goes on with the settings that it began with")
    if checkpoint["epochs_done"] > flags.epochs:
        raise AgreedError(f"--epochs {flags.epochs}: {path} has had {checkpoint['epochs_done']} already")
    if len(checkpoint["random"]) != context.world_size:
        raise AgreedError(f"{path}: was trained by {len(checkpoint['random'])} process(es), here are "
                          f"{context.world_size}: its batches and random states would not go on")
    fill_classifier(model, checkpoint, path)
    own = [set(group) for group in optimizer.state_dict()["param_groups"]]
    try:
        optimizer.load_state_dict(checkpoint["optimizer"])
        if any(not names <= set(group) for names, group in zip(own, optimizer.param_groups)):
            raise ValueError("a group of parameters lacks a setting")
        if any(value.shape not in (weight.shape, ()) for weight, state in optimizer.state.items() for value in state.values()
               if value is not None):
            raise ValueError("a value of the optimizer is of another shape than its weight")
        set_random_state(checkpoint["random"][context.rank], context.device)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:  # damaged, or a stranger's
        raise AgreedError(f"{path}: its optimizer or random state does not fit this run: "
                          f"{str(error).splitlines()[0] if str(error) else type(error).__name__}") from error
    return Progress(**checkpoint["progress"])


def fill_classifier(model: VideoClassifier, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Set all weights of `model` to the checkpoint's; AgreedError that names those that are missing or of another shape."""
    try:
        check_keys(checkpoint["model"], model)
        model.load_state_dict(checkpoint["model"])
    except (ValueError, RuntimeError) as error:
        raise AgreedError(f"{path}: does not fill the classifier: {str(error).splitlines()[0]}") from error


def require_classifier(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """AgreedError unless the checkpoint at `path` is one of a classifier's training, whole in all that is read of it."""
    if checkpoint.get("format") != FORMAT or checkpoint.get("kind") != KIND:
        raise AgreedError(f"{path}: no checkpoint of eval.finetune or eval.linear_probe --end_to_end (format "
                          f"{checkpoint.get('format')!r}, kind {checkpoint.get('kind')!r})")
    missing = sorted(ENTRIES.keys() - checkpoint.keys())
    if missing:
        raise AgreedError(f"{path}: no whole checkpoint of a classifier's training: it lacks {', '.join(missing)}")
    wrong = [name for name, kind in ENTRIES.items() if not isinstance(checkpoint[name], kind)]
    wrong += [name for name, good in (
        ("model", is_state), ("progress", is_progress),
        ("epochs_done", is_count), ("flags", lambda flags: is_count(flags.get("epochs"))),
        ("weights", lambda weights: {"weights", "net", "checkpoint_sha256"} <= weights.keys()))
        if name not in wrong and not good(checkpoint[name])]
    if wrong:
        raise AgreedError(f"{path}: damaged, or not of this project: its {wrong[0]} is not what a run writes")
    require_flags(checkpoint, path, ("val_holdout", "group", "seed", "clip_frames", "stride", "img_dim"))


def require_flags(checkpoint: Mapping[str, Any], path: str | Path, names: Sequence[str]) -> None:
    """AgreedError where the checkpoint does not tell all flags of these inner names."""
    missing = [name for name in names if name not in checkpoint["flags"]]
    if missing:
        raise AgreedError(f"{path}: damaged, or not of this project: its flags lack {', '.join(missing)}")


def is_state(value: dict[Any, Any]) -> bool:
    """Whether these are tensors by name."""
    return all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items())


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
                "frame_counts": f"{identity['train_csv']}: gives videos other numbers of frames than {path} was trained "
                                f"with ({checkpoint['train_csv']}): were their frames taken again?",
            }.get(name, f"{path}: its {name} is {then}, asked for is {now}")
        if not same:
            raise AgreedError(difference)
