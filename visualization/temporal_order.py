"""The temporal-order head: flags, clips in both orders and their features, batches, training, checkpoints.

Shapes: N videos of `clips` clips each, T frames of S x S px; P = N * clips pairs of a clip and its time reversal; rows
2p and 2p + 1 of anything with 2P rows are pair p's natural and reversed clip; C channels.
"""
from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.records import VideoRecord, read_records, shared_videos
from dataset.transforms import RGB, TestCrops, scale_clips
from dataset.videos import LabelledClips, TestViews
from eval.cli import add_weights_flags
from eval.features.backbone import RANDOM
from eval.features.csv_features import feature_fingerprint, read_features, store_path, write_features
from eval.features.extract import FULL_FLOAT32, ClipSettings, mean_over_views, pool_levels
from eval.result_card import make_out_dir
from models.levels import LEVELS
from utils.checkpoint import FORMAT, reading_entries
from utils.cli import OneLineParser, check_values
from utils.distributed import DistContext
from utils.errors import InputError
from utils.launch import visible_gpus
from utils.rendezvous import require_single_process

MODES = ("train", "eval", "visualize")
HEAD_KIND = "order_head"
HEAD_ENTRIES = ("backbone", "trained_with", "training", "train_csv", "train_videos", "epochs_done", "weight")
# Clip settings that are left out: those of the trained head; in a new training these.
CLIP_DEFAULTS = {"clip_frames": 16, "stride": 1, "img_dim": 224, "clips": 1, "level": "high"}
# Besides, the weights of a trained head depend on these; the number of epochs may grow.
TRAINING_SETTINGS = ("augment", "batch_pairs", "lr", "lr_decay_epoch", "weight_decay", "seed")


def order_parser(description: str = "") -> OneLineParser:
    """Returns the parser of `python visualization/main_temporal.py`."""
    parser = OneLineParser(prog="main_temporal.py", description=description)
    add = parser.add_argument
    add("--mode", choices=MODES, default="train",
        help="train the head, then test it; eval: test it; visualize: write its maps")
    add_weights_flags(parser)
    add("--head", help="eval, visualize: checkpoint of the head (default: the newest in --out)")
    add("--train_csv", help="train: videos, frame_dir,number_of_frames; labels are not used; eval: the same list where it "
        "has moved")
    add("--test_csv", help="held-out videos to test on, or to show")
    add("--seq", dest="clip_frames", type=int, help="frames of a clip (default: as the head was trained, or 16)")
    add("--ds", dest="stride", type=int, help="take every ds-th frame (default: likewise, or 1)")
    add("--img_dim", type=int, help="side of a clip in px (default: likewise, or 224)")
    add("--clips", type=int, help="evenly spaced clips of each video (default: likewise, or 1: the middle)")
    add("--level", choices=LEVELS, help="feature map under the head (default: likewise, or high)")
    add("--augment", action="store_true",
        help="train: a random clip, crop, flip and color of each video in each epoch; runs the backbone every time")
    add("--epoch", dest="epochs", type=int, default=50, help="train: number of epochs in all")
    add("--train_batch", dest="batch_pairs", type=int, default=256,
        help="train: clips per step, each with its reversal: twice as many rows")
    add("--lr", type=float, default=1e-3, help="train: learning rate of Adam")
    add("--lr_decay", dest="lr_decay_epoch", type=int, default=30, help="train: first epoch (from 0) at a tenth of --lr")
    add("--wd", dest="weight_decay", type=float, default=1e-3, help="train: weight decay (L2)")
    add("--batch", type=int, default=32, help="clips in one forward of the backbone")
    add("--workers", dest="num_workers", type=int, default=4, help="DataLoader workers")
    add("--gpu", metavar="N|none", help="GPU to use; none: the CPU (default: the first GPU, if any)")
    add("--feature_dir", help="keep features here for the same weights, csv and clips; frames that change under the same "
        "csv are not noticed (default: OUT/features)")
    add("--out", default="runs/order", help="run directory of the head")
    add("--resume", nargs="?", const="auto", metavar="CHECKPOINT",
        help="train: resume from the newest head in --out, or from the one given; 1 is --resume alone, 0 is none")
    add("--num_videos", type=int, default=8,
        help="visualize: the first ones of --test_csv; they replace those in OUT/cam")
    add("--scale", choices=("clip", "frame"), default="clip",
        help="visualize: one color scale for a clip and its reversal; frame: one per frame, which hides how strong the "
             "evidence is over time")
    add("--fps", type=int, default=4, help="visualize: frames per second")
    add("--pos", default="natural", help="visualize: folder of the natural order's images, in OUT/cam")
    add("--neg", default="reversed", help="visualize: folder of the reversed order's images, in OUT/cam")
    return parser


def check_order_flags(flags: argparse.Namespace) -> None:
    """Raises InputError for a value that cannot work, or that --mode lacks or does not use."""
    require_single_process()
    check_values({"--seed": (flags.seed, 0), "--seq": (flags.clip_frames, 8), "--ds": (flags.stride, 1),
                  "--img_dim": (flags.img_dim, 32), "--clips": (flags.clips, 1), "--epoch": (flags.epochs, 1),
                  "--train_batch": (flags.batch_pairs, 1), "--lr_decay": (flags.lr_decay_epoch, 0),
                  "--wd": (flags.weight_decay, 0), "--batch": (flags.batch, 1), "--workers": (flags.num_workers, 0),
                  "--num_videos": (flags.num_videos, 1), "--fps": (flags.fps, 1)}, positive={"--lr": flags.lr})
    for name in ("train_csv", "test_csv") if flags.mode == "train" else ("test_csv",):
        if getattr(flags, name) is None:
            raise InputError(f"--{name}: needed with --mode {flags.mode}")
    for name, modes in {"head": MODES[1:], "resume": MODES[:1], "augment": MODES[:1], "clips": MODES[:2],
                        "train_csv": MODES[:2]}.items():
        if getattr(flags, name, None) and flags.mode not in modes:
            raise InputError(f"--{name}: without effect in --mode {flags.mode} (only in {' and '.join(modes)}); leave it "
                             "out")
    for flag, name in (("--pos", flags.pos), ("--neg", flags.neg)):  # these folders are replaced
        if name in ("", os.curdir, os.pardir) or os.path.basename(name) != name:
            raise InputError(f"{flag} {name}: must be the name of a folder in OUT/cam, without {os.sep}")
    if flags.pos == flags.neg:
        raise InputError(f"--neg {flags.neg}: must be another folder than --pos")


def completed(flags: argparse.Namespace, values: dict[str, Any]) -> argparse.Namespace:
    """Returns the flags with each of `values` where a flag is None."""
    return argparse.Namespace(**{**vars(flags), **{
        name: value for name, value in values.items() if getattr(flags, name) is None}})


def clip_settings(flags: argparse.Namespace) -> ClipSettings:
    """Returns which clips of a video are read, by completed flags."""
    return ClipSettings(flags.clips, flags.clip_frames, flags.stride, flags.img_dim, crops=1)


def choose_device(gpu: str | None) -> torch.device:
    """Returns the device of --gpu; InputError unless it is none or a single GPU of this machine."""
    if gpu not in (None, "none") and not gpu.isdecimal():
        raise InputError(f"--gpu {gpu}: must be none or the number of one GPU: this runs in a single process")
    gpus = visible_gpus(gpu)
    return torch.device("cuda", gpus[0]) if gpus else torch.device("cpu")


def both_orders(clips: Tensor) -> Tensor:
    """Returns [2B, T, H, W, 3] of clips [B, T, H, W, 3]: each, and one row after it the same with its frames reversed.

    They are reversed before `scale_clips`: residual frames of a reversed clip are not the reversed residual frames.
    """
    return torch.stack([clips, clips.flip(1)], dim=1).flatten(0, 1)


def order_targets(num_rows: int, device: torch.device) -> Tensor:
    """Returns int64 [num_rows], the classes of `both_orders`' rows: 0 (natural) and 1 (reversed) in turn."""
    return torch.arange(num_rows, device=device) % 2


def read_long_enough(role: str, csv_path: str, settings: ClipSettings) -> tuple[list[VideoRecord], int, str]:
    """Returns (a csv's videos that have a whole clip, number of the others, SHA-256 of the list). Labels are not used.

    A shorter video would repeat its last frame, and frames that stand still at one end reveal the order without any
    motion. The SHA-256 is of names, numbers of frames and order, not of folders. InputError where no video is left.
    """
    records, needed = read_records(csv_path, labelled=False), (settings.clip_frames - 1) * settings.stride + 1
    kept = [replace(record, label=0) for record in records if record.num_frames >= needed]
    if not kept:
        raise InputError(f"{csv_path}: none of its {len(records)} video(s) has the {needed} frames of a clip "
                         f"({settings.clip_frames} at a stride of {settings.stride})")
    num_short = len(records) - len(kept)
    print(f"{role}: {len(kept)} videos of {csv_path}, {num_short} left out as shorter than a clip", flush=True)
    names = "".join(f"{Path(record.path).name}\t{record.num_frames}\n" for record in records)
    return kept, num_short, hashlib.sha256(names.encode()).hexdigest()


def read_train_and_test(flags: argparse.Namespace, state: dict[str, Any] | None, head: Path | None,
                        ) -> tuple[list[VideoRecord], list[VideoRecord], dict[str, int], str]:
    """Returns (training videos, test videos, their numbers for the result card, SHA-256 of the training list).

    InputError where a test video is a training video too, and for another training list than that of the checkpoint
    `state`, read from `head`.
    """
    train_csv, test_csv = flags.train_csv, flags.test_csv
    train, num_short_train, digest = read_long_enough("train", train_csv, clip_settings(flags))
    test, num_short_test, _ = read_long_enough("test", test_csv, clip_settings(flags))
    if shared := shared_videos(train, test):
        raise InputError(f"{test_csv}: {len(shared)} video(s) are in {train_csv} too, such as {shared[0].path}: "
                         "accuracy is measured on held-out videos")
    if state and state["train_videos"] != digest:
        raise InputError(f"--train_csv {train_csv}: lists other videos than {head} was trained on ({state['train_csv']})")
    counts = {"num_train_videos": len(train), "num_train_videos_shorter_than_clip": num_short_train,
              "num_test_videos": len(test), "num_test_videos_shorter_than_clip": num_short_test}
    return train, test, counts, digest


def read_clips(record: VideoRecord, settings: ClipSettings) -> Tensor:
    """Returns uint8 [clips, T, S, S, 3]: the video's test clips in natural order, center crop."""
    sample = settings.videos([record])[0]
    return TestViews(sample.frames, sample.clips, TestCrops(settings.img_dim, 1))[:]


def order_features(role: str, records: Sequence[VideoRecord], backbone: nn.Module, weights: dict, flags: argparse.Namespace,
                   device: torch.device) -> Tensor:
    """Returns float32 [2P, C] at the flags' level: mean over time and space of each clip's map, natural and reversed.

    Reads them from `feature_dir` (default: OUT/features), or else computes and stores them, `batch` rows per forward.
    `role`: "train" or "test", of which csv `records` are. For errors see `mean_over_views`.
    """
    def pool_pairs(views: Tensor) -> dict[str, np.ndarray]:
        pooled = pool_levels(backbone, both_orders(views), weights["input"])
        return {level: rows.reshape(len(views), -1) for level, rows in pooled.items()}

    clips, csv_path = clip_settings(flags), getattr(flags, f"{role}_csv")
    fingerprint = {**feature_fingerprint(weights, flags.seed, csv_path, clips), "orders": "natural, reversed"}
    path = store_path(flags.feature_dir or os.path.join(flags.out, "features"), fingerprint, f"order_{role}")
    make_out_dir(path.parent, "--feature_dir")
    stored = read_features(path, fingerprint)
    if stored:
        features = stored.features
    else:
        pairs = mean_over_views(backbone, pool_pairs, "features", records, clips, DistContext(0, 1, device), skipped=None,
                                batch=max(1, flags.batch // 2), num_workers=flags.num_workers, label=role,
                                dtype=np.float32, reduce=np.ravel)
        features = {level: rows.reshape(-1, backbone.channels[level]) for level, rows in pairs.items()}
        write_features(path, fingerprint, features, {})
    rows = torch.from_numpy(features[flags.level]).to(device)
    print(f"{role}: features of {len(rows)} clips {f'read from {path}' if stored else 'computed'}", flush=True)
    return rows


def pair_batches(epochs: Iterable[int], num_pairs: int, batch_pairs: int, seed: int) -> Iterator[list[tuple[int, int]]]:
    """Yields batches of (epoch, pair): each pair once an epoch, in an order drawn from both; its last batch may be short."""
    for epoch in epochs:
        order = np.random.default_rng([seed, epoch]).permutation(num_pairs).tolist()
        for start in range(0, num_pairs, batch_pairs):
            yield [(epoch, pair) for pair in order[start:start + batch_pairs]]


def augmented_features(loader: Iterable[LabelledClips], backbone: nn.Module, weights: dict, flags: argparse.Namespace,
                       device: torch.device) -> Iterator[Tensor]:
    """Yields features [2B, C] of both orders of each of a batch's B augmented clips, with `batch` rows per forward."""
    for sample in loader:
        with torch.no_grad(), torch.backends.cudnn.flags(**FULL_FLOAT32):
            views = both_orders(sample.clips).split(flags.batch)
            clips = (scale_clips(rows.to(device, non_blocking=True), **weights["input"]) for rows in views)
            features = [getattr(backbone(rows), flags.level).mean(dim=(2, 3, 4)) for rows in clips]
        yield torch.cat(features)


def new_head(channels: int) -> nn.Linear:
    """Returns a linear layer C -> 2 without bias, all zero.

    The problem is convex: random initial weights would only add noise to the maps. From zero, the two rows stay each
    other's negative but for rounding.
    """
    head = nn.Linear(channels, 2, bias=False)
    nn.init.zeros_(head.weight)
    return head


def order_accuracy(head: nn.Linear, features: Tensor) -> dict[str, float]:
    """Returns {"accuracy", "pair_accuracy"}, 0 to 1, on features [2P, C].

    accuracy: share of the clips that are classified correctly. pair_accuracy: share of the pairs whose natural clip has
    more evidence for natural order (logit 0 minus logit 1) than its reversal; a tie counts half.
    """
    with torch.no_grad():
        logits = head(features)
    correct = logits.argmax(dim=1) == order_targets(len(logits), logits.device)
    natural, reverse = (logits[:, 0] - logits[:, 1]).unflatten(0, (-1, 2)).unbind(1)
    won = (natural > reverse).double() + 0.5 * (natural == reverse).double()
    return {"accuracy": float(correct.double().mean()), "pair_accuracy": float(won.mean())}


def train_head_epoch(head: nn.Linear, optimizer: torch.optim.Optimizer, rows: Iterable[Tensor]) -> tuple[float, float]:
    """Returns (mean loss, accuracy) over the epoch's batches [2B, C] of `rows`, each before its step."""
    loss_sum, num_correct, num_rows = 0.0, 0, 0
    for features in rows:
        targets = order_targets(len(features), features.device)
        logits = head(features)
        loss = F.cross_entropy(logits, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(features)
        num_correct += int((logits.argmax(dim=1) == targets).sum())
        num_rows += len(features)
    return loss_sum / num_rows, num_correct / num_rows


def head_state(head: nn.Linear, optimizer: torch.optim.Optimizer, epochs_done: int, weights: dict[str, Any],
               train_digest: str, flags: argparse.Namespace) -> dict[str, Any]:
    """Returns the head's checkpoint: its training, and the backbone, clips and videos that it belongs to."""
    return {"format": FORMAT, "kind": HEAD_KIND, "backbone": backbone_identity(weights, flags.seed),
            "trained_with": {name: getattr(flags, name) for name in CLIP_DEFAULTS},
            "training": {name: getattr(flags, name) for name in TRAINING_SETTINGS},
            "train_csv": os.path.abspath(flags.train_csv), "train_videos": train_digest, "epochs_done": epochs_done,
            "weight": head.weight.detach(), "optimizer": optimizer.state_dict()}


def backbone_identity(weights: dict[str, Any], seed: int) -> dict[str, Any]:
    """Returns what distinguishes a backbone from others; `weights` as `load_backbone` returns it."""
    return {"net": weights["net"], "checkpoint_sha256": weights["checkpoint_sha256"],
            "random_seed": seed if weights["weights"] == RANDOM else None, "frames": weights["input"]["frames"]}


def load_head(state: dict[str, Any], device: torch.device) -> nn.Linear:
    """Returns the head of a checkpoint, on `device`."""
    head = new_head(state["weight"].shape[1])
    head.load_state_dict({"weight": state["weight"]})
    return head.to(device)


def check_head(state: dict[str, Any], path: Path, weights: dict[str, Any], flags: argparse.Namespace,
               resume: bool = False) -> argparse.Namespace:
    """Returns `flags` completed by those of a head's checkpoint `state`, read from `path`.

    InputError unless it is a head of this backbone and level and, with `resume`, these flags can continue its training.
    """
    with reading_entries(path, HEAD_KIND, state):
        state = {name: state[name] for name in HEAD_ENTRIES}
    for name, value in backbone_identity(weights, flags.seed).items():
        if state["backbone"].get(name, RGB) != value:
            raise InputError(f"{path}: a head of a backbone of {name} {state['backbone'][name]}; --weights "
                             f"{weights['weights']} is one of {name} {value}")
    level = state["trained_with"]["level"]
    if flags.level not in (None, level):
        raise InputError(f"--level {flags.level}: {path} is for level {level}")
    flags = completed(flags, state["trained_with"])
    spelling = {action.dest: action.option_strings[0] for action in order_parser()._actions}
    for name, before in {**state["trained_with"], **state["training"]}.items() if resume else ():
        if getattr(flags, name) != before:
            raise InputError(f"{spelling[name]} {getattr(flags, name)}: {path} was trained with {before}; a run resumes "
                             "with the settings that it began with")
    if resume and state["epochs_done"] > flags.epochs:
        raise InputError(f"--epoch {flags.epochs}: {path} has had {state['epochs_done']} already")
    return flags
