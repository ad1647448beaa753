"""The linear probe trained end to end: a new random clip of each video in every epoch, on a frozen backbone.

    python -m eval.linear_probe --end_to_end --weights CHECKPOINT --train_csv train.csv --test_csv test.csv

CoCLR's linear probe (Han et al. 2020): the backbone is frozen, in eval mode; its pooled feature is L2-normalized, then
batch norm and a linear layer; SGD at 0.1, momentum 0.9, weight decay 1e-3, 100 epochs, a tenth of the rate from 60 and
again from 80. The heads of all --levels are trained side by side on one pass of the backbone; as it is frozen, each
becomes what it would be alone. The state after the last epoch is tested, by softmax averaged over clips and crops.
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import torch

from eval.classifier.model import ProbeHead
from eval.cli import add_clip_flags, add_reading_flags, add_weight_flags, run_command
from eval.splits import add_split_flags
from eval.classifier.evaluate import Task, supervise
from eval.classifier.flags import add_training_flags, check_training_flags, refuse_with_test_only
from eval.features.vectors import LEVEL_CHOICES, add_levels_flag, parse_levels
from utils.distributed import DistContext
from utils.cli import OneLineParser, add_launch_flags

MOMENTUM = 0.9
RECIPE = ("epochs", "batch_per_gpu", "lr", "weight_decay", "lr_decay_epochs", "amp", "seed", "val_holdout", "group")
FACTS = {"optimizer": "SGD", "momentum": MOMENTUM, "dropout": None, "normalization": "L2, then batch norm"}


def probe(context: DistContext, flags: argparse.Namespace) -> int:
    """The whole evaluation in this process; returns the exit status."""
    sgd = partial(torch.optim.SGD, momentum=MOMENTUM, weight_decay=flags.weight_decay)
    return supervise(context, flags, Task("linear_probe_end_to_end", tuple(parse_levels(flags.levels)), True, ProbeHead,
                                          sgd, RECIPE, FACTS))


def check_flags(flags: argparse.Namespace) -> None:
    """InputError for a value that cannot work."""
    refuse_with_test_only(flags, probe_parser())
    parse_levels(flags.levels)
    check_training_flags(flags)


def probe_parser() -> OneLineParser:
    """The parser of `python -m eval.linear_probe --end_to_end`."""
    parser = OneLineParser(prog="python -m eval.linear_probe --end_to_end", description=__doc__)
    parser.add_argument("--end_to_end", action="store_true", required=True, help="this way of probing")
    add_split_flags(parser)
    add_weight_flags(parser, required=False)
    add_levels_flag(parser.add_argument_group("levels"), ",".join(LEVEL_CHOICES))
    add_training_flags(parser, epochs=100, lr=0.1, lr_decay="60,80", out="runs/linear_probe_end_to_end")
    add_clip_flags(parser)
    add_reading_flags(parser)
    add_launch_flags(parser)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0 when all is done, 2 after a user's mistake, told in one line."""
    return run_command(probe_parser(), check_flags, probe, arguments)
