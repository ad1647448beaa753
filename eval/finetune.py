"""Finetuning: action recognition from pretrained weights, a linear head on the pooled high-level feature.

    python -m eval.finetune --weights runs/ucf/checkpoints/epoch_0300.pt --train_csv train.csv --test_csv test.csv
    python -m eval.finetune --weights CHECKPOINT --train_csv train_{split}.csv --test_csv test_{split}.csv \\
        --splits 1,2,3 --multiprocessing-distributed
    python -m eval.finetune --train scratch --weights random --net r3d18 --train_csv train.csv --test_csv test.csv
    python -m eval.finetune ... --resume                         go on
    python -m eval.finetune --test_only CHECKPOINT --train_csv train.csv --test_csv test.csv --crops 10 --out ten_crops

Defaults are CoCLR's (Han et al. 2020): dropout 0.9, Adam, head 1e-3, backbone 1e-4, weight decay 1e-3, batch norms in
training mode, 500 epochs, a tenth of the rates from 400 and again from 450, 32 clips a GPU. The state after the last
epoch is tested, by softmax averaged over clips and crops; nothing is chosen by the test videos.
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

from eval.classifier.model import DropoutHead
from eval.features.extract import RANDOM
from eval.cli import add_clip_flags, add_reading_flags, add_weight_flags, run_command
from eval.splits import add_split_flags
from eval.classifier.evaluate import Task, supervise
from eval.classifier.flags import add_training_flags, check_training_flags, refuse_with_test_only
from utils.distributed import DistContext
from utils.errors import InputError
from utils.cli import OneLineParser, add_launch_flags, find_not_positive

HEAD, ALL, SCRATCH = "head", "all", "scratch"
RECIPE = ("trained_part", "epochs", "batch_per_gpu", "lr", "backbone_lr", "weight_decay", "lr_decay_epochs", "dropout",
          "amp", "seed", "val_holdout", "group")
BACKBONE_LR = 1e-4
FACTS = {"optimizer": "Adam", "normalization": None}


def finetune(context: DistContext, flags: argparse.Namespace) -> int:
    """The whole evaluation in this process; returns the exit status."""
    adam = partial(torch.optim.Adam, weight_decay=flags.weight_decay, fused=context.device.type == "cuda")
    return supervise(context, flags, Task("finetune", ("high",), flags.trained_part == HEAD,
                                          partial(DropoutHead, dropout=flags.dropout), adam, RECIPE, FACTS))


def check_flags(flags: argparse.Namespace) -> None:
    """InputError for a value that cannot work."""
    refuse_with_test_only(flags, finetune_parser())
    if flags.trained_part != ALL and flags.backbone_lr is not None:
        raise InputError(f"--backbone_lr {flags.backbone_lr}: is for --train {ALL}, not --train {flags.trained_part}")
    if flags.trained_part == ALL and flags.backbone_lr is None:
        flags.backbone_lr = BACKBONE_LR
    if flags.trained_part == SCRATCH:
        flags.weights = flags.weights or RANDOM
        if flags.weights != RANDOM:
            raise InputError(f"--train {SCRATCH}: starts from random weights, but --weights names {flags.weights}")
        flags.backbone_lr = flags.lr
    check_training_flags(flags)
    problem = flags.backbone_lr is not None and find_not_positive({"--backbone_lr": flags.backbone_lr})
    if problem:
        raise InputError(problem)
    if not 0 <= flags.dropout < 1:
        raise InputError(f"--dropout {flags.dropout}: must be at least 0 and below 1")


def finetune_parser() -> OneLineParser:
    """The parser of `python -m eval.finetune`."""
    parser = OneLineParser(prog="python -m eval.finetune", description=__doc__)
    add_split_flags(parser)
    add_weight_flags(parser, required=False)
    add_training_flags(parser, epochs=500, lr=1e-3, lr_decay="400,450", out="runs/finetune")
    recipe = parser.add_argument_group("finetuning")
    recipe.add_argument("--train", dest="trained_part", choices=(HEAD, ALL, SCRATCH), default=ALL,
                        help="all: backbone and linear layer, the backbone at --backbone_lr; head: the linear layer alone, "
                             "on a frozen backbone in eval mode (CoCLR's linear probe has another head and optimizer: "
                             "eval.linear_probe --end_to_end); scratch: all from random weights, at --lr")
    recipe.add_argument("--backbone_lr", type=float,
                        help=f"learning rate of the backbone with --train all ({BACKBONE_LR:g} if not given)")
    recipe.add_argument("--dropout", type=float, default=0.9, metavar="P",
                        help="share of features zeroed before the head")
    add_clip_flags(parser)
    add_reading_flags(parser)
    add_launch_flags(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when all is done, 2 after a user's mistake, told in one line."""
    return run_command(finetune_parser(), check_flags, finetune, arguments)


if __name__ == "__main__":
    sys.exit(main())
