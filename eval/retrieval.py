"""Video retrieval: each test video asks for the training videos that are most like it.

    python -m eval.retrieval --weights runs/ucf/checkpoints/epoch_0300.pt --train_csv train.csv \\
        --test_csv test.csv --centering each
    python -m eval.retrieval --weights random --net r3d18 --train_csv train.csv --test_csv test.csv

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

from dataset.decode import read_frames, resize_frames
from dataset.records import VideoRecord, read_records
from eval.features import extract_features, feature_fingerprint, load_backbone, stored_features
from eval.flags import add_feature_flags, read_feature_flags
from eval.result_card import build_card, make_out_dir, markdown_table, write_card
from models.levels import LEVELS
from utils.distributed import Process
from utils.errors import InputError, one_line
from utils.flags import OneLineParser

KS = (1, 5, 10, 20, 50)
CONCAT = "concat"
CHUNK = 128  # rows normalized, and queries ranked, at a time
TILE_SIZE = (160, 120)  # width, height of a frame in the picture, px
FRAME_PX = 6
GREEN, RED, GREY = (0, 160, 0), (210, 0, 0), (150, 150, 150)


def level_vectors(features: dict[str, np.ndarray], means: dict[str, np.ndarray], level: str) -> np.ndarray:
    """Vectors float32 [N, C] whose cosine similarity compares videos at `level`, or at all three at once.

    `means` (level -> [C]) are taken off first. Every level is then L2-normalized on its own; a zero vector
    stays zero.
    """
    parts = []
    for name in (LEVELS if level == CONCAT else (level,)):
        centered = features[name] - means[name]
        norms = np.sqrt(np.einsum("nc,nc->n", centered, centered, dtype=np.float64))[:, None]
        centered /= np.where(norms > 0, norms, 1).astype(np.float32)
        parts.append(centered)
    return np.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


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
    path: Path, queries: Sequence[VideoRecord], neighbors: Sequence[Sequence[VideoRecord]]
) -> None:
    """Write a row for each query: its middle frame, framed grey, its neighbors' green for hits, else red."""
    rows = []
    for query, found in zip(queries, neighbors):
        tiles = [framed_tile(query, GREY)]
        tiles.append(np.full((len(tiles[0]), 2 * FRAME_PX, 3), 255, np.uint8))  # a gap
        tiles += [framed_tile(video, GREEN if video.label == query.label else RED) for video in found]
        rows.append(np.concatenate(tiles, axis=1))
    encoded, data = cv2.imencode(".png", np.concatenate(rows)[..., ::-1])
    assert encoded, path
    path.write_bytes(data.tobytes())


def framed_tile(video: VideoRecord, color: tuple[int, int, int]) -> np.ndarray:
    """The video's middle frame, uint8 RGB, in a frame of `color`."""
    middle = read_frames(video.path, np.array([(video.num_frames - 1) // 2]), video.num_frames)
    [frame] = resize_frames(middle, TILE_SIZE, "bilinear")
    tile = np.empty((TILE_SIZE[1] + 2 * FRAME_PX, TILE_SIZE[0] + 2 * FRAME_PX, 3), np.uint8)
    tile[:] = color
    tile[FRAME_PX:-FRAME_PX, FRAME_PX:-FRAME_PX] = frame
    return tile


def check_pair(
    train: Sequence[VideoRecord], test: Sequence[VideoRecord], train_csv: str, test_csv: str
) -> None:
    """InputError where the two lists cannot be gallery and queries of one data set."""
    gallery_labels = {record.label for record in train}
    strange = [record for record in test if record.label not in gallery_labels]
    if strange:
        raise InputError(
            f"{test_csv}: label {strange[0].label} ({strange[0].path}) occurs nowhere in {train_csv}; "
            f"{len(strange)} test video(s) of such labels could never hit: are both files of one data set?")
    gallery_paths = {record.path for record in train}
    shared = [record for record in test if record.path in gallery_paths]
    if shared:
        raise InputError(f"{test_csv}: {len(shared)} video(s) are in {train_csv} too, such as "
                         f"{shared[0].path}: they would find themselves")


def parse_levels(text: str) -> list[str]:
    """The levels that --levels names, in its order."""
    levels = text.split(",")
    wrong = [level for level in levels if level not in (*LEVELS, CONCAT)]
    if wrong or len(set(levels)) < len(levels):
        raise InputError(f"--levels {text}: must be distinct names among {', '.join((*LEVELS, CONCAT))}")
    return levels


def retrieve(flags: argparse.Namespace) -> None:
    """Everything from flags to result.json, retrieval.png and the printed table."""
    start = time.monotonic()
    levels = parse_levels(flags.levels)
    settings, device = read_feature_flags(flags)
    for name in ("picture_queries", "picture_neighbors"):
        if getattr(flags, name) < 1:
            raise InputError(f"--{name} {getattr(flags, name)}: must be at least 1")
    csv_files = {"train": flags.train_csv, "test": flags.test_csv}
    records = {role: read_records(path, labelled=True) for role, path in csv_files.items()}
    check_pair(records["train"], records["test"], flags.train_csv, flags.test_csv)
    backbone, weights = load_backbone(flags.weights, flags.net, flags.seed)
    out = Path(flags.out)
    make_out_dir(out)

    # Features of all levels, once for each set; unreadable videos leave it.
    features, counts = {}, {"features_reused": True}
    for role, videos in list(records.items()):
        skipped: dict[int, str] = {}
        rows, reused = stored_features(
            flags.feature_dir, feature_fingerprint(weights, flags.seed, csv_files[role], settings), role,
            lambda: extract_features(
                backbone, videos, settings, Process(0, 1, device), batch=flags.batch, label=role,
                num_workers=flags.num_workers, skipped=skipped if flags.skip_bad else None))
        origin = f"read from {flags.feature_dir}" if reused else "extracted"
        print(f"{role}: {len(videos)} videos, {len(skipped)} skipped as unreadable, features {origin}")
        counts["features_reused"] &= reused
        kept = [i for i in range(len(videos)) if i not in skipped]
        if not kept:
            raise InputError(f"{csv_files[role]}: none of its videos can be read; the first: {skipped[0]}")
        records[role] = [videos[i] for i in kept]
        features[role] = {level: values[kept] for level, values in rows.items()}
        counts |= {f"num_{role}_videos": len(kept), f"num_{role}_videos_shorter_than_clip":
                   settings.count_short(records[role]), f"skipped_{role}_videos": list(skipped.values())}

    # Rank the gallery for each query, level by level.
    labels = {role: np.array([record.label for record in videos]) for role, videos in records.items()}
    train_means, test_means = centering_means(features["train"], features["test"], flags.centering)
    num_neighbors = min(max(KS), len(records["train"]))
    metrics, pictured = {}, None
    for level in levels:
        neighbors = nearest(level_vectors(features["test"], test_means, level),
                            level_vectors(features["train"], train_means, level), num_neighbors)
        metrics[level] = recall_at(neighbors, labels["test"], labels["train"])
        if level == flags.picture_level or pictured is None:
            pictured, pictured_neighbors = level, neighbors

    draw_picture(out / "retrieval.png", records["test"][:flags.picture_queries],
                 [[records["train"][i] for i in row[:flags.picture_neighbors]]
                  for row in pictured_neighbors[:flags.picture_queries]])
    choices = {**asdict(settings), "centering": flags.centering, "seed": flags.seed,
               "skip_bad": flags.skip_bad, "picture_level": pictured}
    card = build_card("retrieval", metrics, choices, weights, csv_files, counts, device,
                      time.monotonic() - start)
    path = write_card(out, card)
    print(f"wrote {path} and {out / 'retrieval.png'} (level {pictured})\n")
    print(markdown_table(card, ("clips", "crops", "centering", "seed")))


def retrieval_parser() -> OneLineParser:
    """The parser of `python -m eval.retrieval`."""
    parser = OneLineParser(prog="python -m eval.retrieval", description=__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--train_csv", required=True, metavar="CSV",
                      help="gallery: frame_dir,number_of_frames,label")
    data.add_argument("--test_csv", required=True, metavar="CSV", help="queries, likewise")
    add_feature_flags(parser)
    protocol = parser.add_argument_group("protocol")
    protocol.add_argument("--levels", default=",".join((*LEVELS, CONCAT)), metavar="LEVEL,...",
                          help=f"which of {', '.join((*LEVELS, CONCAT))} to compare at")
    protocol.add_argument("--centering", choices=("none", "train", "each"), default="none",
                          help="mean taken off: none, the training set's, or each set's own (as CoCLR does)")
    output = parser.add_argument_group("output")
    output.add_argument("--out", default="runs/retrieval", metavar="DIR",
                        help="folder of result.json and retrieval.png; what is there is replaced")
    output.add_argument("--picture_level", choices=(*LEVELS, CONCAT), default="high",
                        help="level shown in the picture; the first of --levels where it is not among them")
    output.add_argument("--picture_queries", type=int, default=8, metavar="N",
                        help="rows: the first test videos")
    output.add_argument("--picture_neighbors", type=int, default=8, metavar="N", help="neighbors in a row")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when the card is written, 2 after a user's mistake, told in one line."""
    parser = retrieval_parser()
    flags = parser.parse_args(arguments)
    try:
        retrieve(flags)
    except InputError as error:
        print(f"{parser.prog}: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
