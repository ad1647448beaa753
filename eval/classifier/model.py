"""A backbone with linear classifiers on its pooled features: for finetuning and for the end-to-end linear probe.

Shapes: M clips; C channels of a level; K classes.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.levels import LEVELS
from models.numerics import at_least_float32

CONCAT = "concat"


class DropoutHead(nn.Sequential):
    """Dropout, then a linear layer (CoCLR's finetuning, Han et al. 2020): [M, C] -> logits [M, K]."""

    def __init__(self, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__(nn.Dropout(dropout), nn.Linear(channels, num_classes))


class ProbeHead(nn.Module):
    """L2 normalization, batch norm, then a linear layer (CoCLR's linear probe): [M, C] -> logits [M, K]."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.linear(self.norm(F.normalize(pooled, dim=1)))


class VideoClassifier(nn.Module):
    """One backbone and a head for each level asked for.

    A frozen backbone gets no gradient and stays in eval mode whatever `train` says, so that neither its parameters
    nor its batch norm statistics change; heads on it learn independently of each other.
    """

    def __init__(self, backbone: nn.Module, heads: Mapping[str, nn.Module], freeze_backbone: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)
        self.freeze_backbone = freeze_backbone
        if freeze_backbone:
            backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> VideoClassifier:
        """Itself, in training mode but for a frozen backbone."""
        super().train(mode)
        if self.freeze_backbone:
            self.backbone.eval()
        return self

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        """Level -> logits [M, K] from clips [M, 3, T, H, W]."""
        pooled = pool_maps(self.backbone(clips))
        return {level: head(pooled[level]) for level, head in self.heads.items()}


def pool_maps(maps: Any) -> dict[str, Tensor]:
    """Level -> [M, C], the mean over time and space of each map, in float32 at least; "concat": see below.

    `concat` is low, mid and high side by side, each L2-normalized on its own, so that the three have equal say.
    """
    pooled = {level: at_least_float32(x).mean(dim=(2, 3, 4)) for level, x in zip(LEVELS, maps)}
    return {**pooled, CONCAT: torch.cat([F.normalize(pooled[level], dim=1) for level in LEVELS], dim=1)}


def level_channels(backbone: nn.Module, level: str) -> int:
    """C of a level, or of the three side by side."""
    return sum(backbone.channels.values()) if level == CONCAT else backbone.channels[level]


def parameter_groups(model: VideoClassifier, head_lr: float, backbone_lr: float | None) -> list[dict[str, Any]]:
    """An optimizer's groups: the backbone's parameters unless frozen, and the heads', each at a rate of its own.

    "base_lr" keeps a group's rate before any decay, "name" is what the log calls it. `backbone_lr` is not
    used where the backbone is frozen.
    """
    groups = [("heads", model.heads, head_lr)]
    if not model.freeze_backbone:
        groups.insert(0, ("backbone", model.backbone, backbone_lr))
    return [{"params": list(module.parameters()), "lr": lr, "base_lr": lr, "name": name}
            for name, module, lr in groups]


def decay_lr(optimizer: torch.optim.Optimizer, epoch: int, decay_epochs: tuple[int, ...]) -> None:
    """Set each group's rate for `epoch` (from 0): a tenth of what it was from each of `decay_epochs` on."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * 0.1 ** sum(epoch >= decay_epoch for decay_epoch in decay_epochs)
