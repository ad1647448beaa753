"""Videos as points: t-SNE and PCA of a backbone's features, level by level, colored by class.

    python -m visualization.embedding --weights CHECKPOINT --csv_file test.csv --out embedding.png

The features are those that retrieval compares: averaged over clips, centered on their mean over the videos,
L2-normalized; `concat` is the three levels side by side. Shapes: N videos, C channels of a level.
"""
from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as `python visualization/embedding.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from dataset.records import VideoRecord
from eval.cli import add_feature_flags, add_levels_flag, check_feature_flags, parse_levels, run_command
from eval.features.csv_features import read_listed_features
from eval.features.extract import LEVEL_CHOICES, level_vectors
from eval.metrics import add_classes_flag, class_names
from utils.cli import OneLineParser, add_launch_flags, check_values
from utils.distributed import DistContext
from utils.errors import InputError
from utils.figures import check_figure_path, new_figure, save_figure

LEAST_VIDEOS = 4
NUM_COLORS = 20
MARKERS = "osD^vPX*<>"  # another one after every 20 classes
MAX_NAMED = 60  # classes that a legend has room for


class Projections(NamedTuple):
    """The videos of one level in the plane."""

    tsne: np.ndarray    # [N, 2]
    pca: np.ndarray     # [N, 2]
    shares: np.ndarray  # [2], share of the variance along each of PCA's axes, 0 to 1


def project(vectors: np.ndarray, perplexity: float, seed: int) -> Projections:
    """Returns the projections of vectors float32 [N, C]; t-SNE (van der Maaten and Hinton 2008) starts from PCA."""
    pca = PCA(n_components=2, svd_solver="full")
    components = pca.fit_transform(vectors.astype(np.float64))
    tsne = TSNE(n_components=2, perplexity=perplexity, init="pca", random_state=seed)
    return Projections(tsne.fit_transform(vectors), components, pca.explained_variance_ratio_)


def project_levels(features: dict[str, np.ndarray], levels: Sequence[str], perplexity: float,
                   seed: int) -> dict[str, Projections]:
    """Returns level -> projections; InputError where all videos have the same features."""
    means = {level: rows.mean(axis=0, dtype=np.float64).astype(np.float32) for level, rows in features.items()}
    projections = {}
    for level in levels:
        vectors = level_vectors(features, level, means)
        if not np.ptp(vectors, axis=0).any():
            raise InputError(f"--levels {level}: the features of all {len(vectors)} videos are the same")
        projections[level] = project(vectors, perplexity, seed)
    return projections


def draw_embedding(projections: dict[str, Projections], labels: np.ndarray, names: dict[int, str], title: str) -> Figure:
    """Returns the figure: t-SNE above, PCA below, a column for each level; `names`: label -> name."""
    figure = new_figure(title, figsize=(4 * len(projections) + 2, 8), layout="constrained")
    grid = figure.subplots(2, len(projections), squeeze=False)
    for (above, below), (level, projected) in zip(grid.T, projections.items()):
        for axes, points in ((above, projected.tsne), (below, projected.pca)):
            for number, (label, name) in enumerate(names.items()):
                axes.scatter(*points[labels == label].T, s=16, label=name, color=colormaps["tab20"](number % NUM_COLORS),
                             marker=MARKERS[number // NUM_COLORS % len(MARKERS)])
            axes.set_xticks([])
            axes.set_yticks([])
        above.set_title(f"{level}, t-SNE", fontsize=10)
        first, second = projected.shares
        below.set_title(f"{level}, PCA ({first:.0%} and {second:.0%} of the variance)", fontsize=10)
    if len(names) <= MAX_NAMED:
        figure.legend(grid[0, 0].collections, names.values(), loc="outside right center", fontsize=8,
                      ncols=1 + (len(names) - 1) // 30)
    return figure


def check_perplexity(perplexity: float, num_videos: int, csv_path: str) -> None:
    """Raises InputError unless there are enough videos for t-SNE with this number of neighbors."""
    if num_videos < LEAST_VIDEOS or perplexity >= num_videos:
        raise InputError(f"{csv_path}: {num_videos} video(s), expected at least {LEAST_VIDEOS}, and more than --perplexity "
                         f"{perplexity:g}")


def embed(context: DistContext, flags: argparse.Namespace) -> None:
    """Writes the figure; all processes extract features, the main one does the rest alone."""
    def check_videos(records: list[VideoRecord]) -> None:
        check_perplexity(flags.perplexity, len(records), flags.csv_file)
        class_names(flags.classes, flags.csv_file, {record.label for record in records})

    videos, weights = read_listed_features("shown", True, flags, context, check_videos)
    if videos is None:
        return  # not the main process
    check_perplexity(flags.perplexity, len(videos.records), flags.csv_file)
    projections = project_levels(videos.features, parse_levels(flags.levels), flags.perplexity, flags.seed)
    title = (f"{weights['net']}, {weights['weights']}; {len(videos.records)} videos of {flags.csv_file}, "
             f"perplexity {flags.perplexity:g}, seed {flags.seed}" + ", features in bf16" * (flags.amp == "bf16")
             + f", frames {flags.clip_order}" * (flags.clip_order != "natural"))
    names = class_names(flags.classes, flags.csv_file, videos.labels)
    figure = draw_embedding(projections, videos.labels, names, title)
    save_figure(figure, flags.out, "--out")
    print(f"wrote {flags.out}")


def check_embedding_flags(flags: argparse.Namespace) -> None:
    check_feature_flags(flags)
    check_figure_path(flags.out)
    check_values(positive={"--perplexity": flags.perplexity})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OneLineParser(prog="python -m visualization.embedding", description=__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--csv_file", required=True, metavar="CSV", help="videos: frame_dir,number_of_frames,label")
    add_classes_flag(data)
    add_feature_flags(parser)
    figure = parser.add_argument_group("figure")
    add_levels_flag(figure, ",".join(LEVEL_CHOICES))
    figure.add_argument("--perplexity", type=float, default=30.0, metavar="P",
                        help="t-SNE: about how many neighbors a video has; less than the number of videos")
    figure.add_argument("--out", type=Path, default="embedding.png", metavar="PNG", help="figure to write")
    add_launch_flags(parser)
    return run_command(parser, check_embedding_flags, embed, arguments)


if __name__ == "__main__":
    sys.exit(main())
