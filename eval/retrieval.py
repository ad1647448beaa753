"""Video retrieval: each test video queries the training videos for those most similar to it.

    python -m eval.retrieval --weights runs/ucf/checkpoints/epoch_0300.pt --train_csv train.csv \\
        --test_csv test.csv --centering each
    python -m eval.retrieval --weights random --net r3d18 --train_csv train.csv --test_csv test.csv
    python -m eval.retrieval --weights ... --train_csv train_{split}.csv --test_csv test_{split}.csv --splits 1,2,3
    torchrun --nproc_per_node 4 -m eval.retrieval --weights ... --train_csv train.csv --test_csv test.csv

A query hits at k when any of its k nearest training videos, by cosine similarity of clip-averaged features, has its class;
R@k is the share of queries that hit. `concat` is low, mid and high side by side, each centered and L2-normalized on its own,
so that the three are equally weighted whatever their width and scale.

Shapes: Q queries (test videos), G gallery videos (training), C channels, K nearest neighbors.
"""
from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as `python eval/retrieval.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import time
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from dataset.frames import read_frames, resize_frames
from dataset.records import VideoRecord
from eval.cli import (add_feature_flags, add_levels_flag, check_feature_flags, parse_levels, read_clip_settings,
                      run_command)
from eval.features.extract import LEVEL_CHOICES, ClipSettings, Rows, level_vectors
from eval.features.csv_features import read_split_features
from eval.result_card import SplitResult, build_card, write_card
from eval.splits import add_split_flags
from utils.cli import OneLineParser, add_launch_flags, check_values
from utils.distributed import DistContext
from utils.errors import InputError

KS = (1, 5, 10, 20, 50)
CHUNK = 128  # gallery videos normalized, and queries ranked, at a time
TILE_SIZE = (160, 120)  # width, height of a video frame in the figure, px
BORDER_PX = 6
GREEN, RED, GREY, WHITE = (0, 160, 0), (210, 0, 0), (150, 150, 150), (255, 255, 255)


def centering_means(train: Rows, test: Rows, centering: str) -> tuple[Rows, Rows]:
    """Returns the means to subtract from training and test features, level -> [C]: zeros ("none"), the training mean from
    both ("train"), or each set's own ("each", as CoCLR does, Han et al. 2020: test features then depend on each other)."""
    train_means, test_means = ({level: rows.mean(axis=0, dtype=np.float64).astype(np.float32) * (centering != "none")
                                for level, rows in features.items()} for features in (train, test))
    return train_means, test_means if centering == "each" else train_means


def nearest(queries: np.ndarray, gallery: np.ndarray, num_neighbors: int) -> np.ndarray:
    """Returns gallery indices int64 [Q, K], most similar first; of equal similarity, the lower index first.

    Cosine similarity of float32 [Q, C] and [G, C], K <= G, a chunk of queries at a time. Products are summed in float64 and
    compared in float32, so that equal gallery vectors are equally similar wherever they stand in the matrix.
    """
    units, neighbors = torch.empty(gallery.shape, dtype=torch.float64), []
    for part, rows in zip(units.split(CHUNK), torch.from_numpy(gallery).split(CHUNK)):
        part.copy_(F.normalize(rows.double(), dim=1))
    for rows in torch.from_numpy(queries).split(CHUNK):
        similarity = (F.normalize(rows.double(), dim=1) @ units.T).float()
        least = similarity.topk(num_neighbors, dim=1).values[:, -1]
        # topk takes any of equal ones: sort, stably, all that are at least as similar as its last. Sorting whole rows
        # would take three times as long.
        for row, bound in zip(similarity, least):
            candidates = (row >= bound).nonzero()[:, 0]
            order = row[candidates].sort(descending=True, stable=True).indices
            neighbors.append(candidates[order[:num_neighbors]])
    return torch.stack(neighbors).numpy()


def recall_at(neighbors: np.ndarray, query_labels: np.ndarray, gallery_labels: np.ndarray) -> dict[str, float]:
    """Returns {"R@1": ..., ...}, each from 0 to 1, for every k of KS within the K columns of `neighbors` [Q, K]."""
    hit = gallery_labels[neighbors] == query_labels[:, None]
    return {f"R@{k}": float(hit[:, :k].any(axis=1).mean()) for k in KS if k <= neighbors.shape[1]}


def draw_neighbors(path: Path, queries: Sequence[VideoRecord], neighbors: Sequence[Sequence[VideoRecord]],
                   settings: ClipSettings = ClipSettings(), skip_bad: bool = False) -> None:
    """Writes a figure with a row for each query: its frame with a grey border, its neighbors' green for hits, else red.

    The frame is the middle one of the middle clip. With `skip_bad`, one that cannot be read stays white and is reported.
    """
    def tile(video: VideoRecord, color: tuple[int, int, int]) -> np.ndarray:
        clips = settings.sampler()(video.num_frames)
        middle = clips[(len(clips) - 1) // 2, (settings.clip_frames - 1) // 2]
        try:
            [frame] = resize_frames(read_frames(video.path, np.array([middle]), video.num_frames), TILE_SIZE, "bilinear")
        except InputError as error:
            if not skip_bad:
                raise InputError(f"{path}: the figure cannot be drawn: {error}") from error
            print(f"{path}: a tile is blank: {error}", flush=True)
            frame = np.full((*TILE_SIZE[::-1], 3), WHITE, np.uint8)
        return cv2.copyMakeBorder(frame, *[BORDER_PX] * 4, cv2.BORDER_CONSTANT, value=color)

    gap = np.full((TILE_SIZE[1] + 2 * BORDER_PX, 2 * BORDER_PX, 3), WHITE, np.uint8)
    rows = [np.concatenate([tile(query, GREY), gap, *(
        tile(video, GREEN if video.label == query.label else RED) for video in found)], axis=1)
        for query, found in zip(queries, neighbors)]
    _, data = cv2.imencode(".png", np.concatenate(rows)[..., ::-1])
    path.write_bytes(data.tobytes())


def retrieve(context: DistContext, flags: argparse.Namespace) -> None:
    """Everything from flags to result.json, the figure (of the first split) and the printed table; all processes extract
    features together, the main one does the rest."""
    start, levels = time.monotonic(), parse_levels(flags.levels)
    splits, weights = read_split_features(flags, context)
    if not context.is_main:
        return
    results, found = [], []  # found: of each split, level -> neighbors [Q, K]
    for split, train, test, counts in splits:
        train_means, test_means = centering_means(train.features, test.features, flags.centering)
        num_neighbors = min(max(KS), len(train.records))
        found.append({level: nearest(level_vectors(test.features, level, test_means),
                                     level_vectors(train.features, level, train_means), num_neighbors) for level in levels})
        metrics = {level: recall_at(neighbors, test.labels, train.labels) for level, neighbors in found[-1].items()}
        results.append(SplitResult(split, metrics, counts))
    pictured = flags.picture_level if flags.picture_level in levels else levels[0]
    settings = {**read_clip_settings(flags).facts(), "centering": flags.centering, "seed": flags.seed,
                "skip_bad": flags.skip_bad, "amp": flags.amp, "picture_level": pictured}
    out = Path(flags.out)
    card = build_card("retrieval", results, settings, weights, context.device, time.monotonic() - start)
    write_card(out, card, ("clips", "crops", "centering", "seed"))
    # Last, so that a frame that cannot be read does not cost the result.
    gallery, queries = splits[0].train.records, splits[0].test.records[:flags.picture_queries]
    neighbors = found[0][pictured][:len(queries), :flags.picture_neighbors]
    draw_neighbors(out / "retrieval.png", queries, [[gallery[index] for index in row] for row in neighbors],
                   read_clip_settings(flags), flags.skip_bad)
    print(f"\nwrote {out / 'retrieval.png'} (level {pictured})")


def check_retrieval_flags(flags: argparse.Namespace) -> None:
    check_feature_flags(flags)
    check_values({"--picture_queries": (flags.picture_queries, 1), "--picture_neighbors": (flags.picture_neighbors, 1)})


def retrieval_parser() -> OneLineParser:
    parser = OneLineParser(prog="python -m eval.retrieval", description=__doc__)
    add_split_flags(parser)
    add_feature_flags(parser)
    protocol = parser.add_argument_group("protocol")
    add_levels_flag(protocol, ",".join(LEVEL_CHOICES))
    protocol.add_argument("--centering", choices=("none", "train", "each"), default="none",
                          help="mean to subtract: none, the training set's, or each set's own (as CoCLR does)")
    add = parser.add_argument_group("output").add_argument
    add("--out", default="runs/retrieval", metavar="DIR",
        help="folder of result.json and retrieval.png; existing ones are replaced")
    add("--picture_level", choices=LEVEL_CHOICES, default="high",
        help="level shown in the figure; the first of --levels where it is not among them")
    add("--picture_queries", type=int, default=8, metavar="N", help="rows: the first test videos")
    add("--picture_neighbors", type=int, default=8, metavar="N", help="neighbors in a row")
    add_launch_flags(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(retrieval_parser(), check_retrieval_flags, retrieve, arguments)


if __name__ == "__main__":
    sys.exit(main())
