"""Features as the vectors that videos are compared by, level by level or all three at once.

Shapes: N videos; C channels of a level, or of the three side by side.
"""
from __future__ import annotations

import argparse

import numpy as np

from eval.classifier.model import CONCAT
from models.levels import LEVELS
from utils.errors import InputError

LEVEL_CHOICES = (*LEVELS, CONCAT)


def level_vectors(
    features: dict[str, np.ndarray], level: str, means: dict[str, np.ndarray] | None = None
) -> np.ndarray:
    """Vectors float32 [N, C] that compare videos at `level`; `concat` is low, mid and high side by side.

    `means` (level -> [C]) are taken off first, if given. Every level is then L2-normalized on its own, so that the
    three have equal say in `concat` whatever their width and scale; a zero vector stays zero.
    """
    parts = []
    for name in (LEVELS if level == CONCAT else (level,)):
        rows = features[name] - (means[name] if means else np.float32(0))
        norms = np.sqrt(np.einsum("nc,nc->n", rows, rows, dtype=np.float64))[:, None]
        rows /= np.where(norms > 0, norms, 1).astype(np.float32)
        parts.append(rows)
    return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def add_levels_flag(group: argparse._ArgumentGroup, default: str) -> None:
    """The flag --levels."""
    group.add_argument("--levels", default=default, metavar="LEVEL,...",
                       help=f"feature levels to evaluate, among {', '.join(LEVEL_CHOICES)}; {CONCAT} is the "
                            "other three side by side")


def parse_levels(text: str) -> list[str]:
    """The levels that --levels names, in its order."""
    levels = text.split(",")
    if any(level not in LEVEL_CHOICES for level in levels) or len(set(levels)) < len(levels):
        raise InputError(f"--levels {text}: must be distinct names among {', '.join(LEVEL_CHOICES)}")
    return levels
