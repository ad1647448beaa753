"""The flags of pretraining: the published ones in their spelling, ours beside them, and what is refused.

Standard library only, so that `--help` and a wrong flag answer before torch is imported.
"""
from __future__ import annotations

import argparse
import sys
from typing import Sequence

from utils.cli import NETS, OneLineParser, add_launch_flags, find_launch_problem, find_not_positive, find_too_small


def pretraining_parser() -> argparse.ArgumentParser:
    """All flags of train.py. Inner names say what a value is: `--seq` is `clip_frames`, `--split` `graph_start_epoch`."""
    parser = OneLineParser(prog="train.py", description="Pretrain a 3D CNN on unlabelled videos.")

    data = parser.add_argument_group("data")
    data.add_argument("--csv_file", default="kinetics.csv", metavar="FILE",
                      help="videos, one a line: frame_dir,number_of_frames[,label]; header optional, label ignored, "
                           "relative folders are relative to the csv")
    data.add_argument("--seq", dest="clip_frames", type=int, default=16, metavar="T",
                      help="frames of a clip; a multiple of 8 * --sample")
    data.add_argument("--sample", dest="num_clips", type=int, default=2, metavar="V",
                      help="consecutive clips of a video, at least 2; the overview comes on top")
    data.add_argument("--rate", dest="max_stride", type=float, default=3.0, metavar="FRAMES",
                      help="largest frame stride, at least 1; drawn from 1 up to it, as far as the video is long enough")
    data.add_argument("--img_dim", type=int, default=112, metavar="PX", help="side of the square crops, at least 32")
    data.add_argument("--workers", dest="num_workers", type=int, default=8, metavar="N",
                      help="loader processes of each training process; 0 loads in it")

    data.add_argument("--max_bad_fraction", type=float, default=0.01, metavar="SHARE",
                      help="share of the videos, 0 to 1, that may turn out unreadable; others stand in for them")

    model = parser.add_argument_group("model")
    model.add_argument("--net", choices=NETS, default="resnet18", help="backbone; resnet18 is r3d18")
    model.add_argument("--channel", dest="embedding_dim", type=int, default=128, metavar="D", help="embedding width")
    model.add_argument("--cluster", dest="num_prototypes", type=int, default=1000, metavar="K",
                       help="number of prototypes")

    method = parser.add_argument_group("method")
    method.add_argument("--split", dest="graph_start_epoch", type=int, default=20, metavar="EPOCH",
                        help="first epoch (from 0) with the graph constraint")
    method.add_argument("--thres", "-thres", dest="graph_threshold", type=float, default=0.05, metavar="P",
                        help="smallest similarity, 0 to 1, that makes an edge between two videos")
    method.add_argument("--graph_reduction", choices=("row", "element"), default="row",
                        help="row: cross-entropy of each video; element: mean over all pairs, as the reference, which "
                             "is N times smaller for N videos")
    method.add_argument("--queue", dest="queue_rows", type=int, default=1024, metavar="ROWS",
                        help="past videos whose scores help the assignments")
    method.add_argument("--queue_start", dest="queue_start_epoch", type=int, default=10, metavar="EPOCH",
                        help="first epoch (from 0) whose assignments use the queue")
    method.add_argument("--gather_gradient", choices=("local", "all"), default="local",
                        help="local: candidates of other processes carry no gradient, as in the reference; all: they do, "
                             "which is the gradient of one process with the whole batch")

    optimization = parser.add_argument_group("optimization")
    optimization.add_argument("--epoch", dest="epochs", type=int, default=100, metavar="N", help="epochs in all")
    optimization.add_argument("--train_batch", dest="batch_per_gpu", type=int, default=64, metavar="B",
                              help="videos in the batch of each process (GPU), at least 2")
    optimization.add_argument("--lr", type=float, default=1e-3, help="learning rate of Adam")
    optimization.add_argument("--lr_decay", dest="lr_decay_epoch", type=int, default=70, metavar="EPOCH",
                              help="first epoch (from 0) at a tenth of --lr")
    optimization.add_argument("--wd", dest="weight_decay", type=float, default=1e-5, help="weight decay (L2)")
    optimization.add_argument("--on_nonfinite", choices=("stop", "skip"), default="stop",
                              help="stop: a loss or gradient that is not finite ends the run; skip: its step is left out")
    optimization.add_argument("--max_skips", type=int, default=10, metavar="STEPS",
                              help="steps that --on_nonfinite skip may leave out in the whole run")
    optimization.add_argument("--seed", type=int, default=0, help="seed of weights, order and augmentation, from 0")

    speed = parser.add_argument_group("precision and speed")
    speed.add_argument("--amp", choices=("off", "bf16"), default="off",
                       help="bf16: the network in bfloat16, losses and Sinkhorn in float32 all the same")
    speed.add_argument("--decode", choices=("full", "half"), default="full",
                       help="half: decode JPEG frames at half their width and height where that is at least 5/6 of 200x150, "
                            "and crop these at once, to the nearest whole pixels; up to 1.6 times as fast, about 1.5 grey "
                            "levels off")
    speed.add_argument("--augment_on", choices=("cpu", "device"), default="cpu",
                       help="where the color changes are made: cpu: in the loader's processes; device: in batches on the "
                            "training device, which pays where a GPU waits for data")
    speed.add_argument("--checkpoint_activations", action="store_true",
                       help="forget what the backbone's blocks computed and compute it anew in the backward pass: less "
                            "memory for a third more work, and the same result")
    speed.add_argument("--channels_last", action="store_true",
                       help="channels innermost in memory: for bf16 on GPUs, and on CPUs for that of s3d and r2plus1d18")
    speed.add_argument("--compile", action="store_true", help="torch.compile the network; the first steps are slow")

    speed.add_argument("--dry_run", type=int, metavar="N", help="time N steps, tell what they say of the whole run, and end")

    run = parser.add_argument_group("run directory")
    run.add_argument("--out", metavar="DIR", help="run directory (default: runs/CSVNAME_NET)")
    run.add_argument("--resume", nargs="?", const="auto", metavar="CHECKPOINT",
                     help="go on from the newest checkpoint in --out, or from the one named")
    run.add_argument("--path", metavar="CHECKPOINT", help="checkpoint for --resume, as the reference has it")
    run.add_argument("--save_every", type=int, default=10, metavar="EPOCHS",
                     help="checkpoints kept besides the newest, which is written after each epoch")
    run.add_argument("--save_steps", type=int, metavar="STEPS", help="write checkpoints inside an epoch too, so often")
    run.add_argument("--stop_after", type=int, metavar="EPOCHS",
                     help="stop after this many epochs of this start; schedules stay those of --epoch")
    run.add_argument("--log_every", type=int, default=20, metavar="STEPS", help="steps between two lines of the log")

    monitor = parser.add_argument_group("monitor")
    monitor.add_argument("--monitor_csv", nargs=2, metavar=("TRAIN", "TEST"),
                         help="labelled csv files of a small data set: log how well the backbone's features, one clip a "
                              "video, tell its classes apart (nearest-neighbor R@1, and top-1 of a ridge regression)")
    monitor.add_argument("--monitor_every", type=int, default=5, metavar="EPOCHS", help="epochs between two looks")
    add_launch_flags(parser)
    return parser


def parse_pretraining_flags(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Checked flags; a value that cannot work ends the program with one line that names the flag."""
    parser = pretraining_parser()
    flags = parser.parse_args(arguments)
    problem = find_problem(flags)
    if problem:
        parser.error(problem)
    if flags.path:
        flags.resume = flags.path
    if flags.graph_start_epoch >= flags.epochs:
        print(f"train.py: warning: --split {flags.graph_start_epoch} is not before the end, --epoch {flags.epochs}: "
              "the graph constraint never comes on", file=sys.stderr)
    return flags


def find_problem(flags: argparse.Namespace) -> str | None:
    """What cannot work, as a line, or None."""
    least = {"--sample": (flags.num_clips, 2), "--img_dim": (flags.img_dim, 32), "--workers": (flags.num_workers, 0),
             "--channel": (flags.embedding_dim, 1), "--cluster": (flags.num_prototypes, 2),
             "--split": (flags.graph_start_epoch, 0), "--queue": (flags.queue_rows, 1),
             "--queue_start": (flags.queue_start_epoch, 0), "--epoch": (flags.epochs, 1),
             "--train_batch": (flags.batch_per_gpu, 2), "--lr_decay": (flags.lr_decay_epoch, 0),
             "--wd": (flags.weight_decay, 0), "--seed": (flags.seed, 0), "--save_every": (flags.save_every, 1),
             "--save_steps": (flags.save_steps, 1), "--max_skips": (flags.max_skips, 0),
             "--stop_after": (flags.stop_after, 1), "--dry_run": (flags.dry_run, 1),
             "--monitor_every": (flags.monitor_every, 1),
             "--log_every": (flags.log_every, 1), "--rate": (flags.max_stride, 1)}
    problem = find_too_small(least) or find_not_positive({"--lr": flags.lr}) or find_launch_problem(flags)
    if problem:
        return problem
    step = 8 * flags.num_clips
    if flags.clip_frames < step or flags.clip_frames % step:
        return (f"--seq {flags.clip_frames}: must be a multiple of 8 * --sample = {step}, so that every level's "
                "timestamps can be shared among the clips")
    for name, share in (("--thres", flags.graph_threshold), ("--max_bad_fraction", flags.max_bad_fraction)):
        if not 0 <= share <= 1:
            return f"{name} {share}: must be between 0 and 1"
    if flags.seed >= 2**63:
        return f"--seed {flags.seed}: must be below 2^63"
    if flags.dry_run and (flags.resume or flags.path):
        return "--dry_run: begins with new weights; leave --resume and --path out"
    if flags.compile and flags.checkpoint_activations:
        return "--compile: does not go together with --checkpoint_activations"
    if flags.path and flags.resume is None:
        return f"--path {flags.path}: names the checkpoint for --resume; add --resume, or name the run directory by --out"
    if flags.path and flags.resume != "auto":
        return f"--path {flags.path}: --resume names {flags.resume} already"
    return None
