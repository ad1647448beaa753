"""The temporal-order head: its start, its accuracy, its checkpoints.

Shapes: C channels; 2P rows, natural and reversed clip of each of P pairs in turn.
"""
from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eval.features.extract import RANDOM
from utils.checkpoint import FORMAT, list_checkpoints, read_checkpoint
from utils.errors import InputError
from visualization.temporal_order.flags import CLIP_DEFAULTS, CLIP_FLAGS, TRAINING_FLAGS, complete_flags
from visualization.temporal_order.clips import order_targets

HEAD_KIND = "order_head"
NEEDED = {"backbone", "trained_with", "training", "train_csv", "train_videos", "epochs_done", "weight"}


def new_head(channels: int) -> nn.Linear:
    """A linear layer C -> 2 without bias, all zero.

    The problem is convex, so another start would add nothing but its own noise to the maps. From zero, the
    two rows stay each other's negative, but for rounding.
    """
    head = nn.Linear(channels, 2, bias=False)
    nn.init.zeros_(head.weight)
    return head


def order_accuracy(head: nn.Linear, features: Tensor) -> dict[str, float]:
    """{"accuracy", "pair_accuracy"}, from 0 to 1, of features [2P, C].

    accuracy: share of the clips put into their class. pair_accuracy: share of the pairs whose natural clip
    has more evidence for natural order (logit 0 minus logit 1) than its reversal; a tie counts half.
    """
    with torch.no_grad():
        logits = head(features)
    right = logits.argmax(dim=1) == order_targets(len(logits), logits.device)
    natural, reverse = (logits[:, 0] - logits[:, 1]).unflatten(0, (-1, 2)).unbind(1)
    won = (natural > reverse).double() + 0.5 * (natural == reverse).double()
    return {"accuracy": float(right.double().mean()), "pair_accuracy": float(won.mean())}


def train_one_epoch(
    head: nn.Linear, optimizer: torch.optim.Optimizer, rows: Iterable[Tensor]
) -> tuple[float, float]:
    """(mean loss, accuracy) over the epoch, each row as its step found it; `rows` yields [2B, C]."""
    loss_sum, num_right, num_rows = 0.0, 0, 0
    for features in rows:
        targets = order_targets(len(features), features.device)
        logits = head(features)
        loss = F.cross_entropy(logits, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(features)
        num_right += int((logits.argmax(dim=1) == targets).sum())
        num_rows += len(features)
    return loss_sum / num_rows, num_right / num_rows


def head_state(head: nn.Linear, optimizer: torch.optim.Optimizer, epochs_done: int, weights: dict[str, Any],
               train_videos: str, flags: argparse.Namespace) -> dict[str, Any]:
    """The head's checkpoint: all that its training needs to go on, and what backbone, clips and videos it is for.

    `train_videos`: digest of the training list.
    """
    return {"format": FORMAT, "kind": HEAD_KIND, "backbone": backbone_mark(weights, flags.seed),
            "trained_with": {name: getattr(flags, name) for name in CLIP_DEFAULTS},
            "training": {name: getattr(flags, name) for name in TRAINING_FLAGS},
            "train_csv": os.path.abspath(flags.train_csv), "train_videos": train_videos, "epochs_done": epochs_done,
            "weight": head.weight.detach(), "optimizer": optimizer.state_dict()}


def backbone_mark(weights: dict[str, Any], seed: int) -> dict[str, Any]:
    """What tells one backbone from another; `weights` as `load_backbone` gives it."""
    return {"net": weights["net"], "checkpoint_sha256": weights["checkpoint_sha256"],
            "random_seed": seed if weights["weights"] == RANDOM else None}


def check_head(state: dict[str, Any], path: Path, weights: dict[str, Any], seed: int) -> None:
    """InputError unless `state`, read from `path`, is the checkpoint of a head for this very backbone."""
    if state.get("format") != FORMAT or state.get("kind") != HEAD_KIND:
        raise InputError(f"{path}: no checkpoint of an order head (kind {state.get('kind')!r})")
    lacking = sorted(NEEDED - state.keys())
    if lacking:
        raise InputError(f"{path}: no whole checkpoint of an order head: it lacks {', '.join(lacking)}; train it again")
    for name, value in backbone_mark(weights, seed).items():
        if state["backbone"][name] != value:
            raise InputError(f"{path}: a head for a backbone of {name} {state['backbone'][name]}; --weights "
                             f"{weights['weights']} is one of {name} {value}")


def check_resumed(state: dict[str, Any], path: Path, flags: argparse.Namespace) -> None:
    """InputError unless training by `flags`, which are completed, goes on as that of `state` began."""
    for name, flag in (CLIP_FLAGS | TRAINING_FLAGS).items():
        then = {**state["trained_with"], **state["training"]}[name]
        if getattr(flags, name) != then:
            raise InputError(f"{flag} {getattr(flags, name)}: {path} was trained with {then}; a run goes on with the "
                             "settings that it began with")
    if state["epochs_done"] > flags.epochs:
        raise InputError(f"--epoch {flags.epochs}: {path} has had {state['epochs_done']} already")


def check_train_videos(state: dict[str, Any], path: str | Path, digest: str, train_csv: str) -> None:
    """InputError unless `digest` is that of the list that the head was trained on."""
    if state["train_videos"] != digest:
        raise InputError(f"--train_csv {train_csv}: lists other videos than {path} was trained on "
                         f"({state['train_csv']})")


def load_head(state: dict[str, Any], device: torch.device) -> nn.Linear:
    """The head of a checkpoint, on `device`."""
    head = new_head(state["weight"].shape[1])
    head.load_state_dict({"weight": state["weight"]})
    return head.to(device)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], path: Path) -> None:
    """Set `optimizer` to where the checkpoint `state`, read from `path`, left it; InputError where it holds no such."""
    try:
        optimizer.load_state_dict(state["optimizer"])
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: does not hold the optimizer of its training; it can be tested, not gone on with"
                         ) from error


def find_head(
    weights: dict[str, Any], flags: argparse.Namespace, device: torch.device
) -> tuple[nn.Linear, dict[str, Any]]:
    """The head of `--head`, else the newest in `--out`, and its checkpoint; says which it is.

    Flags that were left out become what the head was trained with, and `flags.head` its path.
    """
    found = list_checkpoints(Path(flags.out) / "checkpoints")
    if not (flags.head or found):
        raise InputError(f"--out {flags.out}: no trained head there; train one first, or name one by --head")
    path = Path(flags.head) if flags.head else found[-1][1]
    state = read_checkpoint(path)
    check_head(state, path, weights, flags.seed)
    if flags.level not in (None, state["trained_with"]["level"]):
        raise InputError(f"--level {flags.level}: {path} is for level {state['trained_with']['level']}")
    notes = complete_flags(flags, state["trained_with"])
    flags.head = str(path)
    flags.train_csv = flags.train_csv or state["train_csv"]
    print("\n".join([f"head: {path}, {state['epochs_done']} epochs", *notes]), flush=True)
    return load_head(state, device), state
