"""The flags of pretraining: the published ones in one block, with their spelling and defaults; extensions after it.

Standard library only, so that `--help` and a wrong flag answer before torch is imported.
"""
from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

from utils.cli import (NETS, TIME_POOL, OneLineParser, add_launch_flags, check_launch_flags, check_values,
                       is_first_process)
from utils.errors import InputError

# The terms of models.objective.TERM_WEIGHTS, without importing torch.
LOSS_TERMS = ("instance_high", "motion_mid", "motion_low", "timestamp_high", "timestamp_mid", "timestamp_low", "prototype",
              "graph_high", "graph_mid", "graph_low")


def pretraining_parser() -> argparse.ArgumentParser:
    """Returns the parser of train.py. `dest` says what a value is: `--seq` is `clip_frames`, for example."""
    parser = OneLineParser(prog="train.py", description="Pretrain a 3D CNN on unlabelled videos.")

    published = parser.add_argument_group("published flags")
    flag = published.add_argument
    flag("--net", choices=NETS, default="resnet18",
         help="backbone; resnet18 is r3d18; ..._time_pool has the stem of 3D-ResNets-PyTorch")
    flag("--seq", dest="clip_frames", type=int, default=16, metavar="T",
         help="frames per clip; a multiple of 8 * --sample (16 * with ..._time_pool)")
    flag("--sample", dest="num_clips", type=int, default=2, metavar="V",
         help="consecutive clips per video, at least 2; plus one overview clip")
    flag("--rate", dest="max_stride", type=float, default=3.0, metavar="FRAMES",
         help="largest frame stride, at least 1; drawn uniformly from 1 to it, or to what the video is long enough for")
    flag("--train_batch", dest="batch_per_gpu", type=int, default=64, metavar="B",
         help="batch size per process (GPU), at least 2")
    flag("--lr", type=float, default=1e-3, help="learning rate of Adam")
    flag("--wd", dest="weight_decay", type=float, default=1e-5, help="weight decay (L2)")
    flag("--img_dim", type=int, default=112, metavar="PX", help="side of the square crops, at least 32")
    flag("--workers", dest="num_workers", type=int, default=8, metavar="N",
         help="DataLoader workers per process; 0: load in the process itself")
    flag("--channel", dest="embedding_dim", type=int, default=128, metavar="D", help="embedding width")
    flag("--cluster", dest="num_prototypes", type=int, default=1000, metavar="K", help="number of prototypes")
    flag("--csv_file", default="kinetics.csv", metavar="FILE",
         help="csv lines: frame_dir,number_of_frames[,label], paths relative to the file; header optional, labels ignored")
    flag("--epoch", dest="epochs", type=int, default=100, metavar="N", help="number of epochs")
    flag("--split", dest="graph_start_epoch", type=int, default=20, metavar="EPOCH",
         help="first epoch (from 0) with the graph constraint")
    flag("--resume", nargs="?", const="auto", metavar="CHECKPOINT",
         help="resume from the newest checkpoint in --out, or from the given one; 1 is --resume alone, 0 is none")
    flag("--path", metavar="CHECKPOINT", help="checkpoint for --resume, as in the official code")
    flag("--seed", type=int, default=0, help="seed of weights, order and augmentation, from 0")
    flag("--lr_decay", dest="lr_decay_epoch", type=int, default=70, metavar="EPOCH",
         help="first epoch (from 0) with a tenth of --lr")
    flag("--thres", "-thres", dest="graph_threshold", type=float, default=0.05, metavar="P",
         help="smallest similarity, 0 to 1, of an edge between two videos")

    flag = parser.add_argument_group("method").add_argument
    flag("--init_from", metavar="CHECKPOINT",
         help="start from the weights of a checkpoint of this project, also a converted one, with a new optimizer and "
              "schedule; a run that --resume continues does not load them again")
    flag("--input", dest="input_frames", choices=("rgb", "residual"), default="rgb",
         help="residual: the network sees differences of consecutive frames, in which a static scene is zero; needs "
              "--color_draws clip")
    flag("--color_draws", choices=("frame", "clip"), default="frame",
         help="clip: one color change for all frames of a view, so that colors do not flicker")
    flag("--flip", choices=("on", "off"), default="on",
         help="off: no view is mirrored, for videos that differ only in left and right")
    flag("--swap_background", type=float, default=0.0, metavar="P",
         help="probability, 0 to 1, that what moves little in a video is replaced by that of another video of the batch, on "
              "the device; colors are then changed after it, as with --augment_on device")
    flag("--graph_reduction", choices=("row", "element"), default="row",
         help="row: cross-entropy per video; element: mean over all pairs, as in the official code (N times smaller)")
    flag("--loss_weights", metavar="TERM=W,...",
         help="weights of loss terms, from 0, instead of the published ones: of a term as it is logged, such as "
              "motion_low=0.5, or of all that have the part in their names, as graph=0 or low=0; the later entry counts")
    flag("--reversed_negatives", choices=("on", "off"), default="on",
         help="off: motion contrast without time-reversed features as negatives")
    flag("--queue", dest="queue_rows", type=int, default=1024, metavar="ROWS",
         help="number of past videos whose scores are used for the assignments")
    flag("--queue_start", dest="queue_start_epoch", type=int, default=10, metavar="EPOCH",
         help="first epoch (from 0) whose assignments use the queue")
    flag("--gather_gradient", choices=("local", "all"), default="local",
         help="local: none through other processes' candidates, as in the official code; all: that of the whole batch")

    flag = parser.add_argument_group("precision and speed").add_argument
    flag("--amp", choices=("off", "bf16"), default="off",
         help="bf16: autocast of the network to bfloat16; losses and Sinkhorn stay in float32")
    flag("--decode", choices=("full", "half"), default="full",
         help="half: JPEGs at half resolution where at least 5/6 of 200x150: up to 1.6 times as fast, 1.5 grey levels off")
    flag("--augment_on", choices=("cpu", "device"), default="cpu",
         help="color augmentation: in the DataLoader workers, or in batches on the device (for a GPU that waits for data)")
    flag("--checkpoint_activations", action="store_true",
         help="recompute the backbone in the backward pass: a third more computation, less memory, same result")
    flag("--channels_last", action="store_true",
         help="channels-last memory format: for bf16 on GPUs, and on CPUs with s3d and r2plus1d18")
    flag("--compile", action="store_true", help="torch.compile the network; the first steps are slow")
    flag("--dry_run", type=int, metavar="N", help="profile N steps, print what they mean for the whole run, and exit")

    robustness = parser.add_argument_group("robustness")
    flag = robustness.add_argument
    flag("--max_bad_fraction", type=float, default=0.01, metavar="FRACTION",
         help="fraction of the videos, 0 to 1, that may be unreadable; each is replaced by another video")
    flag("--on_nonfinite", choices=("stop", "skip"), default="stop",
         help="on a non-finite loss or gradient (NaN or Inf): stop the run, or skip the step")
    flag("--max_skips", type=int, default=10, metavar="STEPS",
         help="number of steps in the whole run that --on_nonfinite skip may skip")
    add_launch_flags(parser, published, robustness)

    flag = parser.add_argument_group("run directory").add_argument
    flag("--out", metavar="DIR", help="run directory (default: runs/CSVNAME_NET)")
    flag("--save_every", type=int, default=10, metavar="EPOCHS",
         help="keep every N-th epoch's checkpoint; the newest, written after each epoch, is always kept")
    flag("--save_steps", type=int, metavar="STEPS", help="also save a checkpoint every N steps within an epoch")
    flag("--stop_after", type=int, metavar="EPOCHS",
         help="stop after this many epochs of this start; schedules still follow --epoch")
    flag("--log_every", type=int, default=20, metavar="STEPS", help="write a log line every N steps")
    flag("--monitor_csv", nargs=2, metavar=("TRAIN", "TEST"),
         help="labelled csv files of a small data set: log how well frozen features separate its classes (R@1, ridge top-1)")
    flag("--monitor_every", type=int, default=5, metavar="EPOCHS", help="run the monitor every N epochs")
    return parser


def parse_pretraining_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Returns checked flags; a value that cannot work exits with one line that names the flag."""
    parser = pretraining_parser()
    flags = parser.parse_args(arguments)
    try:
        check_pretraining_flags(flags)
    except InputError as error:
        parser.error(str(error))
    if flags.path:
        flags.resume = flags.path
    if flags.graph_start_epoch >= flags.epochs and is_first_process():
        print(f"train.py: warning: --split {flags.graph_start_epoch} is not below --epoch {flags.epochs}: the graph "
              "constraint is never used", file=sys.stderr)
    return flags


def check_pretraining_flags(flags: argparse.Namespace) -> None:
    """Raises InputError for a value that cannot work."""
    check_values(
        at_least={"--sample": (flags.num_clips, 2), "--img_dim": (flags.img_dim, 32), "--workers": (flags.num_workers, 0),
                  "--channel": (flags.embedding_dim, 1), "--cluster": (flags.num_prototypes, 2),
                  "--split": (flags.graph_start_epoch, 0), "--queue": (flags.queue_rows, 1),
                  "--queue_start": (flags.queue_start_epoch, 0), "--epoch": (flags.epochs, 1),
                  "--train_batch": (flags.batch_per_gpu, 2), "--lr_decay": (flags.lr_decay_epoch, 0),
                  "--wd": (flags.weight_decay, 0), "--seed": (flags.seed, 0), "--save_every": (flags.save_every, 1),
                  "--save_steps": (flags.save_steps, 1), "--max_skips": (flags.max_skips, 0),
                  "--stop_after": (flags.stop_after, 1), "--dry_run": (flags.dry_run, 1),
                  "--monitor_every": (flags.monitor_every, 1), "--log_every": (flags.log_every, 1),
                  "--rate": (flags.max_stride, 1)},
        positive={"--lr": flags.lr},
        fraction={"--thres": flags.graph_threshold, "--max_bad_fraction": flags.max_bad_fraction,
                  "--swap_background": flags.swap_background})
    check_launch_flags(flags)
    parse_loss_weights(flags.loss_weights)
    frames = 16 if flags.net.endswith(TIME_POOL) else 8  # of a timestamp at the high level
    step = frames * flags.num_clips
    if flags.clip_frames < step or flags.clip_frames % step:
        raise InputError(f"--seq {flags.clip_frames}: must be a multiple of {frames} * --sample = {step}, so that every "
                         "level's timestamps can be shared among the clips")
    if flags.seed >= 2**63:
        raise InputError(f"--seed {flags.seed}: must be below 2^63")
    if flags.dry_run and (flags.resume or flags.path):
        raise InputError("--dry_run: starts with new weights; leave --resume and --path out")
    if flags.compile and flags.checkpoint_activations:
        raise InputError("--compile: cannot be combined with --checkpoint_activations")
    if flags.path and flags.resume is None:
        raise InputError(f"--path {flags.path}: names the checkpoint for --resume; add --resume, or name the run directory "
                         "by --out")
    if flags.path and flags.resume != "auto":
        raise InputError(f"--path {flags.path}: --resume names {flags.resume} already")


def parse_loss_weights(text: str | None) -> dict[str, float]:
    """Returns the weight of each term that --loss_weights changes; InputError for a value that cannot work.

    An entry TERM=W applies to the term of that name, or to all terms that have TERM among the `_`-separated parts of their
    names: `graph` is `graph_high`, `graph_mid` and `graph_low`; `low` is `motion_low`, `timestamp_low` and `graph_low`. Of
    several entries for a term the last one counts.
    """
    names = {term: {term, *term.split("_")} for term in LOSS_TERMS}
    weights: dict[str, float] = {}
    for entry in [] if text is None else text.split(","):
        name, _, value = entry.partition("=")
        named = [term for term in LOSS_TERMS if name in names[term]]
        try:
            weight = float(value) if named else math.nan
        except ValueError:
            weight = math.nan
        if not 0 <= weight < math.inf:
            accepted = sorted(set().union(*names.values()))
            raise InputError(f"--loss_weights {entry}: must be TERM=W, W a finite number from 0, TERM one of "
                             f"{', '.join(accepted)}")
        weights |= dict.fromkeys(named, weight)
    return weights
