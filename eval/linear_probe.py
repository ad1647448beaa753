"""Linear probe: how well a linear classifier tells the classes by the features of a frozen backbone.

    python -m eval.linear_probe --weights runs/ucf/checkpoints/epoch_0300.pt --train_csv train.csv --test_csv test.csv
    python -m eval.linear_probe --weights random --net r3d18 --levels low,mid,high,concat \\
        --train_csv train_{split}.csv --test_csv test_{split}.csv --splits 1,2,3
    torchrun --nproc_per_node 4 -m eval.linear_probe --weights ... --train_csv train.csv --test_csv test.csv

The clip-averaged features of every video are extracted once, without augmentation. On them the heads of the whole
grid --lr x --wd are trained at once, on a part of the training videos; the pair that is best on the rest, the
hold-out, is trained again on all of them, and that one head is tested, once. (The other way, end to end, sees new
clips and crops in every epoch.) A vector is L2-normalized; each channel is standardized by mean and variance of the
videos trained on; then comes the linear layer, without dropout. `concat` is low, mid and high, each L2-normalized.

Shapes: N videos; C channels; K classes, which are the training set's labels in order; G pairs of the grid.
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
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from dataset.records import VideoRecord
from eval.classifier import end_to_end_probe
from eval.confusion import add_classes_flag, class_names, confusion_matrix, draw_confusion
from eval.cli import (add_feature_flags, check_feature_flags,
                        read_clip_settings, require_at_least, run_command)
from eval.holdout import add_holdout_flags, check_holdout_flags, draw_holdout
from eval.metrics import accuracies, named, per_class
from eval.features.probe_heads import DECAY_AT, Choice, Heads, Pair, Recipe, choose_pair, train_heads
from eval.result_card import Outcome, build_card, markdown_table, write_card
from eval.features.per_split import SplitSets, read_sets
from eval.splits import Split, add_split_flags
from eval.features.vectors import add_levels_flag, level_vectors, parse_levels
from utils.distributed import DistContext
from utils.errors import InputError
from utils.cli import OneLineParser, add_launch_flags, find_not_positive


@dataclass(frozen=True)
class Probe:
    """What the training videos of one level gave: the choice, and its head, trained on all of them."""

    choice: Choice
    heads: Heads  # of one pair


def fit_probe(vectors: np.ndarray, targets: np.ndarray, num_classes: int, held: np.ndarray, pairs: Sequence[Pair],
              recipe: Recipe, device: torch.device) -> Probe:
    """The probe of training vectors float32 [N, C], classes int64 [N] and the held-out among them, bool [N]."""
    choice = choose_pair(vectors, targets, num_classes, held, pairs, recipe, device)
    heads = train_heads(vectors, targets, num_classes, [choice.pair], recipe, device)
    if not heads.weights.isfinite().all():
        lr, weight_decay = choice.pair
        raise InputError(f"--lr {lr}, --wd {weight_decay}: diverges on all training videos; give smaller ones")
    return Probe(choice, heads)


def probe_split(sets: SplitSets, levels: Sequence[str], flags: argparse.Namespace, context: DistContext) -> Outcome:
    """Choose, train and test on one split, level by level; writes the confusion pictures."""
    recipe, pairs = Recipe(flags.epochs, flags.batch_size, flags.seed), grid(flags)
    classes, targets = np.unique(sets.train.labels, return_inverse=True)
    test_targets = np.searchsorted(classes, sets.test.labels)
    names = class_names(flags.classes, sets.split.train_csv, classes)
    holdout = draw_holdout(sets.train.records, flags.group, flags.holdout, flags.seed)
    print(holdout.line(), flush=True)

    metrics: dict[str, dict[str, float]] = {}
    details: dict[str, Any] = {**sets.counts(), "num_classes": len(classes), "holdout": holdout.facts, "chosen": {},
                               "holdout_top1": {}, "per_class": {}}
    for level in levels:
        start = time.monotonic()
        probe = fit_probe(level_vectors(sets.train.features, level), targets, len(classes), holdout.held, pairs, recipe,
                          context.device)
        [scores] = probe.heads.scores(level_vectors(sets.test.features, level))
        metrics[level] = accuracies(scores, test_targets)
        lr, weight_decay = probe.choice.pair
        best = probe.choice.accuracies[pairs.index(probe.choice.pair)]
        details["chosen"][level] = {"lr": lr, "weight_decay": weight_decay, "holdout_top1": best}
        details["holdout_top1"][level] = [{"lr": pair[0], "weight_decay": pair[1], "top1": accuracy}
                                          for pair, accuracy in zip(pairs, probe.choice.accuracies)]
        details["per_class"][level] = [named(row, classes, names) for row in per_class(scores, test_targets)]
        print(f"{level}: lr {lr:g}, weight decay {weight_decay:g} chosen of {len(pairs)} pairs, {100 * best:.1f} % of "
              f"the held-out videos right ({time.monotonic() - start:.1f} s)", flush=True)
        suffix = "" if sets.split.name is None else f"_split_{sets.split.name}"
        draw_confusion(Path(flags.out) / f"confusion_{level}{suffix}.png",
                       confusion_matrix(test_targets, scores.argmax(axis=1), len(classes)),
                       [names[label] for label in classes], f"{level}: top-1 {100 * metrics[level]['top1']:.1f} %")
    return Outcome(sets.split, metrics, details)


def check_training_videos(flags: argparse.Namespace, split: Split, videos: Sequence[VideoRecord]) -> None:
    """InputError where --classes, --group or --holdout does not fit the training videos of a split."""
    class_names(flags.classes, split.train_csv, {video.label for video in videos})
    draw_holdout(videos, flags.group, flags.holdout, flags.seed)


def probe_features(context: DistContext, flags: argparse.Namespace) -> None:
    """Everything from flags to result.json, the confusion pictures and the printed table.

    All processes extract features together; the main one goes on alone.
    """
    start = time.monotonic()
    levels = parse_levels(flags.levels)
    all_sets, weights = read_sets(flags, context, partial(check_training_videos, flags))
    if not context.is_main:
        return
    outcomes = [probe_split(sets, levels, flags, context) for sets in all_sets]
    choices = {**asdict(read_clip_settings(flags)), "epochs": flags.epochs, "batch_size": flags.batch_size,
               "lr_decay_at": list(DECAY_AT), "lr_grid": parse_numbers("--lr", flags.lr),
               "weight_decay_grid": parse_numbers("--wd", flags.weight_decay), "dropout": None,
               "normalization": "L2, then each channel standardized by the videos trained on",
               "holdout": flags.holdout, "group": flags.group, "seed": flags.seed, "skip_bad": flags.skip_bad,
               "amp": flags.amp}
    card = build_card("linear probe on features", outcomes, choices, weights, context.device, time.monotonic() - start)
    print(f"wrote {write_card(Path(flags.out), card)}\n")
    print(markdown_table(card, ("clips", "crops", "seed")), flush=True)


def grid(flags: argparse.Namespace) -> list[Pair]:
    """Every pair of --lr and --wd."""
    return list(itertools.product(parse_numbers("--lr", flags.lr), parse_numbers("--wd", flags.weight_decay)))


def parse_numbers(flag: str, text: str) -> list[float]:
    """The distinct numbers of "0.1,1"."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"{flag} {text}: must be numbers, such as 0.1,1") from error
    if len(set(numbers)) < len(numbers):
        raise InputError(f"{flag} {text}: names a number twice")
    return numbers


def check_flags(flags: argparse.Namespace) -> None:
    """InputError for flags that cannot work."""
    parse_levels(flags.levels)
    check_feature_flags(flags)
    check_holdout_flags(flags)
    require_at_least({"--epochs": (flags.epochs, 1), "--batch_size": (flags.batch_size, 1)})
    for lr, weight_decay in grid(flags):
        require_at_least({"--wd": (weight_decay, 0)})
        problem = find_not_positive({"--lr": lr})
        if problem:
            raise InputError(problem)


def linear_probe_parser() -> OneLineParser:
    """The parser of `python -m eval.linear_probe`."""
    parser = OneLineParser(prog="python -m eval.linear_probe", description=__doc__)
    add_split_flags(parser)
    add_feature_flags(parser)
    protocol = parser.add_argument_group("protocol")
    protocol.add_argument("--end_to_end", action="store_true",
                          help="the other way; its own flags are told by --end_to_end --help")
    add_levels_flag(protocol, "high")
    protocol.add_argument("--lr", default="0.1,0.2,0.5,1", metavar="LR,...",
                          help="learning rates to choose from; a tenth after 60 %% and again after 80 %% of the epochs")
    protocol.add_argument("--wd", dest="weight_decay", default="1e-4,1e-3,1e-2,1e-1", metavar="WD,...",
                          help="weight decays (L2) to choose from")
    protocol.add_argument("--epochs", type=int, default=100, metavar="N", help="passes over the training videos")
    protocol.add_argument("--batch_size", type=int, default=256, metavar="B", help="videos in a step of SGD")
    add_holdout_flags(protocol)
    output = parser.add_argument_group("output")
    output.add_argument("--out", default="runs/linear_probe", metavar="DIR",
                        help="folder of result.json and confusion_LEVEL.png; what is there is replaced")
    add_classes_flag(output)
    add_launch_flags(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when the card is written; others see `utils.errors`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--end_to_end" in arguments:
        return end_to_end_probe.main(arguments)
    return run_command(linear_probe_parser(), check_flags, probe_features, arguments)


if __name__ == "__main__":
    sys.exit(main())
