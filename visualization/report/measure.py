"""Measures videos at the checkpoints of a run: effective rank and spread of their features, scores of the prototypes.

Shapes: N videos, one deterministic test clip of each; C channels of a level; K prototypes.
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from dataset.records import VideoRecord
from dataset.transforms import RGB, read_input
from eval.features.backbone import RANDOM, load_backbone
from eval.features.extract import ClipSettings, extract_features, keep_readable
from models.convert import check_keys, unwrap
from models.multilevel import MultiLevelModel, PrototypeHead
from utils.checkpoint import read_checkpoint, reading_entries
from utils.distributed import DistContext
from utils.errors import InputError
from visualization.report.run import RunDirectory


class NetworkState(NamedTuple):
    """The network at one moment; dictionaries by level."""

    name: str
    epochs: float              # finished; 0 for the random start
    ranks: dict[str, float]    # `effective_rank`
    spreads: dict[str, float]  # `spread`
    channels: dict[str, int]


class Measurement(NamedTuple):
    """Videos as seen by the network at several moments; the scores are those of the newest."""

    records: list[VideoRecord]       # N readable ones
    skipped: list[str]               # why each of the others cannot be read
    states: list[NetworkState]       # the random start, then checkpoints, oldest first
    scores: np.ndarray               # float32 [N, K]
    settings: ClipSettings


def spread_evenly(length: int, most: int) -> list[int]:
    """Returns at most `most` of the indices 0 ... length - 1, evenly spread, the last one among them."""
    return np.unique(np.rint(np.linspace(length - 1, 0, min(most, length))).astype(int)).tolist()


def measure_run(run: RunDirectory, records: Sequence[VideoRecord], flags: argparse.Namespace,
                device: torch.device) -> Measurement:
    """Measures the random start and at most `max_checkpoints` checkpoints, evenly spread, the newest among them."""
    if not run.checkpoints:
        raise InputError(f"{run.folder}/checkpoints: holds no checkpoint")
    settings, states, skipped = ClipSettings(1, run.flags["clip_frames"], 1, run.flags["img_dim"]), [], []
    chosen = [run.checkpoints[index] for index in spread_evenly(len(run.checkpoints), flags.max_checkpoints)]
    newest = chosen[-1][1]
    scale = {**read_input(read_checkpoint(newest), str(newest)), "frames": run.flags.get("input_frames", RGB)}
    for epochs, path in [(0.0, None), *chosen]:
        model = load_model(path) if path else None
        backbone = model.backbone if model else load_backbone(RANDOM, run.flags["net"], run.flags["seed"])[0]
        name = path.stem if path else "random start"
        bad: dict[int, str] = {}
        features = extract_features(backbone, records, settings, DistContext(0, 1, device), scale=scale, batch=flags.batch,
                                    num_workers=flags.num_workers, skipped=bad, label=name)
        records, features = keep_readable(records, features, bad)
        skipped += bad.values()
        if not records:
            raise InputError(f"none of {len(skipped)} video(s) can be read; the first: {skipped[0]}")
        states.append(NetworkState(name, epochs, {level: effective_rank(rows) for level, rows in features.items()},
                                   {level: spread(rows) for level, rows in features.items()}, dict(backbone.channels)))
    scores = prototype_scores(model.prototype_head, features["high"], device)
    return Measurement(records, skipped, states, scores, settings)


def load_model(path: Path) -> MultiLevelModel:
    """Returns the whole model of a pretraining checkpoint, on the CPU. InputError unless every entry fits."""
    checkpoint = read_checkpoint(path)
    with reading_entries(path, "model", checkpoint):
        model = MultiLevelModel(checkpoint["net"], checkpoint["embedding_dim"], checkpoint["num_prototypes"])
        state = unwrap(checkpoint["model"])
        check_keys(state, model)
        model.load_state_dict(state)
        return model


def prototype_scores(head: PrototypeHead, features: np.ndarray, device: torch.device) -> np.ndarray:
    """Returns float32 [N, K]: cosine similarity of each video's embedding, of its features [N, C], to each prototype."""
    head.to(device).eval()
    with torch.inference_mode():
        embeddings = F.normalize(head.projection(torch.from_numpy(features).to(device)), dim=1)
        return (embeddings @ F.normalize(head.prototypes.weight, dim=1).T).cpu().numpy()


def effective_rank(features: np.ndarray) -> float:
    """Returns exp of the entropy of the singular values of centered features [N, C] (Roy and Vetterli 2007).

    From 1 (one direction) to min(N - 1, C) (all directions equally); 0 where all rows are the same.
    """
    centered = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    values = np.linalg.svd(centered, compute_uv=False)
    if values.sum() <= 1e-9 * np.abs(features).sum():
        return 0.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def spread(features: np.ndarray) -> float:
    """Returns the standard deviation of features [N, C] as a fraction, 0 to 1, of their root mean square."""
    rows = features.astype(np.float64)
    size = np.linalg.norm(rows)
    return float(np.linalg.norm(rows - rows.mean(axis=0)) / size) if size else 0.0
