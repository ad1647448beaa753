"""Flags of what is trained on labelled videos: finetuning and the end-to-end linear probe."""
from __future__ import annotations

import argparse
import sys

from eval.confusion import add_classes_flag
from eval.cli import read_clip_settings, require_at_least
from eval.holdout import add_group_flag, check_group_flag
from eval.splits import find_splits
from utils.errors import InputError
from utils.cli import find_not_positive


# Flags (inner name -> as given) that say nothing where a checkpoint is only tested.
OF_TRAINING = {"weights": "--weights", "net": "--net", "seed": "--seed", "epochs": "--epochs",
               "batch_per_gpu": "--train_batch", "lr": "--lr", "lr_decay_epochs": "--lr_decay", "weight_decay": "--wd",
               "amp": "--amp", "channels_last": "--channels_last", "save_every": "--save_every",
               "stop_after": "--stop_after", "log_every": "--log_every", "val_holdout": "--val_holdout",
               "group": "--group", "trained_part": "--train", "backbone_lr": "--backbone_lr", "dropout": "--dropout"}


def add_training_flags(parser: argparse.ArgumentParser, *, epochs: int, lr: float, lr_decay: str, out: str) -> None:
    """Flags of training and of the run directory."""
    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=int, default=epochs, metavar="N",
                          help="passes over the training videos; the state after the last one is tested")
    training.add_argument("--train_batch", dest="batch_per_gpu", type=int, default=32, metavar="B",
                          help="clips in the batch of each process (GPU), at least 2")
    training.add_argument("--lr", type=float, default=lr, help="learning rate of the linear layer")
    training.add_argument("--lr_decay", dest="lr_decay_epochs", type=read_epochs, default=lr_decay,
                          metavar="EPOCH,...",
                          help="first epochs (from 0) at a tenth of the rates before; none: never")
    training.add_argument("--wd", dest="weight_decay", type=float, default=1e-3, help="weight decay (L2)")
    training.add_argument("--amp", choices=("off", "bf16"), default="off",
                          help="bf16: train the network in bfloat16, losses in float32; tests are in float32 always")
    training.add_argument("--channels_last", action="store_true",
                          help="channels innermost in memory: for bf16 on GPUs, and on CPUs for that of s3d and r2plus1d18")

    run = parser.add_argument_group("run directory")
    run.add_argument("--out", default=out, metavar="DIR",
                     help="run directory; a folder split_NAME in it for each of --splits. One that holds the result of "
                          "another test is refused")
    run.add_argument("--resume", nargs="?", const="auto", metavar="CHECKPOINT",
                     help="go on from the newest checkpoint in --out, or from the one named, on a CPU bit for bit with one "
                          "or two processes; a finished run is only tested")
    run.add_argument("--test_only", metavar="CHECKPOINT", help="train nothing, test this checkpoint of a finished run; "
                     "goes without flags of training, and with an --out that holds no result")
    run.add_argument("--save_every", type=int, default=100, metavar="EPOCHS",
                     help="checkpoints kept besides the newest, which is written after each epoch")
    run.add_argument("--stop_after", type=int, metavar="EPOCHS",
                     help="stop after this many epochs of this start, before the test; schedules stay those of "
                          "--epochs")
    run.add_argument("--log_every", type=int, default=20, metavar="STEPS", help="steps between two lines of the log")
    run.add_argument("--val_holdout", type=float, metavar="FRACTION",
                     help="hold out this share of the training videos, and log the accuracy on them (centre clip and "
                          "crop) after each epoch; nothing is chosen by it (default: train on all)")
    add_group_flag(run)
    add_classes_flag(run)


def read_epochs(text: str) -> tuple[int, ...]:
    """Epoch numbers, increasing, from "400,450"; empty from "none"."""
    if text == "none":
        return ()
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or list(map(int, parts)) != sorted(set(map(int, parts))):
        raise argparse.ArgumentTypeError(f"{text}: must be increasing epoch numbers, such as 400,450, or none")
    return tuple(map(int, parts))


def refuse_with_test_only(flags: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """InputError for a flag of training that is not at its default while `--test_only` trains nothing."""
    for name, flag in OF_TRAINING.items():
        default = parser.get_default(name)
        default = read_epochs(default) if name == "lr_decay_epochs" else default
        if flags.test_only and getattr(flags, name, default) != default:
            raise InputError(f"{flag} {getattr(flags, name)}: is of training, and --test_only {flags.test_only} trains "
                             "nothing; leave it out")


def check_training_flags(flags: argparse.Namespace) -> None:
    """InputError for a value, among all flags of both tools, that cannot work."""
    several = len(find_splits(flags)) > 1
    read_clip_settings(flags)
    require_at_least({"--epochs": (flags.epochs, 1), "--train_batch": (flags.batch_per_gpu, 2),
                      "--wd": (flags.weight_decay, 0), "--save_every": (flags.save_every, 1),
                      "--stop_after": (flags.stop_after, 1), "--log_every": (flags.log_every, 1),
                      "--batch": (flags.batch, 1), "--workers": (flags.num_workers, 0), "--seed": (flags.seed, 0)})
    problem = find_not_positive({"--lr": flags.lr})
    if problem:
        raise InputError(problem)
    if flags.val_holdout is not None and not 0 < flags.val_holdout < 1:
        raise InputError(f"--val_holdout {flags.val_holdout}: must be between 0 and 1")
    check_group_flag(flags)
    if flags.test_only and flags.resume:
        raise InputError(f"--test_only {flags.test_only}: trains nothing; leave --resume out")
    if several and flags.test_only:
        raise InputError(f"--test_only {flags.test_only}: is the state of one split, but --splits names several; test "
                         "one, or a whole run by --resume")
    if several and flags.resume not in (None, "auto"):
        raise InputError(f"--resume {flags.resume}: is the state of one split, but --splits names several; give "
                         "--resume alone")
    if not flags.test_only and flags.weights is None:
        raise InputError("--weights: name a checkpoint to start from, or random")
    late = [epoch for epoch in flags.lr_decay_epochs if epoch >= flags.epochs]
    if late and not flags.test_only:
        print(f"warning: --lr_decay {','.join(map(str, late))} is not before the end, --epochs {flags.epochs}: the "
              "rates do not fall there", file=sys.stderr, flush=True)
