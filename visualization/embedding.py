"""Videos as points: t-SNE and PCA of a backbone's features, level by level, colored by class.

    python -m visualization.embedding --weights CHECKPOINT --csv_file test.csv --out embedding.png

The features are those that retrieval compares: clip-averaged, the mean over the videos taken off,
L2-normalized; `concat` is the three levels side by side.

Shapes: N videos, C channels of a level.
"""
# ruff: noqa: E402
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
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from dataset.records import read_records
from eval.confusion import add_classes_flag, class_names
from eval.features.extract import load_backbone
from eval.cli import add_feature_flags, read_clip_settings, require_at_least, run_command
from eval.result_card import make_out_dir
from eval.features.per_split import FeatureReader
from eval.features.vectors import LEVEL_CHOICES, add_levels_flag, level_vectors, parse_levels
from utils.distributed import DistContext, run_on_all_ranks, run_on_main, check_same_on_all_ranks
from utils.errors import InputError
from utils.cli import OneLineParser, add_launch_flags, find_not_positive

LEAST_VIDEOS = 4
NUM_COLORS = 20
MARKERS = "osD^vPX*<>"  # another one after every 20 classes
MAX_NAMED = 60  # classes that a legend has room for


class Points(NamedTuple):
    """The videos of one level in the plane."""

    tsne: np.ndarray    # [N, 2]
    pca: np.ndarray     # [N, 2]
    shares: np.ndarray  # [2], share of the variance along each of PCA's axes, 0 to 1


def project(vectors: np.ndarray, perplexity: float, seed: int) -> Points:
    """The points of vectors float32 [N, C], the same for the same seed.

    t-SNE (van der Maaten and Hinton 2008) starts from PCA.
    """
    pca = PCA(n_components=2, svd_solver="full")
    components = pca.fit_transform(vectors.astype(np.float64))
    tsne = TSNE(n_components=2, perplexity=perplexity, init="pca", random_state=seed)
    return Points(tsne.fit_transform(vectors), components, pca.explained_variance_ratio_)


def project_levels(
    features: dict[str, np.ndarray], levels: Sequence[str], perplexity: float, seed: int
) -> dict[str, Points]:
    """Level -> points. InputError where all videos have the same features."""
    means = {level: rows.mean(axis=0, dtype=np.float64).astype(np.float32)
             for level, rows in features.items()}
    points = {}
    for level in levels:
        vectors = level_vectors(features, level, means)
        if not np.ptp(vectors, axis=0).any():
            raise InputError(f"--levels {level}: the features of all {len(vectors)} videos are the same")
        points[level] = project(vectors, perplexity, seed)
    return points


def draw_points(
    path: Path, points: dict[str, Points], labels: np.ndarray, names: dict[int, str], title: str
) -> None:
    """Write the picture: t-SNE above, PCA below, a column for each level; `names`: label -> name."""
    width = 4 * len(points) + 2.5
    figure = Figure(figsize=(width, 8))
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(points), squeeze=False)
    for (above, below), (level, drawn) in zip(grid.T, points.items()):
        for axes, places in ((above, drawn.tsne), (below, drawn.pca)):
            for number, (label, name) in enumerate(names.items()):
                axes.scatter(*places[labels == label].T, s=16, label=name,
                             color=colormaps["tab20"](number % NUM_COLORS),
                             marker=MARKERS[number // NUM_COLORS % len(MARKERS)])
            axes.set_xticks([])
            axes.set_yticks([])
        above.set_title(f"{level}, t-SNE", fontsize=10)
        below.set_title(f"{level}, PCA ({drawn.shares[0]:.0%} and {drawn.shares[1]:.0%} of the variance)",
                        fontsize=10)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout(rect=(0, 0, 1 - 2.5 / width, 0.98))
    if len(names) <= MAX_NAMED:
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="center right", fontsize=8,
                      ncols=1 + (len(names) - 1) // 30)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            canvas.print_png(file)
    except OSError as error:
        raise InputError(f"--out {path}: cannot write the picture: {error.strerror}") from error


def check_perplexity(perplexity: float, num_videos: int, csv_path: str) -> None:
    """InputError unless there are enough videos for t-SNE with this number of neighbors."""
    if num_videos < LEAST_VIDEOS:
        raise InputError(f"{csv_path}: {num_videos} video(s), expected at least {LEAST_VIDEOS}")
    if perplexity >= num_videos:
        raise InputError(f"--perplexity {perplexity:g}: must be less than the number of videos, {num_videos}")


def embed(context: DistContext, flags: argparse.Namespace) -> None:
    """Everything from flags to the picture; all processes extract features, the main one goes on alone."""
    records = run_on_main(context, lambda: read_records(flags.csv_file, labelled=True))
    check_perplexity(flags.perplexity, len(records), flags.csv_file)
    labels = sorted({record.label for record in records})
    names = class_names(flags.classes, flags.csv_file, labels)
    if flags.feature_dir:
        make_out_dir(Path(flags.feature_dir), "--feature_dir")
    backbone, weights = run_on_all_ranks(lambda: load_backbone(flags.weights, flags.net, flags.seed))
    check_same_on_all_ranks({"--weights, SHA-256": weights["checkpoint_sha256"]}, context)
    videos = FeatureReader(backbone, weights, context, flags).read("shown", flags.csv_file, records)
    if videos is None:
        return  # not the main process
    check_perplexity(flags.perplexity, len(videos.records), flags.csv_file)
    points = project_levels(videos.features, parse_levels(flags.levels), flags.perplexity, flags.seed)
    title = (f"{weights['net']}, {weights['weights']}; {len(videos.records)} videos of {flags.csv_file}, "
             f"perplexity {flags.perplexity:g}, seed {flags.seed}" + ", features in bf16" * (flags.amp == "bf16"))
    draw_points(Path(flags.out), points, videos.labels, {label: names[label] for label in labels}, title)
    print(f"wrote {flags.out}")


def check_flags(flags: argparse.Namespace) -> None:
    """InputError for flags that cannot work."""
    parse_levels(flags.levels)
    read_clip_settings(flags)
    require_at_least({"--batch": (flags.batch, 1), "--workers": (flags.num_workers, 0),
                      "--seed": (flags.seed, 0)})
    problem = find_not_positive({"--perplexity": flags.perplexity})
    if problem:
        raise InputError(problem)


def embedding_parser() -> OneLineParser:
    """The parser of `python -m visualization.embedding`."""
    parser = OneLineParser(prog="python -m visualization.embedding", description=__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--csv_file", required=True, metavar="CSV",
                      help="videos: frame_dir,number_of_frames,label")
    add_classes_flag(data)
    add_feature_flags(parser)
    picture = parser.add_argument_group("picture")
    add_levels_flag(picture, ",".join(LEVEL_CHOICES))
    picture.add_argument("--perplexity", type=float, default=30.0, metavar="P",
                         help="t-SNE: about how many neighbors a video has; less than the number of videos")
    picture.add_argument("--out", default="embedding.png", metavar="PNG", help="picture to write")
    add_launch_flags(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when the picture is written; others see `utils.errors`."""
    return run_command(embedding_parser(), check_flags, embed, arguments)


if __name__ == "__main__":
    sys.exit(main())
