"""A backbone with linear classifiers on its pooled features, for finetuning and for the end-to-end linear probe.

Shapes: M clips; C channels of a level; K classes.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dataset.transforms import IMAGENET
from eval.features.extract import CONCAT
from models.levels import LEVELS
from models.numerics import at_least_float32


class DropoutHead(nn.Sequential):
    """Dropout, then a linear layer (finetuning of CoCLR, Han et al. 2020): [M, C] -> logits [M, K]."""

    def __init__(self, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__(nn.Dropout(dropout), nn.Linear(channels, num_classes))


class ProbeHead(nn.Module):
    """L2 normalization, batch norm, then a linear layer (linear probe of CoCLR): [M, C] -> logits [M, K]."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.linear(self.norm(F.normalize(pooled, dim=1)))


class VideoClassifier(nn.Module):
    """One backbone and one head per level; `scale`: mean and std for `scale_clips` (not in the state).

    A frozen backbone gets no gradient and stays in eval mode, so that its batch norm statistics do not change either.
    """

    def __init__(self, backbone: nn.Module, heads: Mapping[str, nn.Module], freeze_backbone: bool,
                 scale: Mapping[str, Sequence[float]] = IMAGENET) -> None:
        super().__init__()
        self.backbone, self.heads = backbone, nn.ModuleDict(heads)
        self.freeze_backbone, self.scale = freeze_backbone, scale
        if freeze_backbone:
            backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> VideoClassifier:
        """Returns self, in training mode except for a frozen backbone."""
        super().train(mode)
        if self.freeze_backbone:
            self.backbone.eval()
        return self

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        """Returns level -> logits [M, K] of clips [M, 3, T, H, W]."""
        pooled = pool_maps(self.backbone(clips))
        return {level: head(pooled[level]) for level, head in self.heads.items()}


def pool_maps(maps: Any) -> dict[str, Tensor]:
    """Returns level -> [M, C], the mean over time and space of each feature map, in at least float32.

    `concat` is low, mid and high side by side, each L2-normalized on its own, so that the three are equally weighted.
    """
    pooled = {level: at_least_float32(x).mean(dim=(2, 3, 4)) for level, x in zip(LEVELS, maps)}
    return {**pooled, CONCAT: torch.cat([F.normalize(pooled[level], dim=1) for level in LEVELS], dim=1)}


def level_channels(backbone: nn.Module, level: str) -> int:
    """Returns C of a level, or of the three concatenated."""
    return sum(backbone.channels.values()) if level == CONCAT else backbone.channels[level]


def parameter_groups(model: VideoClassifier, head_lr: float, backbone_lr: float | None) -> list[dict[str, Any]]:
    """Returns the parameter groups of an optimizer: the backbone unless it is frozen, and the heads.

    "base_lr" is the learning rate before any decay, "name" the group's name in the log.
    """
    groups = [] if model.freeze_backbone else [("backbone", model.backbone, backbone_lr)]
    return [{"params": list(module.parameters()), "lr": lr, "base_lr": lr, "name": name}
            for name, module, lr in [*groups, ("heads", model.heads, head_lr)]]


def decay_lr(optimizer: torch.optim.Optimizer, epoch: int, decay_epochs: tuple[int, ...]) -> None:
    """Sets the learning rates of `epoch` (from 0): multiplied by 0.1 at each of `decay_epochs`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * 0.1 ** sum(epoch >= decay_epoch for decay_epoch in decay_epochs)
