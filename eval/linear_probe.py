"""Linear probe: how well a linear classifier separates the classes on features of a frozen backbone.

    python -m eval.linear_probe --weights runs/ucf/checkpoints/epoch_0300.pt --train_csv train.csv --test_csv test.csv
    python -m eval.linear_probe --weights random --net r3d18 --levels low,mid,high,concat \\
        --train_csv train_{split}.csv --test_csv test_{split}.csv --splits 1,2,3
    torchrun --nproc_per_node 4 -m eval.linear_probe --weights ... --train_csv train.csv --test_csv test.csv
    python -m eval.linear_probe --end_to_end ...       new clips and crops in every epoch; see --end_to_end --help

The clip-averaged features of every video are extracted once, without augmentation. On them the heads of the whole grid
--lr x --wd are trained at once, on a part of the training videos; the pair that is best on the rest, the hold-out, is
trained again on all of them, and that one head is tested, once. A vector is L2-normalized; each channel is standardized by
mean and variance of the videos trained on; then comes the linear layer, without dropout. `concat` is low, mid and high side
by side, each L2-normalized.

Shapes: N videos; K classes, which are the training set's labels in order.
"""
from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as `python eval/linear_probe.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from dataset.records import VideoRecord
from eval.cli import (add_feature_flags, add_levels_flag, check_feature_flags, parse_levels, read_clip_settings,
                      run_command)
from eval.features.extract import level_vectors
from eval.features.csv_features import SplitFeatures, read_split_features
from eval.features.probe_heads import DECAY_AT, LrAndDecay, ProbeRecipe, fit_probe
from eval.holdout import add_group_flag, check_holdout_flags, draw_holdout
from eval.metrics import add_classes_flag, class_names, measure_classes
from eval.result_card import SplitResult, build_card, write_card
from eval.splits import EvalSplit, add_split_flags
from utils.cli import OneLineParser, add_launch_flags, check_values
from utils.distributed import DistContext
from utils.errors import InputError


def probe_split(split: SplitFeatures, levels: Sequence[str], flags: argparse.Namespace, context: DistContext) -> SplitResult:
    """Returns what one split gives, after choice, training and test on each level."""
    recipe, pairs = ProbeRecipe(flags.epochs, flags.batch_size, flags.seed), probe_grid(flags)
    classes, targets = np.unique(split.train.labels, return_inverse=True)
    test_targets = np.searchsorted(classes, split.test.labels)
    names = class_names(flags.classes, split.split.train_csv, classes)
    held, holdout = draw_holdout(split.train.records, flags.group, flags.holdout, flags.seed)
    print("held out for choosing: {num_videos_held_out} of {num_videos} training videos, {num_groups_held_out} of "
          "{num_groups} groups ({groups}), {num_classes_without_held_out_video} class(es) with none".format(
              num_videos=len(held), **holdout), flush=True)
    suffix = "" if split.split.name is None else f"_split_{split.split.name}"
    metrics, figures = {}, []
    details: dict[str, Any] = {**split.counts, "num_classes": len(classes), "holdout": holdout, "chosen": {},
                               "holdout_top1": {}, "per_class": {}}
    for level in levels:
        start = time.monotonic()
        pair, holdout_top1, heads = fit_probe(level_vectors(split.train.features, level), targets, len(classes),
                                              held, pairs, recipe, context.device)
        [scores] = heads.scores(level_vectors(split.test.features, level))
        metrics[level], details["per_class"][level], figure = measure_classes(
            scores, test_targets, names, level, Path(flags.out) / f"confusion_{level}{suffix}.png")
        figures.append(figure)
        details["holdout_top1"][level] = [{"lr": lr, "weight_decay": decay, "top1": top1}
                                          for (lr, decay), top1 in zip(pairs, holdout_top1)]
        (lr, weight_decay), best = pair, holdout_top1[pairs.index(pair)]
        details["chosen"][level] = {"lr": lr, "weight_decay": weight_decay, "holdout_top1": best}
        print(f"{level}: lr {lr:g}, weight decay {weight_decay:g} chosen of {len(pairs)} pairs, {100 * best:.1f} % of "
              f"the held-out videos right ({time.monotonic() - start:.1f} s)", flush=True)
    return SplitResult(split.split, metrics, details, figures)


def probe_features(context: DistContext, flags: argparse.Namespace) -> None:
    """Everything from flags to result.json, the confusion figures and the printed table; all processes extract features
    together, the main one does the rest."""
    def check_training_videos(split: EvalSplit, videos: Sequence[VideoRecord]) -> None:
        class_names(flags.classes, split.train_csv, {video.label for video in videos})
        draw_holdout(videos, flags.group, flags.holdout, flags.seed)

    start, levels = time.monotonic(), parse_levels(flags.levels)
    splits, weights = read_split_features(flags, context, check_training_videos)
    if not context.is_main:
        return
    results = [probe_split(split, levels, flags, context) for split in splits]
    lrs, decays = map(dict.fromkeys, zip(*probe_grid(flags)))
    settings = {**read_clip_settings(flags).facts(), "epochs": flags.epochs, "batch_size": flags.batch_size,
                "lr_decay_at": list(DECAY_AT), "lr_grid": list(lrs), "weight_decay_grid": list(decays), "dropout": None,
                "normalization": "L2, then each channel standardized by the videos trained on",
                "holdout": flags.holdout, "group": flags.group, "seed": flags.seed, "skip_bad": flags.skip_bad,
                "amp": flags.amp}
    card = build_card("linear probe on features", results, settings, weights, context.device, time.monotonic() - start)
    write_card(Path(flags.out), card, ("clips", "crops", "seed"), results)


def probe_grid(flags: argparse.Namespace) -> list[LrAndDecay]:
    """Returns every pair of --lr and --wd, lists of distinct numbers such as "0.1,1"."""
    grid = []
    for flag, text in (("--lr", flags.lr), ("--wd", flags.weight_decay)):
        try:
            grid.append([float(part) for part in text.split(",")])
        except ValueError as error:
            raise InputError(f"{flag} {text}: must be numbers, such as 0.1,1") from error
        if len(set(grid[-1])) < len(grid[-1]):
            raise InputError(f"{flag} {text}: names a number twice")
    return list(itertools.product(*grid))


def check_linear_probe_flags(flags: argparse.Namespace) -> None:
    check_feature_flags(flags)
    check_holdout_flags("--holdout", flags.holdout, flags.group)
    check_values({"--epochs": (flags.epochs, 1), "--batch_size": (flags.batch_size, 1)})
    for lr, weight_decay in probe_grid(flags):
        check_values({"--wd": (weight_decay, 0)}, positive={"--lr": lr})


def linear_probe_parser() -> OneLineParser:
    """Returns the parser of `python -m eval.linear_probe`, without `--end_to_end`."""
    parser = OneLineParser(prog="python -m eval.linear_probe", description=__doc__)
    add_split_flags(parser)
    add_feature_flags(parser)
    protocol = parser.add_argument_group("protocol")
    add = protocol.add_argument
    add("--end_to_end", action="store_true",
        help="train on new clips and crops in every epoch; for its flags see --end_to_end --help")
    add_levels_flag(protocol, "high")
    add("--lr", default="0.1,0.2,0.5,1", metavar="LR,...",
        help="learning rates to choose from; a tenth after 60 %% and again after 80 %% of the epochs")
    add("--wd", dest="weight_decay", default="1e-4,1e-3,1e-2,1e-1", metavar="WD,...",
        help="weight decays (L2) to choose from")
    add("--epochs", type=int, default=100, metavar="N", help="passes over the training videos")
    add("--batch_size", type=int, default=256, metavar="B", help="videos in a step of SGD")
    add("--holdout", type=float, default=0.2, metavar="FRACTION",
        help="share of the training videos held out for the choice")
    add_group_flag(protocol)
    output = parser.add_argument_group("output")
    output.add_argument("--out", default="runs/linear_probe", metavar="DIR",
                        help="folder of result.json and confusion_LEVEL.png; existing ones are replaced")
    add_classes_flag(output)
    add_launch_flags(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    way = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    way.add_argument("--end_to_end", action="store_true")
    if way.parse_known_args(arguments)[0].end_to_end:
        from eval.classifier import end_to_end_probe

        return end_to_end_probe.main(arguments)
    return run_command(linear_probe_parser(), check_linear_probe_flags, probe_features, arguments)


if __name__ == "__main__":
    sys.exit(main())
