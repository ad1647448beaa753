"""Finetuning: action recognition from pretrained weights, with a linear head on the pooled high-level feature.

    python -m eval.finetune --weights runs/ucf/checkpoints/epoch_0300.pt --train_csv train.csv --test_csv test.csv
    python -m eval.finetune --weights CHECKPOINT --train_csv train_{split}.csv --test_csv test_{split}.csv \\
        --splits 1,2,3 --multiprocessing-distributed
    python -m eval.finetune --train scratch --net r3d18 --train_csv train.csv --test_csv test.csv
    python -m eval.finetune ... --resume
    python -m eval.finetune --test_only CHECKPOINT --train_csv train.csv --test_csv test.csv --crops 10 --out ten_crops

Defaults are those of CoCLR (Han et al. 2020): dropout 0.9; Adam with learning rates 1e-3 (head) and 1e-4 (backbone),
weight decay 1e-3; batch norms in training mode; 500 epochs, learning rates multiplied by 0.1 at 400 and 450; 32 clips
per GPU. The state after the last epoch is tested, by softmax averaged over clips and crops; nothing is chosen on the test
videos.
"""
from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as `python eval/finetune.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
from collections.abc import Sequence
from functools import partial

import torch

from eval.classifier.evaluate import ClassifierTask, train_and_test
from eval.classifier.flags import check_training_flags, classifier_parser
from eval.classifier.model import DropoutHead
from eval.cli import run_command
from eval.features.backbone import RANDOM
from utils.cli import OneLineParser, check_values
from utils.distributed import DistContext
from utils.errors import InputError

HEAD, ALL, SCRATCH = "head", "all", "scratch"
BACKBONE_LR = 1e-4


def finetune(context: DistContext, flags: argparse.Namespace) -> int:
    """Trains and tests in this process; returns the exit status."""
    adam = partial(torch.optim.Adam, weight_decay=flags.weight_decay, fused=context.device.type == "cuda")
    return train_and_test(context, flags, ClassifierTask(
        "finetune", ("high",), flags.trained_part == HEAD, partial(DropoutHead, dropout=flags.dropout), adam,
        {"optimizer": "Adam", "normalization": None}, ("trained_part", "backbone_lr", "dropout")))


def check_finetune_flags(flags: argparse.Namespace) -> None:
    """Raises InputError for a value that cannot work; sets the defaults that depend on `--train`."""
    if flags.trained_part == SCRATCH:
        flags.weights = flags.weights or RANDOM
    check_training_flags(flags, finetune_parser())
    if flags.trained_part != ALL and flags.backbone_lr is not None:
        raise InputError(f"--backbone_lr {flags.backbone_lr}: is for --train {ALL}, not --train {flags.trained_part}")
    if flags.trained_part == SCRATCH and flags.weights != RANDOM:
        raise InputError(f"--train {SCRATCH}: starts from random weights, but --weights names {flags.weights}")
    if flags.backbone_lr is None:
        flags.backbone_lr = {ALL: BACKBONE_LR, SCRATCH: flags.lr, HEAD: None}[flags.trained_part]
    check_values(positive={"--backbone_lr": flags.backbone_lr})
    if not 0 <= flags.dropout < 1:
        raise InputError(f"--dropout {flags.dropout}: must be at least 0 and below 1")


def finetune_parser() -> OneLineParser:
    parser = classifier_parser("eval.finetune", __doc__, epochs=500, lr=1e-3, lr_decay="400,450", out="runs/finetune")
    add = parser.add_argument_group("finetuning").add_argument
    add("--train", dest="trained_part", choices=(HEAD, ALL, SCRATCH), default=ALL,
        help="all: the backbone, at --backbone_lr, and the linear layer; head: the linear layer on a frozen backbone in "
             "eval mode (CoCLR's linear probe, with another head and optimizer, is eval.linear_probe --end_to_end); "
             "scratch: all from random weights, at --lr")
    add("--backbone_lr", type=float, help=f"learning rate of the backbone with --train all (default: {BACKBONE_LR:g})")
    add("--dropout", type=float, default=0.9, metavar="P", help="dropout probability before the head")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(finetune_parser(), check_finetune_flags, finetune, arguments)


if __name__ == "__main__":
    sys.exit(main())
