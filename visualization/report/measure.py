"""What the network makes of videos at the checkpoints of a run: effective rank, spread, and nearest prototypes.

Shapes: N videos, one deterministic test clip of each; C channels of a level; K prototypes.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dataset.records import VideoRecord
from eval.features.extract import RANDOM, ClipSettings, extract_features, load_backbone
from models.heads import PrototypeHead
from models.multilevel import MultiLevelModel
from models.convert import check_keys, unwrap
from utils.checkpoint import FORMAT, read_checkpoint
from utils.distributed import DistContext
from utils.errors import InputError
from visualization.report.run import Run


@dataclass(frozen=True)
class State:
    """The network at one moment; each value by level."""

    name: str
    epochs: float             # done; 0 for the random start
    ranks: dict[str, float]   # `effective_rank`
    spreads: dict[str, float]  # `spread`
    channels: dict[str, int]


@dataclass(frozen=True)
class Measured:
    """Videos as the states of the network see them, the newest in full."""

    records: list[VideoRecord]       # N, those that can be read
    skipped: list[str]               # why each of the others cannot
    states: list[State]              # the random start, then checkpoints, oldest first
    features: dict[str, np.ndarray]  # level -> float32 [N, C], of the newest
    scores: np.ndarray               # float32 [N, K], of the newest
    backbone: nn.Module              # of the newest
    settings: ClipSettings

    @property
    def nearest(self) -> np.ndarray:
        """int64 [N]: the prototype of highest score of each video."""
        return self.scores.argmax(axis=1)


def pick_videos(records: Sequence[VideoRecord], most: int) -> list[VideoRecord]:
    """At most `most` of the videos that have any frame, evenly spread over the list."""
    whole = [record for record in records if record.num_frames]
    chosen = np.unique(np.rint(np.linspace(0, len(whole) - 1, min(most, len(whole)))).astype(int))
    return [whole[index] for index in chosen]


def measure(run: Run, records: Sequence[VideoRecord], max_checkpoints: int, device: torch.device, *, batch: int,
            num_workers: int) -> Measured:
    """The random start and at most `max_checkpoints` of the run's checkpoints, evenly spread and with the newest.

    InputError where no checkpoint is there, one does not fit, or no video can be read.
    """
    if not run.checkpoints:
        raise InputError(f"{run.folder}/checkpoints: holds no checkpoint")
    flags, context = run.flags, DistContext(0, 1, device)
    settings = ClipSettings(1, flags["clip_frames"], 1, flags["img_dim"])
    skipped: dict[int, str] = {}

    def state_of(name: str, epochs: float, backbone: nn.Module, videos: Sequence[VideoRecord],
                 bad: dict[int, str] | None) -> tuple[State, dict[str, np.ndarray]]:
        features = extract_features(backbone, videos, settings, context, batch=batch, num_workers=num_workers,
                                    skipped=bad, label=name)
        features = {level: np.delete(rows, list(bad or ()), axis=0) for level, rows in features.items()}
        if not len(next(iter(features.values()))):
            raise InputError(f"none of {len(videos)} video(s) can be read; the first: {next(iter(skipped.values()))}")
        return State(name, epochs, {level: effective_rank(rows) for level, rows in features.items()},
                     {level: spread(rows) for level, rows in features.items()}, dict(backbone.channels)), features

    backbone, _ = load_backbone(RANDOM, flags["net"], flags["seed"])
    first, features = state_of("random start", 0.0, backbone, records, skipped)
    states, kept = [first], [record for index, record in enumerate(records) if index not in skipped]
    places = np.unique(np.rint(np.linspace(len(run.checkpoints) - 1, 0, min(max_checkpoints, len(run.checkpoints)))))
    for epochs, path in (run.checkpoints[int(place)] for place in places):
        model = load_model(path)
        state, features = state_of(path.stem, epochs, model.backbone, kept, None)
        states.append(state)
    scores = prototype_scores(model.prototype_head, features["high"], device)
    return Measured(kept, list(skipped.values()), states, features, scores, model.backbone, settings)


def load_model(path: Path) -> MultiLevelModel:
    """The whole model of a pretraining checkpoint, on the CPU. InputError unless every entry fits."""
    checkpoint = read_checkpoint(path)
    if checkpoint.get("format") != FORMAT or checkpoint.get("kind") != "model":
        raise InputError(f"{path}: no pretraining checkpoint of this project (format {checkpoint.get('format')!r}, "
                         f"kind {checkpoint.get('kind')!r})")
    try:
        model = MultiLevelModel(checkpoint["net"], checkpoint["embedding_dim"], checkpoint["num_prototypes"])
        state = unwrap(checkpoint["model"])
        check_keys(state, model)
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: does not fill a model: {error}") from error
    model.load_state_dict(state)
    return model


def prototype_scores(head: PrototypeHead, features: np.ndarray, device: torch.device) -> np.ndarray:
    """float32 [N, K]: cosine similarity of each video's embedding to each prototype, in eval mode.

    `features` [N, C]: the high level's, mean over time and space of one clip, which is what the head sees in training.
    """
    head.to(device).eval()
    with torch.inference_mode():
        embeddings = F.normalize(head.projection(torch.from_numpy(features).to(device)), dim=1)
        return (embeddings @ F.normalize(head.prototypes.weight, dim=1).T).cpu().numpy()


def effective_rank(features: np.ndarray) -> float:
    """exp of the entropy of the singular values of features [N, C], their mean taken off (Roy and Vetterli 2007).

    From 1 (one direction) to min(N - 1, C) (all directions alike); 0 where all rows are the same.
    """
    centered = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    values = np.linalg.svd(centered, compute_uv=False)
    if values.sum() <= 1e-9 * np.abs(features).sum() or not values.sum():
        return 0.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def spread(features: np.ndarray) -> float:
    """Standard deviation of features [N, C] around their mean as a share of their root mean square; 0 to 1."""
    rows = features.astype(np.float64)
    size = np.sqrt((rows ** 2).sum())
    return float(np.sqrt(((rows - rows.mean(axis=0)) ** 2).sum()) / size) if size else 0.0
