"""Temporal-order head on a frozen backbone, and its class activation maps: where a clip shows its order.

    python visualization/main_temporal.py --weights CHECKPOINT --train_csv train.csv --test_csv test.csv
    python visualization/main_temporal.py --mode eval --weights CHECKPOINT --test_csv test.csv
    python visualization/main_temporal.py --mode visualize --weights CHECKPOINT --test_csv test.csv

A linear head without bias classifies a clip (class 0, natural order) and its time reversal (class 1) from the mean
over time and space of the backbone's feature map. The maps show what each position contributes. In a notebook:

    from visualization.main_temporal import *
    backbone, weights = load_backbone("CHECKPOINT", None, seed=0)
    head = load_head(read_checkpoint("runs/order/checkpoints/epoch_0050.pt"), torch.device("cpu"))
    rows = scale_clips(both_orders(clips), **weights["input"])          # clips: uint8 [B, T, H, W, 3]
    maps = returncam(backbone, head, rows, level="high")                # [2B, T, H, W]
    evidence = order_evidence(maps)                                     # [B, T, H, W]

Shapes: M clips [M, 3, T, H, W] as `both_orders` returns them, rows 2p natural and 2p + 1 reversed; C channels, t
timestamps, h and w positions of the backbone's map; P pairs of clips.
Convolutions of stride 2 are centered on even frames of a clip as it is played: of 16 frames, its natural and reversed
panels may show one event up to about 2.7 frames apart (high level; 1.5 at mid, 0.9 at low). With the stem of 3D-ResNets
(..._time_pool), which halves the timestamps of each level, it is 1.6 at mid and 1.3 at low, and the one timestamp that
16 frames have at the high level shows every frame the same: --level mid, or --seq 32, shows when evidence occurs.
"""
from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as `python visualization/main_temporal.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import itertools
import math
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.transforms import FinetuneAugmentation, scale_clips
from dataset.videos import LabelledVideos, build_loader
from eval.features.backbone import load_backbone
from eval.features.extract import FULL_FLOAT32
from eval.result_card import CARD, SplitResult, build_card, make_out_dir, write_card
from eval.splits import EvalSplit
from utils.checkpoint import (checkpoint_path, find_checkpoint, list_checkpoints, read_checkpoint, reading_entries,
                              save_checkpoint)
from utils.distributed import DistContext
from utils.errors import InputError, NonFiniteError
from utils.launch import run_and_report
from utils.files import file_sha256
from utils.training_log import RunLog, device_name, write_config
from visualization.cam import cam_name, remove_cams, require_h264, write_cams
from visualization.temporal_order import (
    CLIP_DEFAULTS, HEAD_KIND, augmented_features, both_orders, check_head, check_order_flags, choose_device,
    clip_settings, completed, head_state, load_head, new_head, order_accuracy, order_features, order_parser, order_targets,
    pair_batches, read_clips, read_long_enough, read_train_and_test, train_head_epoch,
)

EVAL_CARD = "result_eval.json"  # of --mode eval; the training's own card is kept
KEEP_EVERY = 10                 # epochs between two heads that are kept beside the newest


def order_maps(backbone: nn.Module, head: nn.Linear, clips: Tensor, level: str = "high") -> Tensor:
    """Returns [M, 2, t, h, w]: evidence for natural (channel 0) and for reversed order (channel 1) at each position.

    It is the head's weight times the feature there: its mean over t, h and w is the head's logit of the clip (class
    activation mapping, Zhou et al. 2016). On the head's device in full float32; the backbone is left in eval mode.
    """
    backbone.eval()
    with torch.no_grad(), torch.backends.cudnn.flags(**FULL_FLOAT32):
        features = getattr(backbone(clips.to(head.weight.device)), level)
        return torch.einsum("mcthw,kc->mkthw", features, head.weight)


def returncam(backbone: nn.Module, head: nn.Linear, clips: Tensor, level: str = "high") -> Tensor:
    """Returns [M, T, H, W]: each clip's evidence for the order it is played in, at each of its own frames and pixels.

    Even rows are natural clips and show channel 0 of `order_maps`; odd rows are reversed ones and show channel 1, in the
    reversed clip's own time. Values are neither scaled nor clipped, only upsampled trilinearly (align_corners False):
    their mean is the logit of the clip's own order, approximately where T, H and W are no multiples of t, h and w.
    InputError for an odd number of clips and for non-finite maps.
    """
    if len(clips) % 2:
        raise InputError(f"{len(clips)} clip(s): must be pairs of a natural clip and its reversal, see both_orders")
    maps = order_maps(backbone, head, clips, level)
    if not maps.isfinite().all():
        raise InputError(f"the maps of level {level} are not finite: are the weights those of a run that diverged?")
    own = maps[torch.arange(len(maps)), order_targets(len(maps), maps.device)]
    return F.interpolate(own[:, None], size=clips.shape[2:], mode="trilinear", align_corners=False)[:, 0]


def order_evidence(maps: Tensor) -> Tensor:
    """Returns [M/2, T, H, W]: mean of a clip's map and its reversal's, both in natural time, of `returncam`'s maps.

    Evidence for "natural" in the one and for "reversed" in the other adds up. Evidence that does not depend on the order,
    such as that of appearance, cancels, as the two rows of a head from `new_head` are each other's negative.
    """
    natural, reverse = maps.unflatten(0, (-1, 2)).unbind(1)
    return (natural + reverse.flip(1)) / 2


def train_order_head(backbone: nn.Module, weights: dict, flags: argparse.Namespace, device: torch.device) -> nn.Linear:
    """Returns the head trained on what `load_backbone` returns; writes its run directory, then tests it, once."""
    begin, out = time.monotonic(), Path(flags.out)
    path, state, lines = find_checkpoint(out, flags.resume)
    if state:
        flags = check_head(state, path, weights, flags, resume=True)
        lines.append(f"resuming from {path}")
    flags = completed(flags, CLIP_DEFAULTS)
    train, _, counts, digest = read_train_and_test(flags, state, path)
    head = load_head(state, device) if state else new_head(backbone.channels[flags.level]).to(device)
    optimizer = torch.optim.Adam(head.parameters(), flags.lr, weight_decay=flags.weight_decay)
    if state:
        with reading_entries(path, HEAD_KIND):
            optimizer.load_state_dict(state["optimizer"])
    start = state["epochs_done"] if state else 0
    num_pairs = len(train) * (1 if flags.augment else flags.clips)
    steps = -(-num_pairs // flags.batch_pairs)
    batches = pair_batches(range(start, flags.epochs), num_pairs, flags.batch_pairs, flags.seed)

    make_out_dir(out / "checkpoints")
    write_config(out, {**vars(flags), "csv_file": flags.train_csv},
                 {"device": device_name(device), "start_epoch": start, "backbone": weights, **counts})
    log = RunLog(out, True, start * steps)
    for line in (*lines, f"{out}: order head on level {flags.level} of {weights['net']} ({weights['weights']}), on "
                         f"{device_name(device)}: {num_pairs} clips and their reversals, {steps} step(s) per epoch"):
        log.say(line)
    if flags.augment:
        videos = LabelledVideos(train, flags.clip_frames, flags.stride, FinetuneAugmentation(flags.img_dim),
                                flags.seed)
        loader = build_loader(videos, batches, flags.num_workers, device)
        features = augmented_features(loader, backbone.to(device).eval(), weights, flags, device)
    else:
        pairs = order_features("train", train, backbone, weights, flags, device).unflatten(0, (-1, 2))
        features = (pairs[[pair for _, pair in batch]].flatten(0, 1) for batch in batches)

    for epoch in range(start, flags.epochs):
        lr = flags.lr * (0.1 if epoch >= flags.lr_decay_epoch else 1.0)
        for group in optimizer.param_groups:
            group.update(lr=lr, weight_decay=flags.weight_decay)
        loss, accuracy = train_head_epoch(head, optimizer, itertools.islice(features, steps))
        if not math.isfinite(loss):
            raise NonFiniteError(f"epoch {epoch + 1}: the loss is {loss}; the newest head is from before")
        log.write("epoch", epoch, (epoch + 1) * steps, {"loss": loss, "accuracy": accuracy, "lr": lr})
        log.say(f"epoch {epoch + 1}/{flags.epochs}  loss {loss:.4f}  order accuracy {accuracy:.3f}  lr {lr:.1e}")
        path = checkpoint_path(out / "checkpoints", epoch + 1)
        save_checkpoint(head_state(head, optimizer, epoch + 1, weights, digest, flags), path, KEEP_EVERY, log)
    log.close()
    evaluate_order_head(backbone, weights, argparse.Namespace(**{**vars(flags), "head": str(path)}), device, CARD, begin)
    return head


def evaluate_order_head(backbone: nn.Module, weights: dict, flags: argparse.Namespace, device: torch.device,
                        card_name: str = EVAL_CARD, begin: float | None = None) -> None:
    """Tests a trained head on held-out videos: writes OUT/`card_name` and prints its table.

    The training list must be the one that the head was trained on, so that none of its videos is tested. `begin`, by
    `time.monotonic` (default: now): when the work began that the card gives the duration of.
    """
    begin = begin or time.monotonic()
    head, path, state, flags = find_head(weights, flags, device)
    flags = completed(flags, {"train_csv": state["train_csv"]})
    _, test, counts, _ = read_train_and_test(flags, state, path)
    metrics = {flags.level: order_accuracy(head, order_features("test", test, backbone, weights, flags, device))}
    result = SplitResult(EvalSplit(None, flags.train_csv, flags.test_csv), metrics,
                         {**counts, "head": str(path), "head_sha256": file_sha256(path)})
    choices = {**clip_settings(flags).facts(), "epochs": state["epochs_done"], **state["training"]}
    card = build_card("temporal_order", [result], choices, weights, device, time.monotonic() - begin)
    make_out_dir(Path(flags.out))
    write_card(Path(flags.out), card, ("clips", "clip_frames", "img_dim", "seed"), name=card_name)


def find_head(weights: dict, flags: argparse.Namespace,
              device: torch.device) -> tuple[nn.Linear, Path, dict[str, Any], argparse.Namespace]:
    """Returns (head, path, checkpoint, completed flags) of `flags.head`, or else of the newest head in its `out`."""
    found = list_checkpoints(Path(flags.out) / "checkpoints")
    if not (flags.head or found):
        raise InputError(f"--out {flags.out}: no trained head there; train one first, or give one with --head")
    path = Path(flags.head) if flags.head else found[-1][1]
    state = read_checkpoint(path)
    flags = check_head(state, path, weights, flags)
    print(f"head: {path}, {state['epochs_done']} epochs", flush=True)
    for name, value in state["trained_with"].items():
        if getattr(flags, name) != value:
            print(f"the head was trained with {name} {value}, now it is {getattr(flags, name)}", flush=True)
    return load_head(state, device), path, state, flags


def write_order_videos(backbone: nn.Module, weights: dict, flags: argparse.Namespace, device: torch.device) -> None:
    """Replaces the images and videos in OUT/cam by those of the maps of the first `num_videos` test videos' middle clips."""
    require_h264()
    head, _, _, flags = find_head(weights, flags, device)
    clip, folder = replace(clip_settings(flags), clips=1), Path(flags.out) / "cam"
    videos, _, _ = read_long_enough("test", flags.test_csv, clip)
    backbone.to(device)
    if num_removed := remove_cams(folder):
        print(f"{folder}: removed {num_removed} earlier video(s) and their images", flush=True)
    for number, video in enumerate(videos[:flags.num_videos]):
        clips = both_orders(read_clips(video, clip))
        maps = returncam(backbone, head, scale_clips(clips.to(device), **weights["input"]), flags.level).cpu()
        if number == 0 and torch.equal(maps[:, 0], maps[:, -1]):
            print(f"level {flags.level} has one timestamp in {flags.clip_frames} frames: its maps show where, not when; "
                  "a head for --level mid, or of a longer --seq, shows both", flush=True)
        path = write_cams(folder, cam_name(number, video.path), clips.numpy(), maps.numpy(), order_evidence(maps)[0].numpy(),
                          scale=flags.scale, folders=(flags.pos, flags.neg), fps=flags.fps)
        print(f"{path}: mean evidence {maps[0].mean():+.3f} for natural order of the natural clip, "
              f"{maps[1].mean():+.3f} for reversed order of the reversed one", flush=True)


def run_mode(context: DistContext, flags: argparse.Namespace) -> None:
    check_order_flags(flags)
    backbone, weights = load_backbone(flags.weights, flags.net, flags.seed, flags.input_frames)
    mode = {"train": train_order_head, "eval": evaluate_order_head, "visualize": write_order_videos}[flags.mode]
    mode(backbone.requires_grad_(False), weights, flags, context.device)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = order_parser(__doc__)
    flags = parser.parse_args(arguments)
    if flags.mode != "train" and not flags.resume:
        del flags.resume  # where a DataLoader worker is lost, there is nothing to resume
    rank = int(os.environ.get("RANK", "0"))  # started by torchrun, rank 0 alone reports that it must not be
    return run_and_report(lambda: DistContext(rank, 1, choose_device(flags.gpu)), run_mode, flags, parser.prog)


if __name__ == "__main__":
    sys.exit(main())
