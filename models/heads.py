"""The heads: projections to the embedding space at each level, and the prototypes on the high level.

Shapes: M clips, C channels, t timestamps, D = `--channel` embedding width, K = `--cluster` prototypes.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
