"""Flags of what is trained on labelled videos: finetuning and the end-to-end linear probe."""
from __future__ import annotations

import argparse
import sys

from eval.cli import add_feature_flags, check_feature_flags
from eval.holdout import add_group_flag, check_holdout_flags
from eval.metrics import add_classes_flag
from eval.splits import add_split_flags, find_splits
from utils.cli import OneLineParser, add_launch_flags, check_values, is_first_process
from utils.errors import InputError

# Flags (inner name -> spelling) that have no effect where a checkpoint is only tested.
TRAINING_FLAGS = {
    "trained_part": "--train", "weights": "--weights", "net": "--net", "seed": "--seed", "epochs": "--epochs",
    "batch_per_gpu": "--train_batch", "lr": "--lr", "backbone_lr": "--backbone_lr", "lr_decay_epochs": "--lr_decay",
    "weight_decay": "--wd", "dropout": "--dropout", "flip": "--flip", "amp": "--amp", "channels_last": "--channels_last",
    "save_every": "--save_every", "stop_after": "--stop_after", "log_every": "--log_every",
    "val_holdout": "--val_holdout", "group": "--group"}


def classifier_parser(command: str, description: str, *, epochs: int, lr: float, lr_decay: str, out: str) -> OneLineParser:
    """Returns the parser of `python -m COMMAND`, with all flags that both commands have; the rest are its defaults."""
    parser = OneLineParser(prog=f"python -m {command}", description=description)
    add_split_flags(parser)
    add_feature_flags(parser, extracted=False)
    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=int, default=epochs, metavar="N",
        help="passes over the training videos; the state after the last one is tested")
    add("--train_batch", dest="batch_per_gpu", type=int, default=32, metavar="B",
        help="clips per batch of each process (GPU), at least 2")
    add("--lr", type=float, default=lr, help="learning rate of the linear layer")
    add("--lr_decay", dest="lr_decay_epochs", type=read_decay_epochs, default=lr_decay, metavar="EPOCH,...",
        help="epochs (from 0) at which learning rates are multiplied by 0.1, or none")
    add("--wd", dest="weight_decay", type=float, default=1e-3, help="weight decay (L2)")
    add("--flip", choices=("on", "off"), default="on",
        help="off: no training clip is mirrored, for classes that differ only in left and right; --crops 10 still mirrors "
             "clips of tests")
    add("--amp", choices=("off", "bf16"), default="off",
        help="bf16: train the network in bfloat16, losses in float32; tests are always in float32")
    add("--channels_last", action="store_true",
        help="channels-last memory format: for bf16 on GPUs, and for s3d and r2plus1d18 in bf16 on CPUs")
    run = parser.add_argument_group("run directory")
    add = run.add_argument
    add("--out", default=out, metavar="DIR",
        help="run directory, with a folder split_NAME for each of --splits; one that holds the result of another test is "
             "refused")
    add("--resume", nargs="?", const="auto", metavar="CHECKPOINT",
        help="resume from the newest checkpoint in --out, or from the given one; 1 is --resume alone, 0 is none; exact bit "
             "for bit on a CPU with one or two processes. A finished run is only tested")
    add("--test_only", metavar="CHECKPOINT",
        help="only test this checkpoint of a finished run; not with flags of training, nor with an --out that holds a "
             "result")
    add("--save_every", type=int, default=100, metavar="EPOCHS",
        help="keep the checkpoint of every N-th epoch besides the newest, which is written after each epoch")
    add("--stop_after", type=int, metavar="EPOCHS",
        help="stop after this many epochs of this start, before the test; schedules remain those of --epochs")
    add("--log_every", type=int, default=20, metavar="STEPS", help="steps between two lines of the log")
    add("--val_holdout", type=float, metavar="FRACTION",
        help="hold out this fraction of the training videos and log the accuracy on them (center clip and crop) after each "
             "epoch; nothing is chosen by it (default: train on all)")
    add_group_flag(run)
    add_classes_flag(run)
    add_launch_flags(parser)
    return parser


def read_decay_epochs(text: str) -> tuple[int, ...]:
    """Returns increasing epoch numbers from "400,450"; none from "none"."""
    if text == "none":
        return ()
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or list(map(int, parts)) != sorted(set(map(int, parts))):
        raise argparse.ArgumentTypeError(f"{text}: must be increasing epoch numbers, such as 400,450, or none")
    return tuple(map(int, parts))


def check_training_flags(flags: argparse.Namespace, parser: OneLineParser) -> None:
    """Raises InputError for a value, among the flags of both commands, that cannot work."""
    check_feature_flags(flags)
    several = len(find_splits(flags)) > 1
    check_values({"--epochs": (flags.epochs, 1), "--train_batch": (flags.batch_per_gpu, 2), "--wd": (flags.weight_decay, 0),
                  "--save_every": (flags.save_every, 1), "--stop_after": (flags.stop_after, 1),
                  "--log_every": (flags.log_every, 1)}, positive={"--lr": flags.lr})
    check_holdout_flags("--val_holdout", flags.val_holdout, flags.group)
    if flags.test_only:
        for name, flag in TRAINING_FLAGS.items():
            default = parser.get_default(name)
            default = read_decay_epochs(default) if name == "lr_decay_epochs" else default
            if getattr(flags, name, default) != default:
                raise InputError(f"{flag} {getattr(flags, name)}: is for training, and --test_only {flags.test_only} trains "
                                 "nothing; leave it out")
        if flags.resume:
            raise InputError(f"--test_only {flags.test_only}: trains nothing; leave --resume out")
        if several:
            raise InputError(f"--test_only {flags.test_only}: is the state of one split, but --splits or --shots_seeds "
                             "names several; test one, or a whole run by --resume")
        return
    if several and flags.resume not in (None, "auto"):
        raise InputError(f"--resume {flags.resume}: is the state of one split, but --splits or --shots_seeds names several; "
                         "give --resume alone")
    if flags.weights is None:
        raise InputError("--weights: name a checkpoint to start from, or random")
    late = ",".join(str(epoch) for epoch in flags.lr_decay_epochs if epoch >= flags.epochs)
    if late and is_first_process():
        print(f"warning: --lr_decay {late} is not before the end, --epochs {flags.epochs}: the "
              "learning rates do not decay there", file=sys.stderr, flush=True)
