"""Features as the vectors by which videos are compared, one level or all three side by side.

Shapes: N videos; C channels of a level, or of the three.
"""
from __future__ import annotations

import argparse

import numpy as np

from models.levels import LEVELS
from utils.errors import InputError

CONCAT = "concat"
LEVEL_CHOICES = (*LEVELS, CONCAT)


def level_vectors(
    features: dict[str, np.ndarray], level: str, means: dict[str, np.ndarray] | None = None
) -> np.ndarray:
    """Returns vectors float32 [N, C] of `level`; "concat" is low, mid and high side by side.

    `means` (level -> [C]) are subtracted first. Every level is L2-normalized on its own, so that the three are equally
    weighted in "concat" whatever their width and scale; a zero vector stays zero.
    """
    parts = []
    for name in (LEVELS if level == CONCAT else (level,)):
        rows = features[name] - (means[name] if means else np.float32(0))
        norms = np.sqrt(np.einsum("nc,nc->n", rows, rows, dtype=np.float64))[:, None]
        rows /= np.where(norms > 0, norms, 1).astype(np.float32)
        parts.append(rows)
    return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def add_levels_flag(group: argparse._ArgumentGroup, default: str) -> None:
    """Adds the flag --levels."""
    group.add_argument("--levels", default=default, metavar="LEVEL,...",
                       help=f"feature levels to evaluate, of {', '.join(LEVEL_CHOICES)}; {CONCAT} is the other three side "
                            "by side")


def parse_levels(text: str) -> list[str]:
    """Returns the levels of --levels, in order."""
    levels = text.split(",")
    if any(level not in LEVEL_CHOICES for level in levels) or len(set(levels)) < len(levels):
        raise InputError(f"--levels {text}: must be distinct names among {', '.join(LEVEL_CHOICES)}")
    return levels
