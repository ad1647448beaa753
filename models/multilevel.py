"""The model: one backbone, motion excitation, and the heads at three levels.

The heads are projections to the embedding space at each level, and the prototypes on the high level.

Shapes: M clips, B videos of this rank, V clips of a video (= `--sample`), V+1 views: the clips in temporal order, then the
overview; T frames, H and W pixels; C channels, t timestamps of a level (T/2, T/4, T/8; see `TimePooledStem`); D
= `--channel` embedding width, K = `--cluster` prototypes.
"""
from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.convert import rename_old_keys
from models.levels import LEVELS, LevelFeatures
from models.motion import MotionExcitation, reverse_time
from models.r3d import RESNETS
from models.s3d import S3D

BACKBONES = {**RESNETS, "s3d": S3D, "resnet18": RESNETS["r3d18"]}  # the official code calls r3d18 resnet18


def build_backbone(net: str) -> nn.Module:
    """Returns a freshly initialised backbone: `.channels` and `.layers` per level, forward [M, 3, T, H, W] -> LevelFeatures.

    ValueError unless `net` is a key of BACKBONES.
    """
    if net not in BACKBONES:
        raise ValueError(f"backbone {net!r}: choose among {', '.join(BACKBONES)}")
    return BACKBONES[net]()


def level_layers(net: str) -> dict[str, str]:
    """Returns level -> the part of the backbone whose output is its map, such as "layer2"."""
    return getattr(BACKBONES[net], "func", BACKBONES[net]).layers


class Projection(nn.Sequential):
    """Embedding of each timestamp by a two-layer perceptron: 1x1 Conv1d C -> C, ReLU, 1x1 Conv1d C -> D.

    [M, C, t] -> [M, D, t]; the embedding is not L2-normalised, the losses do that.
    """

    def __init__(self, channels: int, embedding_dim: int) -> None:
        super().__init__(
            nn.Conv1d(channels, channels, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.Conv1d(channels, embedding_dim, kernel_size=1),
        )


class PrototypeHead(nn.Module):
    """Scores of clips against K learned prototypes: cosine similarities in [-1, 1] after `normalize_`."""

    def __init__(self, channels: int, embedding_dim: int, num_prototypes: int) -> None:
        super().__init__()
        self.projection = nn.Sequential(
            nn.Linear(channels, channels),
            nn.BatchNorm1d(channels),
            nn.ReLU(inplace=True),
            nn.Linear(channels, embedding_dim),
        )
        self.prototypes = nn.Linear(embedding_dim, num_prototypes, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Returns scores [M, K] of time-averaged features [M, C]."""
        return self.prototypes(F.normalize(self.projection(features), dim=1))

    @torch.no_grad()
    def normalize_(self) -> None:
        """Scales every prototype to unit length, in place; called before each step."""
        self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=1))


class ModelOutput(NamedTuple):
    """Embeddings, not yet L2-normalised, and prototype scores.

    The overview takes part in `timestamp` only (and in the statistics of the batch norms, those of the prototype head
    included).
    """

    instance: LevelFeatures         # each [B, V, D]
    reversed_low: Tensor            # [B, V, D], of time-reversed features
    reversed_mid: Tensor            # [B, V, D]
    timestamp: LevelFeatures        # each [B, V+1, D, t]
    scores: Tensor                  # [B, V, K], in [-1, 1] while prototypes have unit length
    graph_embeddings: LevelFeatures | None  # each [B, V, D]; None without graph constraint


class MultiLevelModel(nn.Module):
    """Backbone and heads of multi-level feature optimization (Qian et al. 2021)."""

    def __init__(self, net: str, embedding_dim: int = 128, num_prototypes: int = 1000) -> None:
        super().__init__()
        self.backbone = build_backbone(net)
        channels = self.backbone.channels
        self.excitation = nn.ModuleDict({level: MotionExcitation(channels[level]) for level in ("low", "mid")})
        self.instance, self.timestamp, self.graph_heads = (
            nn.ModuleDict({level: Projection(channels[level], embedding_dim) for level in LEVELS}) for _ in range(3))
        self.prototype_head = PrototypeHead(channels["high"], embedding_dim, num_prototypes)
        self.register_load_state_dict_pre_hook(lambda _module, state, *_: rename_old_keys(state))

    def forward(self, views: Tensor, with_graph: bool = True) -> ModelOutput:
        """Returns the outputs for views [B, V+1, 3, T, H, W]."""
        b, num_views = views.shape[:2]
        v = num_views - 1
        maps = self.backbone(views.flatten(0, 1))

        # Per level [B, V+1, C, t], natural order; for low and mid the time-reversed half beside it.
        low, reversed_low = self.excite("low", maps.low, b)
        mid, reversed_mid = self.excite("mid", maps.mid, b)
        high = maps.high.mean(dim=(3, 4)).unflatten(0, (b, num_views))
        natural = LevelFeatures(low, mid, high)

        return ModelOutput(
            instance=embed_clips(self.instance, natural, v),
            reversed_low=embed_over_time(self.instance["low"], reversed_low[:, :v]),
            reversed_mid=embed_over_time(self.instance["mid"], reversed_mid[:, :v]),
            timestamp=LevelFeatures(*(
                self.timestamp[level](x.flatten(0, 1)).unflatten(0, (b, num_views))
                for level, x in zip(LEVELS, natural))),
            scores=self.prototype_head(high.mean(dim=3).flatten(0, 1)).unflatten(0, (b, num_views))[:, :v],
            graph_embeddings=embed_clips(self.graph_heads, natural, v) if with_graph else None,
        )

    def excite(self, level: str, maps: Tensor, b: int) -> tuple[Tensor, Tensor]:
        """Returns excited, space-averaged features [B, V+1, C, t], natural and reversed, of maps [B*(V+1), C, t, h, w]."""
        excited = self.excitation[level](reverse_time(maps)).mean(dim=(3, 4))
        natural, reverse = excited.unflatten(0, (2, b, -1))
        return natural, reverse

    def set_trainable(self, prototypes: bool, graph: bool) -> bool:
        """Freezes or unfreezes the prototypes and the graph heads; returns whether anything changed.

        Frozen parameters get no gradient, so the optimizer does not update them, weight decay included.
        """
        changed = False
        for module, trainable in ((self.prototype_head.prototypes, prototypes), (self.graph_heads, graph)):
            for parameter in module.parameters():
                changed |= parameter.requires_grad != trainable
                parameter.requires_grad_(trainable)
        return changed


def embed_over_time(head: nn.Module, features: Tensor) -> Tensor:
    """Returns embeddings [B, V, D] of features [B, V, C, t]: the mean over time of each timestamp's projection."""
    b, v = features.shape[:2]
    return head(features.flatten(0, 1)).mean(dim=2).unflatten(0, (b, v))


def embed_clips(heads: nn.ModuleDict, features: LevelFeatures, v: int) -> LevelFeatures:
    """Returns the embeddings [B, V, D] of the V clips at each level, of features [B, V+1, C, t]."""
    return LevelFeatures(*(embed_over_time(heads[level], x[:, :v]) for level, x in zip(LEVELS, features)))
