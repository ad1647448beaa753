"""Video retrieval: each test video asks for the training videos that are most like it.

    python -m eval.retrieval --weights runs/ucf/checkpoints/epoch_0300.pt --train_csv train.csv \\
        --test_csv test.csv --centering each
    python -m eval.retrieval --weights random --net r3d18 --train_csv train.csv --test_csv test.csv
    python -m eval.retrieval --weights ... --train_csv train_{split}.csv --test_csv test_{split}.csv --splits 1,2,3
    torchrun --nproc_per_node 4 -m eval.retrieval --weights ... --train_csv train.csv --test_csv test.csv

A query hits at k when any of its k nearest training videos, by cosine similarity of clip-averaged features,
has its class; R@k is the share of queries that hit. `concat` is low, mid and high side by side, each centered
and L2-normalized on its own, so that the three have equal say whatever their width and scale.

Shapes: Q queries (test videos), G gallery videos (training), C channels, K neighbors looked at.
"""
from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as `python eval/retrieval.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict

import cv2
import numpy as np
import torch

from dataset.frames import read_frames, resize_frames
from dataset.records import VideoRecord
from eval.features.extract import ClipSettings
from eval.cli import (add_feature_flags, check_feature_flags,
                        read_clip_settings, require_at_least, run_command)
from eval.result_card import Outcome, build_card, markdown_table, write_card
from eval.features.per_split import SplitSets, read_sets
from eval.splits import add_split_flags
from eval.features.vectors import LEVEL_CHOICES, add_levels_flag, level_vectors, parse_levels
from utils.distributed import DistContext
from utils.errors import InputError
from utils.cli import OneLineParser, add_launch_flags

KS = (1, 5, 10, 20, 50)
CHUNK = 128  # rows normalized, and queries ranked, at a time
TILE_SIZE = (160, 120)  # width, height of a frame in the picture, px
FRAME_PX = 6
GREEN, RED, GREY = (0, 160, 0), (210, 0, 0), (150, 150, 150)


def centering_means(
    train: dict[str, np.ndarray], test: dict[str, np.ndarray], centering: str
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What to take off training and test features, level -> [C].

    "none": nothing. "train": the training mean off both. "each": each set's own mean (as CoCLR does, Han et
    al. 2020, which lets the test videos know of one another).
    """
    def mean(features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {level: rows.mean(axis=0, dtype=np.float64).astype(np.float32)
                for level, rows in features.items()}

    if centering == "none":
        zero = {level: np.zeros(rows.shape[1], np.float32) for level, rows in train.items()}
        return zero, zero
    return mean(train), mean(train if centering == "train" else test)


def nearest(queries: np.ndarray, gallery: np.ndarray, num_neighbors: int) -> np.ndarray:
    """Gallery indices int64 [Q, K], most similar first; of equal similarity, the lower index first.

    Cosine similarity of float32 [Q, C] and [G, C], K <= G, a chunk of queries at a time. Products are summed
    in float64 and compared in float32, so that equal gallery vectors are equally similar wherever they stand
    in the matrix.
    """
    def unit(rows: np.ndarray) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.from_numpy(rows).double(), dim=1)

    columns = torch.empty(gallery.shape, dtype=torch.float64)
    for start in range(0, len(gallery), CHUNK):
        columns[start:start + CHUNK] = unit(gallery[start:start + CHUNK])
    num = len(gallery)
    reversed_index = torch.arange(num - 1, -1, -1)
    result = []
    for start in range(0, len(queries), CHUNK):
        similarity = (unit(queries[start:start + CHUNK]) @ columns.T).float() + 0.0  # no negative zero
        # Integers in the order of the floats, above the reversed index: all distinct, so the top K are too.
        bits = similarity.view(torch.int32)
        ordered = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF).long()
        keys = (ordered << 32) + reversed_index
        top = keys.topk(num_neighbors, dim=1).values
        result.append(num - 1 - (top & 0xFFFFFFFF))
    return torch.cat(result).numpy()


def recall_at(
    neighbors: np.ndarray, query_labels: np.ndarray, gallery_labels: np.ndarray
) -> dict[str, float]:
    """{"R@1": ..., ...}, each from 0 to 1, for every k of KS within the K columns of `neighbors` [Q, K]."""
    hit = gallery_labels[neighbors] == query_labels[:, None]
    return {f"R@{k}": float(hit[:, :k].any(axis=1).mean()) for k in KS if k <= neighbors.shape[1]}


def draw_picture(
    path: Path, queries: Sequence[VideoRecord], neighbors: Sequence[Sequence[VideoRecord]],
    settings: ClipSettings = ClipSettings(), skip_bad: bool = False,
) -> None:
    """Write a row for each query: a frame of its, framed grey, its neighbors' green for hits, else red.

    The frame is the middle one of the middle clip of `settings`. With `skip_bad` one that cannot be read stays white,
    and is told; without, it is an InputError.
    """
    def tile(video: VideoRecord, color: tuple[int, int, int]) -> np.ndarray:
        try:
            return framed_tile(video, color, settings)
        except InputError as error:
            if not skip_bad:
                raise InputError(f"{path}: the picture cannot be drawn: {error}") from error
            print(f"{path}: a tile is blank: {error}", flush=True)
            return frame_of(np.full((TILE_SIZE[1], TILE_SIZE[0], 3), 255, np.uint8), color)

    rows = []
    for query, found in zip(queries, neighbors):
        tiles = [tile(query, GREY)]
        tiles.append(np.full((len(tiles[0]), 2 * FRAME_PX, 3), 255, np.uint8))  # a gap
        tiles += [tile(video, GREEN if video.label == query.label else RED) for video in found]
        rows.append(np.concatenate(tiles, axis=1))
    encoded, data = cv2.imencode(".png", np.concatenate(rows)[..., ::-1])
    assert encoded, path
    path.write_bytes(data.tobytes())


def framed_tile(video: VideoRecord, color: tuple[int, int, int], settings: ClipSettings) -> np.ndarray:
    """The middle frame of the middle clip that features are taken of, uint8 RGB, in a frame of `color`."""
    clips = settings.sampler()(video.num_frames)
    middle = clips[(len(clips) - 1) // 2, (settings.clip_frames - 1) // 2]
    [frame] = resize_frames(read_frames(video.path, np.array([middle]), video.num_frames), TILE_SIZE, "bilinear")
    return frame_of(frame, color)


def frame_of(picture: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """A picture of TILE_SIZE in a frame of `color`."""
    tile = np.empty((TILE_SIZE[1] + 2 * FRAME_PX, TILE_SIZE[0] + 2 * FRAME_PX, 3), np.uint8)
    tile[:] = color
    tile[FRAME_PX:-FRAME_PX, FRAME_PX:-FRAME_PX] = picture
    return tile


def evaluate(sets: SplitSets, levels: Sequence[str], centering: str) -> tuple[dict[str, dict[str, float]], dict]:
    """(level -> R@k, level -> neighbors [Q, K]) of one split: the gallery ranked for each query."""
    train_means, test_means = centering_means(sets.train.features, sets.test.features, centering)
    num_neighbors = min(max(KS), len(sets.train.records))
    metrics, neighbors = {}, {}
    for level in levels:
        neighbors[level] = nearest(level_vectors(sets.test.features, level, test_means),
                                   level_vectors(sets.train.features, level, train_means), num_neighbors)
        metrics[level] = recall_at(neighbors[level], sets.test.labels, sets.train.labels)
    return metrics, neighbors


def retrieve(context: DistContext, flags: argparse.Namespace) -> None:
    """Everything from flags to result.json, retrieval.png and the printed table.

    All processes extract features together; the main one goes on alone. The picture is of the first split.
    """
    start = time.monotonic()
    levels = parse_levels(flags.levels)
    all_sets, weights = read_sets(flags, context)
    if not context.is_main:
        return

    out = Path(flags.out)
    pictured = flags.picture_level if flags.picture_level in levels else levels[0]
    outcomes, shown = [], None
    for sets in all_sets:
        metrics, neighbors = evaluate(sets, levels, flags.centering)
        if shown is None:
            shown = sets, neighbors[pictured][:flags.picture_queries, :flags.picture_neighbors]
        outcomes.append(Outcome(sets.split, metrics, sets.counts()))

    choices = {**asdict(read_clip_settings(flags)), "centering": flags.centering, "seed": flags.seed,
               "skip_bad": flags.skip_bad, "amp": flags.amp, "picture_level": pictured}
    card = build_card("retrieval", outcomes, choices, weights, context.device, time.monotonic() - start)
    print(f"wrote {write_card(out, card)}\n")
    print(markdown_table(card, ("clips", "crops", "centering", "seed")), flush=True)
    # Last, as a frame that cannot be read must not take the result along.
    sets, neighbors = shown
    draw_picture(out / "retrieval.png", sets.test.records[:len(neighbors)],
                 [[sets.train.records[i] for i in row] for row in neighbors], read_clip_settings(flags), flags.skip_bad)
    print(f"\nwrote {out / 'retrieval.png'} (level {pictured})")


def check_flags(flags: argparse.Namespace) -> None:
    """InputError for flags that cannot work."""
    parse_levels(flags.levels)
    check_feature_flags(flags)
    require_at_least({"--picture_queries": (flags.picture_queries, 1),
                      "--picture_neighbors": (flags.picture_neighbors, 1)})


def retrieval_parser() -> OneLineParser:
    """The parser of `python -m eval.retrieval`."""
    parser = OneLineParser(prog="python -m eval.retrieval", description=__doc__)
    add_split_flags(parser)
    add_feature_flags(parser)
    protocol = parser.add_argument_group("protocol")
    add_levels_flag(protocol, ",".join(LEVEL_CHOICES))
    protocol.add_argument("--centering", choices=("none", "train", "each"), default="none",
                          help="mean taken off: none, the training set's, or each set's own (as CoCLR does)")
    output = parser.add_argument_group("output")
    output.add_argument("--out", default="runs/retrieval", metavar="DIR",
                        help="folder of result.json and retrieval.png; what is there is replaced")
    output.add_argument("--picture_level", choices=LEVEL_CHOICES, default="high",
                        help="level shown in the picture; the first of --levels where it is not among them")
    output.add_argument("--picture_queries", type=int, default=8, metavar="N",
                        help="rows: the first test videos")
    output.add_argument("--picture_neighbors", type=int, default=8, metavar="N", help="neighbors in a row")
    add_launch_flags(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when the card is written; others see `utils.errors`."""
    return run_command(retrieval_parser(), check_flags, retrieve, arguments)


if __name__ == "__main__":
    sys.exit(main())
