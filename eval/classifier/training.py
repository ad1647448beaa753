"""Training of a video classifier in a run directory: one random clip of each video per epoch, resumable.

Shapes: B videos per process; T frames per clip, S = `--img_dim`; K classes.
"""
from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from dataset.records import VideoRecord
from dataset.transforms import FinetuneAugmentation, scale_clips
from dataset.videos import EpochBatchSampler, LabelledVideos, build_loader
from eval.classifier.model import VideoClassifier, decay_lr
from eval.classifier.state import classifier_state, restore_classifier
from utils.checkpoint import Progress, checkpoint_path, find_checkpoint, save_checkpoint
from utils.distributed import (DistContext, average_gradients, check_same_on_all_ranks, run_on_all_ranks, run_on_main,
                               share_buffers, true_on_any_rank)
from utils.errors import AgreedError
from utils.files import hold_directory
from utils.launch import StopRequest
from utils.step_checks import handle_not_finite, note_bad_videos, sync_step_status
from utils.training_log import EpochMeter, RunLog, StepValues, device_name, write_config


class ClassifierLoss(NamedTuple):
    """Cross-entropy of each level's head and their sum; `metrics`: accuracy of each, 0 to 1."""

    total: Tensor
    terms: dict[str, Tensor]
    metrics: dict[str, Tensor]


def classifier_loss(logits: Mapping[str, Tensor], labels: Tensor) -> ClassifierLoss:
    """Returns the loss, in float32, of level -> logits [B, K] for classes [B]."""
    terms = {f"loss_{level}": F.cross_entropy(x.float(), labels) for level, x in logits.items()}
    metrics = {f"accuracy_{level}": (x.argmax(dim=1) == labels).float().mean() for level, x in logits.items()}
    return ClassifierLoss(torch.stack(list(terms.values())).sum(), terms, metrics)


class TrainedClassifier(NamedTuple):
    """A classifier, the checkpoint of its newest state (None before the first) with its path, and whether training was
    stopped on request."""

    model: VideoClassifier
    checkpoint: dict[str, Any] | None
    path: Path | None
    stopped: bool = False


def fit_classifier(model: VideoClassifier, optimizer: torch.optim.Optimizer, videos: Sequence[VideoRecord],
                   identity: Mapping[str, Any], validate: Callable[[], Mapping[str, float]] | None, context: DistContext,
                   flags: argparse.Namespace, out: Path) -> TrainedClassifier:
    """Trains `model` in place, from the newest checkpoint in `out` with `--resume`. All processes must call this.

    A checkpoint is written after each epoch, none within an epoch that is stopped on request. `identity`: see
    `classifier_state`; a checkpoint of anything else is not resumed. The values of `validate` are logged after each
    epoch and not used otherwise. The processes end with the same weights and batch norm statistics.
    """
    stop, progress = StopRequest(), Progress()
    batches = EpochBatchSampler(len(videos), flags.batch_per_gpu, context.rank, context.world_size, flags.seed)
    clips = LabelledVideos(videos, flags.clip_frames, flags.stride, FinetuneAugmentation(flags.img_dim, flags.flip == "on"),
                           flags.seed, flags.skip_bad)
    loader = build_loader(clips, batches, flags.num_workers, context.device, timeout_s=flags.dist_timeout)
    torch.manual_seed(flags.seed + context.rank)  # for dropout, which should differ between processes
    lock = run_on_all_ranks(lambda: hold_directory(out, flags.dist_timeout / 2) if context.is_main else None)
    path, state, notes = run_on_all_ranks(lambda: find_checkpoint(out, flags.resume))
    if state:
        progress = run_on_all_ranks(lambda: restore_classifier(state, path, model, optimizer, identity, flags, context))
        notes.append(f"resumed from {path} after epoch {progress.epoch}")
    # Also waits until every process has searched for checkpoints, before the main one writes anything.
    check_same_on_all_ranks({
        "--train_csv (videos)": identity["videos"], "--train_csv (numbers of frames)": identity["frame_counts"],
        "newest checkpoint (is --out on a file system that all share?)": progress.epoch})
    if context.is_main:
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_config(out, {**vars(flags), "csv_file": identity["train_csv"]}, {
            "device": device_name(context.device), "processes": context.world_size, "start_epoch": progress.epoch})
    log = RunLog(out, context.is_main, progress.total_steps)
    log.say(f"{out}: {len(videos)} training videos, {batches.steps_per_epoch} steps per epoch of {batches.global_batch} "
            f"({batches.num_dropped} left out of each), {context.world_size} process(es) on {device_name(context.device)}")
    for note in notes:
        log.say(note)

    train_model, stopped = average_gradients(model, context), False
    end = min(flags.epochs, progress.epoch + (flags.stop_after or flags.epochs))
    while not stopped and progress.epoch < end:
        decay_lr(optimizer, progress.epoch, flags.lr_decay_epochs)
        batches.set_epoch(progress.epoch)
        stopped = train_classifier_epoch(model, train_model, optimizer, loader, progress, stop, context, flags, out, log)
        if progress.step < batches.steps_per_epoch:
            break
        progress.epoch, progress.step = progress.epoch + 1, 0
        left = {video.label for video in videos if video.path not in progress.bad_videos}
        for video in videos:
            if video.label not in left:
                raise AgreedError(f"{identity['train_csv']}: none of its training videos of the class of {video.path} can "
                                  f"be read: nothing could be learned about that class ({progress.bad_videos[video.path]})")
        if validate:
            share_buffers(model)
            values = validate()
            log.write("validation", progress.epoch - 1, progress.total_steps, values)
            log.say("validation  " + "  ".join(f"{name} {value:.3f}" for name, value in values.items()))
        state = classifier_state(model, optimizer, progress, identity, flags, context)
        path = checkpoint_path(out / "checkpoints", progress.epoch)
        run_on_main(context, lambda: save_checkpoint(state, path, flags.save_every, log))
    log.close()
    del lock  # releases it
    share_buffers(model)
    # A request since the last step counts too: the test would take longer than a batch system waits.
    stopped = true_on_any_rank([stopped or stop.requested], context)[0]
    stop.release()
    return TrainedClassifier(model, state, path, stopped)


def train_classifier_epoch(model: VideoClassifier, train_model: nn.Module, optimizer: torch.optim.Optimizer,
                           loader: DataLoader, progress: Progress, stop: StopRequest, context: DistContext,
                           flags: argparse.Namespace, out: Path, log: RunLog) -> bool:
    """Trains `train_model` (`model`, perhaps wrapped) on every video once; returns whether a stop was requested, which may
    end the epoch early."""
    device, epoch, records = context.device, progress.epoch, loader.dataset.records
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=flags.amp == "bf16")
    meter = EpochMeter(flags.batch_per_gpu * context.world_size, device)
    train_model.train()
    for clips, labels, indices, reasons in log.progress(meter.time_waiting(loader), epoch, flags.epochs):
        # Input: uint8 [B, T, S, S, 3] -> float [B, 3, T, S, S].
        views = scale_clips(clips.to(device, non_blocking=True), **model.scale, channels_last=flags.channels_last)
        with autocast:
            logits = train_model(views)
        loss = classifier_loss(logits, labels.to(device, non_blocking=True))
        optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        values = StepValues(loss, [p.grad for p in model.parameters() if p.grad is not None])

        # All processes agree on what went wrong; non-finite values update nothing.
        paths = [records[index].path for index in indices.tolist()]
        bad = {path: reason for path, reason in zip(paths, reasons) if reason}
        report = sync_step_status(stop.requested, bad, values.not_finite(), paths, context)
        note_bad_videos(report, progress, len(records), 1.0, log)
        if report.not_finite:
            handle_not_finite(report, progress, "stop", 0, out, log)
        optimizer.step()
        meter.update(values)
        progress.step, progress.total_steps = progress.step + 1, progress.total_steps + 1
        if progress.step % flags.log_every == 0:
            log.write("step", epoch, progress.total_steps, {**values.to_dict(), **meter.speed()})
        if report.stop and progress.step < len(loader):
            return True

    rates = {f"lr_{group['name']}": group["lr"] for group in optimizer.param_groups}
    summary = {**meter.averages(), **rates, **meter.speed()}
    log.write("epoch", epoch, progress.total_steps, summary)
    correct = "  ".join(f"{name} {value:.3f}" for name, value in summary.items() if name.startswith("accuracy"))
    log.say(f"epoch {epoch + 1}/{flags.epochs}  loss {summary['total']:.4f}  {correct}  lr {rates['lr_heads']:.1e}  "
            f"{summary['samples_per_s']:.1f} videos/s  {summary['data_wait']:.0%} waiting for data")
    return report.stop
