"""The temporal-order head: its initial weights, one epoch of training, its accuracy, its checkpoints.

Shapes: C channels; 2P rows, natural and reversed clip of each of P pairs in turn.
"""
from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eval.features.backbone import RANDOM
from utils.checkpoint import FORMAT
from utils.errors import InputError
from visualization.temporal_order.clips import order_targets
from visualization.temporal_order.settings import CLIP_DEFAULTS, FLAGS, TRAINING_SETTINGS, OrderSettings

HEAD_KIND = "order_head"
NEEDED = {"backbone", "trained_with", "training", "train_csv", "train_videos", "epochs_done", "weight"}


def new_head(channels: int) -> nn.Linear:
    """Returns a linear layer C -> 2 without bias, all zero.

    The problem is convex: random initial weights would only add noise to the maps. From zero, the two rows stay each
    other's negative but for rounding.
    """
    head = nn.Linear(channels, 2, bias=False)
    nn.init.zeros_(head.weight)
    return head


def order_accuracy(head: nn.Linear, features: Tensor) -> dict[str, float]:
    """Returns {"accuracy", "pair_accuracy"}, 0 to 1, on features [2P, C].

    accuracy: share of the clips that are classified correctly. pair_accuracy: share of the pairs whose natural clip has
    more evidence for natural order (logit 0 minus logit 1) than its reversal; a tie counts half.
    """
    with torch.no_grad():
        logits = head(features)
    correct = logits.argmax(dim=1) == order_targets(len(logits), logits.device)
    natural, reverse = (logits[:, 0] - logits[:, 1]).unflatten(0, (-1, 2)).unbind(1)
    won = (natural > reverse).double() + 0.5 * (natural == reverse).double()
    return {"accuracy": float(correct.double().mean()), "pair_accuracy": float(won.mean())}


def train_head_epoch(head: nn.Linear, optimizer: torch.optim.Optimizer, rows: Iterable[Tensor]) -> tuple[float, float]:
    """Returns (mean loss, accuracy) over the epoch's batches [2B, C] of `rows`, each before its step."""
    loss_sum, num_correct, num_rows = 0.0, 0, 0
    for features in rows:
        targets = order_targets(len(features), features.device)
        logits = head(features)
        loss = F.cross_entropy(logits, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(features)
        num_correct += int((logits.argmax(dim=1) == targets).sum())
        num_rows += len(features)
    return loss_sum / num_rows, num_correct / num_rows


def head_state(head: nn.Linear, optimizer: torch.optim.Optimizer, epochs_done: int, weights: dict[str, Any],
               train_digest: str, settings: OrderSettings) -> dict[str, Any]:
    """Returns the head's checkpoint: its training state, and the backbone, clips and videos that it belongs to."""
    return {"format": FORMAT, "kind": HEAD_KIND, "backbone": backbone_identity(weights, settings.seed),
            "trained_with": {name: getattr(settings, name) for name in CLIP_DEFAULTS},
            "training": {name: getattr(settings, name) for name in TRAINING_SETTINGS},
            "train_csv": os.path.abspath(settings.train_csv), "train_videos": train_digest, "epochs_done": epochs_done,
            "weight": head.weight.detach(), "optimizer": optimizer.state_dict()}


def backbone_identity(weights: dict[str, Any], seed: int) -> dict[str, Any]:
    """Returns what distinguishes a backbone from others; `weights` as `load_backbone` returns it."""
    return {"net": weights["net"], "checkpoint_sha256": weights["checkpoint_sha256"],
            "random_seed": seed if weights["weights"] == RANDOM else None}


def load_head(state: dict[str, Any], device: torch.device) -> nn.Linear:
    """Returns the head of a checkpoint, on `device`."""
    head = new_head(state["weight"].shape[1])
    head.load_state_dict({"weight": state["weight"]})
    return head.to(device)


def check_head(state: dict[str, Any], path: Path, weights: dict[str, Any], settings: OrderSettings) -> OrderSettings:
    """Returns `settings` completed by those of the head's checkpoint `state`, read from `path`.

    InputError unless it is a head of this very backbone and level.
    """
    if state.get("format") != FORMAT or state.get("kind") != HEAD_KIND:
        raise InputError(f"{path}: not a checkpoint of an order head (kind {state.get('kind')!r})")
    if missing := sorted(NEEDED - state.keys()):
        raise InputError(f"{path}: not a complete checkpoint of an order head: it lacks {', '.join(missing)}; train again")
    for name, value in backbone_identity(weights, settings.seed).items():
        if state["backbone"][name] != value:
            raise InputError(f"{path}: a head of a backbone of {name} {state['backbone'][name]}; --weights "
                             f"{weights['weights']} is one of {name} {value}")
    level = state["trained_with"]["level"]
    if settings.level not in (None, level):
        raise InputError(f"--level {settings.level}: {path} is for level {level}")
    return settings.completed(state["trained_with"])


def check_resumed(state: dict[str, Any], path: Path, settings: OrderSettings) -> None:
    """Raises InputError unless training by the completed `settings` can resume from `state`, read from `path`."""
    for name, before in {**state["trained_with"], **state["training"]}.items():
        if getattr(settings, name) != before:
            raise InputError(f"{FLAGS[name]} {getattr(settings, name)}: {path} was trained with {before}; a run resumes "
                             "with the settings that it began with")
    if state["epochs_done"] > settings.epochs:
        raise InputError(f"--epoch {settings.epochs}: {path} has had {state['epochs_done']} already")


def check_train_videos(state: dict[str, Any], path: Path, digest: str, train_csv: str) -> None:
    """Raises InputError unless `digest` is that of the list that the head was trained on."""
    if state["train_videos"] != digest:
        raise InputError(f"--train_csv {train_csv}: lists other videos than {path} was trained on ({state['train_csv']})")
