"""The linear probe trained end to end: a new random clip of each video in every epoch, on a frozen backbone.

    python -m eval.linear_probe --end_to_end --weights CHECKPOINT --train_csv train.csv --test_csv test.csv

Linear probe of CoCLR (Han et al. 2020): the backbone is frozen, in eval mode; its pooled feature is L2-normalized, then
batch norm and a linear layer; SGD with learning rate 0.1, momentum 0.9, weight decay 1e-3; 100 epochs, learning rate
multiplied by 0.1 at 60 and 80. The heads of all --levels share each forward of the backbone; as it is frozen, each is
trained as it would be alone. The state after the last epoch is tested, by softmax averaged over clips and crops.
"""
from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import torch

from eval.classifier.evaluate import ClassifierTask, train_and_test
from eval.classifier.flags import check_training_flags, classifier_parser
from eval.classifier.model import ProbeHead
from eval.cli import add_levels_flag, parse_levels, run_command
from eval.features.extract import LEVEL_CHOICES
from utils.distributed import DistContext

MOMENTUM = 0.9


def probe_end_to_end(context: DistContext, flags: argparse.Namespace) -> int:
    """Trains and tests in this process; returns the exit status."""
    sgd = partial(torch.optim.SGD, momentum=MOMENTUM, weight_decay=flags.weight_decay)
    return train_and_test(context, flags, ClassifierTask(
        "linear_probe_end_to_end", tuple(parse_levels(flags.levels)), True, ProbeHead, sgd,
        {"optimizer": "SGD", "momentum": MOMENTUM, "dropout": None, "normalization": "L2, then batch norm"}))


def main(arguments: Sequence[str]) -> int:
    parser = classifier_parser("eval.linear_probe --end_to_end", __doc__, epochs=100, lr=0.1, lr_decay="60,80",
                               out="runs/linear_probe_end_to_end")
    probe = parser.add_argument_group("probe")
    probe.add_argument("--end_to_end", action="store_true", required=True, help="train the probe end to end")
    add_levels_flag(probe, ",".join(LEVEL_CHOICES))
    return run_command(parser, partial(check_training_flags, parser=parser), probe_end_to_end, arguments)
