"""Temporal-order head on a frozen backbone, and its class activation maps: where a clip shows its order.

    python visualization/main_temporal.py --weights CHECKPOINT --train_csv train.csv --test_csv test.csv
    python visualization/main_temporal.py --mode eval --weights CHECKPOINT --test_csv test.csv
    python visualization/main_temporal.py --mode visualize --weights CHECKPOINT --test_csv test.csv

A linear head without bias tells a clip (class 0, natural order) from its time reversal (class 1) by the mean
over time and space of the backbone's map. The maps show what each position adds to that. In a notebook:

    backbone, weights = load_backbone("CHECKPOINT", None, seed=0)
    head = load_head(read_checkpoint("runs/order/checkpoints/epoch_0050.pt"), torch.device("cpu"))
    maps = returncam(backbone, head, both_orders(scale_clips(clips)))   # clips: uint8 [B, T, H, W, 3]
    evidence = order_evidence(maps)                                   # [B, T, H, W]

Shapes: M clips [M, 3, T, H, W] as `both_orders` gives them, rows 2p natural and 2p + 1 reversed;
C channels, t timestamps, h and w positions of the backbone's map; P pairs of clips in a set.
Convolutions of stride 2 are centered on even frames of a clip as it is played, so that its natural and reversed
panels may show one event up to about 2.7 frames apart (high level; 1.5 at mid, 0.9 at low).
"""
# ruff: noqa: E402
from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as `python visualization/main_temporal.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset.records import VideoRecord, read_records
from dataset.transforms import scale_clips
from eval.features.store import feature_fingerprint, read_features, store_path, write_features
from eval.features.extract import load_backbone
from eval.result_card import CARD, Outcome, build_card, make_out_dir, markdown_table, write_card
from eval.splits import Split
from eval.features.clip_means import FULL_FLOAT32
from utils.checkpoint import checkpoint_path, find_checkpoint, prune_checkpoints, write_checkpoint
from utils.distributed import DistContext
from utils.errors import InputError, NonFiniteError, report
from utils.launch import print_any_name, run_told
from utils.training_log import RunLog, device_name, file_sha256, write_config
from visualization.cam import cam_name, remove_cams, require_h264, write_cams
from visualization.temporal_order.flags import (
    CLIP_DEFAULTS,
    EVAL_CARD,
    TRAINING_FLAGS,
    check_flags,
    choose_device,
    clip_settings,
    complete_flags,
    order_parser,
)
from visualization.temporal_order.head import (
    check_head,
    check_resumed,
    check_train_videos,
    find_head,
    head_state,
    load_head,
    load_optimizer,
    new_head,
    order_accuracy,
    train_one_epoch,
)
from visualization.temporal_order.clips import (
    AugmentedRows,
    PairBatches,
    StoredRows,
    both_orders,
    order_features,
    order_targets,
    read_clips,
    read_videos,
    videos_long_enough,
)

KEEP_EVERY = 10  # epochs between two heads that stay beside the newest


def order_maps(backbone: nn.Module, head: nn.Linear, clips: Tensor, level: str = "high") -> Tensor:
    """[M, 2, t, h, w]: evidence for natural (channel 0) and for reversed order (channel 1) at each position.

    It is the head's weight times the feature there, so that its mean over t, h and w is the head's logit for
    the clip (class activation mapping, Zhou et al. 2016). Computed on the head's device in full float32;
    the backbone is left in eval mode.
    """
    backbone.eval()
    with torch.no_grad(), torch.backends.cudnn.flags(**FULL_FLOAT32):
        features = getattr(backbone(clips.to(head.weight.device)), level)
        return torch.einsum("mcthw,kc->mkthw", features, head.weight)


def returncam(backbone: nn.Module, head: nn.Linear, clips: Tensor, level: str = "high") -> Tensor:
    """[M, T, H, W]: each clip's evidence for the order it is played in, at each of its own frames and pixels.

    Even rows are natural clips and show channel 0 of `order_maps`; odd rows are reversed ones and show
    channel 1, in the reversed clip's own time. Values are neither scaled nor clipped, only enlarged
    trilinearly (align_corners False). Where T, H and W are multiples of t, h and w this keeps the mean, the
    logit of the clip's own order; elsewhere it keeps it approximately. InputError for an odd number of
    clips, and for maps that are not finite.
    """
    if len(clips) % 2:
        raise InputError(f"{len(clips)} clip(s): must be pairs of a natural clip and its reversal, as "
                         "both_orders gives them")
    maps = order_maps(backbone, head, clips, level)
    if not maps.isfinite().all():
        raise InputError(f"the maps of level {level} are not finite: are the weights those of a run that diverged?")
    own = maps[torch.arange(len(maps)), order_targets(len(maps), maps.device)]
    return F.interpolate(own[:, None], size=clips.shape[2:], mode="trilinear", align_corners=False)[:, 0]


def order_evidence(maps: Tensor) -> Tensor:
    """[M/2, T, H, W]: mean of a clip's map and its reversal's, both in natural time, of `returncam`'s maps.

    What says "natural" in the one and "reversed" in the other adds up. Evidence that is the same whichever
    way the clip is played, such as that of how things look, cancels, as the two rows of a head from
    `new_head` are each other's negative.
    """
    natural, reverse = maps.unflatten(0, (-1, 2)).unbind(1)
    return (natural + reverse.flip(1)) / 2


def train(
    backbone: nn.Module, weights: dict[str, Any], flags: argparse.Namespace, device: torch.device
) -> nn.Linear:
    """The head after `--epoch` epochs, its run directory written; the backbone stays as it is, bit for bit.

    `weights` is what `load_backbone` tells of the backbone. Held-out videos are looked at once, at the end.
    """
    begin = time.monotonic()
    out, (source, state, lines) = Path(flags.out), find_checkpoint(Path(flags.out), flags.resume)
    if state:
        check_head(state, source, weights, flags.seed)
        complete_flags(flags, state["trained_with"])
        check_resumed(state, source, flags)
        lines.append(f"going on from {source}")
    complete_flags(flags, CLIP_DEFAULTS)
    videos, counts, train_videos = read_videos(flags)
    if state:
        check_train_videos(state, source, train_videos, flags.train_csv)
    num_pairs = len(videos["train"]) * (1 if flags.augment else flags.clips)
    batches = PairBatches(num_pairs, flags.batch_pairs, flags.seed)
    head = load_head(state, device) if state else new_head(backbone.channels[flags.level]).to(device)
    optimizer = torch.optim.Adam(head.parameters(), flags.lr, weight_decay=flags.weight_decay)
    if state:
        load_optimizer(optimizer, state, source)
    start = state["epochs_done"] if state else 0

    make_out_dir(out / "checkpoints")
    write_config(out, {**vars(flags), "csv_file": flags.train_csv},
                 {"device": device_name(device), "start_epoch": start, "backbone": weights, **counts})
    log = RunLog(out, True, start * len(batches))
    for line in (*lines, f"{out}: order head on level {flags.level} of {weights['net']} "
                         f"({weights['weights']}), {num_pairs} clips and their reversals, {len(batches)} "
                         f"step(s) an epoch, on {device_name(device)}"):
        log.say(line)
    if flags.augment:
        rows = AugmentedRows(backbone, videos["train"], clip_settings(flags), flags.level, batches,
                             flags.num_workers, flags.batch, device)
    else:
        features = features_of("train", backbone, weights, videos["train"], flags, device)
        rows = StoredRows(features, batches, device)

    for epoch in range(start, flags.epochs):
        batches.epoch = epoch
        lr = flags.lr * (0.1 if epoch >= flags.lr_decay_epoch else 1.0)
        for group in optimizer.param_groups:
            group.update(lr=lr, weight_decay=flags.weight_decay)
        loss, accuracy = train_one_epoch(head, optimizer, rows)
        if not math.isfinite(loss):
            raise NonFiniteError(f"epoch {epoch + 1}: the loss is {loss}; the newest head is from before")
        values = {"loss": loss, "accuracy": accuracy, "lr": lr}
        log.write("epoch", epoch, (epoch + 1) * len(batches), values)
        log.say(f"epoch {epoch + 1}/{flags.epochs}  loss {loss:.4f}  order accuracy {accuracy:.3f}  "
                f"lr {lr:.1e}")
        source = checkpoint_path(out / "checkpoints", epoch + 1)
        write_checkpoint(head_state(head, optimizer, epoch + 1, weights, train_videos, flags), source)
        prune_checkpoints(out / "checkpoints", KEEP_EVERY, source)
    log.close()
    choices = {"epochs": flags.epochs, **{name: getattr(flags, name) for name in TRAINING_FLAGS}}
    write_result(head, source, backbone, weights, videos["test"], flags, device, choices, counts, begin)
    return head


def evaluate(
    backbone: nn.Module, weights: dict[str, Any], flags: argparse.Namespace, device: torch.device
) -> None:
    """Test a trained head on held-out videos, and write result_eval.json into `--out`.

    The training list must be the one that the head was trained on, so that none of its videos is tested.
    """
    begin = time.monotonic()
    head, state = find_head(weights, flags, device)
    videos, counts, train_videos = read_videos(flags)
    check_train_videos(state, flags.head, train_videos, flags.train_csv)
    choices = {"epochs": state["epochs_done"], **state["training"]}
    write_result(head, Path(flags.head), backbone, weights, videos["test"], flags, device, choices, counts, begin,
                 EVAL_CARD)


def write_result(
    head: nn.Linear, head_path: Path, backbone: nn.Module, weights: dict[str, Any], videos: Sequence[VideoRecord],
    flags: argparse.Namespace, device: torch.device, choices: dict[str, Any], counts: dict[str, int],
    begin: float, name: str = CARD,
) -> None:
    """Measure the head's order accuracy on `videos`, write the card, print its table."""
    features = features_of("test", backbone, weights, videos, flags, device)
    metrics = {flags.level: order_accuracy(head, torch.from_numpy(features).to(device))}
    outcome = Outcome(Split(None, flags.train_csv, flags.test_csv), metrics,
                      {**counts, "head": str(head_path), "head_sha256": file_sha256(head_path)})
    settings = {**asdict(clip_settings(flags)), **choices}
    card = build_card("temporal_order", [outcome], settings, weights, device, time.monotonic() - begin)
    make_out_dir(Path(flags.out))
    print(f"wrote {write_card(Path(flags.out), card, name)}\n")
    print(markdown_table(card, ("clips", "clip_frames", "img_dim", "seed")), flush=True)


def features_of(
    role: str, backbone: nn.Module, weights: dict[str, Any], videos: Sequence[VideoRecord],
    flags: argparse.Namespace, device: torch.device,
) -> np.ndarray:
    """float32 [2P, C] at `--level`: those kept in `--feature_dir`, else computed now and kept there."""
    settings, csv_path = clip_settings(flags), getattr(flags, f"{role}_csv")
    fingerprint = {**feature_fingerprint(weights, flags.seed, csv_path, settings),
                   "orders": "natural, reversed"}
    path = store_path(flags.feature_dir or str(Path(flags.out) / "features"), fingerprint, f"order_{role}")
    make_out_dir(path.parent, "--feature_dir")
    stored = read_features(path, fingerprint)
    features = stored.features if stored else order_features(
        backbone, videos, settings, device, batch=flags.batch, num_workers=flags.num_workers, label=role)
    if stored is None:
        write_features(path, fingerprint, features, {})
    print(f"{role}: features of {len(features[flags.level])} clips "
          f"{'computed' if stored is None else f'read from {path}'}", flush=True)
    return features[flags.level]


def visualize(
    backbone: nn.Module, weights: dict[str, Any], flags: argparse.Namespace, device: torch.device
) -> None:
    """Write pictures and a film of the maps of each of the first `--num_videos` videos' middle clip.

    They take the place of earlier ones in OUT/cam.
    """
    require_h264()
    head, _ = find_head(weights, flags, device)
    settings, folder = replace(clip_settings(flags), clips=1), Path(flags.out) / "cam"
    videos, num_short = videos_long_enough(flags.test_csv, read_records(flags.test_csv, labelled=False), settings)
    print(f"test: {len(videos)} videos of {flags.test_csv}, {num_short} left out as shorter than a clip")
    backbone.to(device)
    num_removed = remove_cams(folder)
    if num_removed:
        print(f"{folder}: removed {num_removed} earlier film(s) and their pictures", flush=True)
    for number, video in enumerate(videos[:flags.num_videos]):
        clips = both_orders(read_clips(video, settings), time_dim=1)
        inputs = scale_clips(clips.to(device))
        maps = returncam(backbone, head, inputs, flags.level).cpu()
        film = write_cams(folder, cam_name(number, video.path), clips.numpy(), maps.numpy(),
                          order_evidence(maps)[0].numpy(), scale=flags.scale, folders=(flags.pos, flags.neg),
                          fps=flags.fps)
        print(f"{film}: mean evidence {maps[0].mean():+.3f} for natural order of the natural clip, "
              f"{maps[1].mean():+.3f} for reversed order of the reversed one", flush=True)


def run_mode(context: DistContext, flags: argparse.Namespace) -> None:
    """All that `--mode` asks for, from checked flags."""
    backbone, weights = load_backbone(flags.weights, flags.net, flags.seed)
    backbone.requires_grad_(False).eval()
    mode = {"train": train, "eval": evaluate, "visualize": visualize}[flags.mode]
    mode(backbone, weights, flags, context.device)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0; what else there is, see `utils.errors`, is told in one line."""
    parser = order_parser(__doc__)
    flags = parser.parse_args(arguments)
    print_any_name()
    try:
        check_flags(flags)
    except InputError as error:
        return report(error, parser.prog) if os.environ.get("RANK", "0") == "0" else error.exit_status
    if flags.mode != "train":
        del flags.resume  # where a process is lost, there is nothing to go on with
    return run_told(lambda: DistContext(0, 1, choose_device(flags.gpu)), run_mode, flags, parser.prog)


if __name__ == "__main__":
    sys.exit(main())
