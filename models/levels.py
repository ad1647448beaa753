"""The three feature levels and the container for tensors that exist once per level."""
from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

LEVELS = ("low", "mid", "high")


class LevelFeatures(NamedTuple):
    """One tensor per level: a backbone's feature maps, or the embeddings of one kind of head."""

    low: Tensor
    mid: Tensor
    high: Tensor
