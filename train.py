"""Pretrain a 3D CNN by multi-level feature optimization (Qian et al., ICCV 2021, arXiv 2108.02183).

The published runs, on all GPUs of one machine:

    python train.py --train_batch 64 --workers 8 --cluster 1000 --epoch 100 --lr_decay 70 --thres 0.05 \\
        --csv_file kinetics.csv --multiprocessing-distributed --split 20
    python train.py --train_batch 64 --workers 8 --cluster 200 --epoch 300 --lr_decay 200 -thres 0.05 \\
        --csv_file ucf_pretrain.csv --multiprocessing-distributed --split 50

Launching otherwise:

    python train.py --csv_file my.csv                                   one process, one GPU or the CPU
    torchrun --nproc_per_node 4 train.py --csv_file my.csv              processes started by torchrun
    python train.py --csv_file my.csv --multiprocessing-distributed \\
        --world-size 2 --rank 0 --dist-url tcp://HOST:10001             first of two machines (the other: --rank 1)
    python train.py --csv_file my.csv --resume                          resume from the newest checkpoint

Shapes: B videos of this process, V clips of T frames and their overview, H = W = `--img_dim`.
"""
# ruff: noqa: E402
from __future__ import annotations

if __name__ == "__main__":  # first, so that --help and a wrong flag are answered before torch is imported
    from utils.pretraining_flags import parse_pretraining_flags
    FLAGS = parse_pretraining_flags()

import argparse
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from dataset.records import PackedRecords, read_packed_records, usable_for_pretraining
from dataset.transforms import IMAGENET, read_input
from dataset.videos import EpochBatchSampler, PretrainVideos, build_loader, collate_pretraining, prepare_views
from models.multilevel import MultiLevelModel
from models.objective import Objective
from utils.checkpoint import (Progress, checkpoint_path, find_checkpoint, pretraining_state, restore_pretraining,
                              save_checkpoint)
from utils.distributed import (DistContext, average_gradients, check_same_on_all_ranks, gather_rows, place_model,
                               run_long_on_main, run_on_all_ranks, run_on_main)
from utils.errors import STOPPED, InputError, NonFiniteError, exit_status_of
from utils.files import file_sha256, hold_directory
from utils.launch import StopRequest, launch
from utils.pretraining_flags import parse_loss_weights
from utils.profiling import PhaseTimer, dry_run
from utils.step_checks import StepUndo, handle_not_finite, note_bad_videos, require_finite_weights, sync_step_status
from utils.training_log import EpochMeter, RunLog, StepValues, device_name, write_config

# Flags that may differ from one machine to the next; all others must be the same in every process.
FLAGS_OF_A_MACHINE = {"out", "csv_file", "gpu", "nproc", "num_workers", "node_rank", "dist_url", "resume", "path",
                      "init_from", "monitor_csv"}


@dataclass
class TrainingRun:
    """The parts of a run in this process."""

    flags: argparse.Namespace
    context: DistContext
    out: Path
    csv_sha256: str
    batches: EpochBatchSampler
    loader: DataLoader
    model: MultiLevelModel
    optimizer: torch.optim.Optimizer
    objective: Objective
    stop: StopRequest
    meter: EpochMeter
    timer: PhaseTimer
    scale: dict[str, object]  # of `scale_clips`
    lock: object  # of the run directory, in the main process; free when the run ends
    progress: Progress = field(default_factory=Progress)
    initial: dict[str, object] | None = None  # what --init_from loaded at the run's start
    saved: Path | None = None  # the newest checkpoint
    monitor: Callable[[], None] = lambda: None  # logs the monitor's values where they are due
    log: RunLog | None = None


def pretrain(context: DistContext, flags: argparse.Namespace) -> int:
    """Trains in this process up to `--epoch`, `--stop_after` or a request to stop; returns the exit status."""
    run = build_run(context, flags)
    progress, begin = run.progress, run.progress.epoch
    if flags.dry_run:
        progress.epoch = min(max(flags.graph_start_epoch, flags.queue_start_epoch, 1), flags.epochs - 1)  # all is in use
    end = min(flags.epochs, begin + (flags.stop_after or flags.epochs))
    if begin >= flags.epochs:
        run.log.say(f"nothing to do: {begin} of {flags.epochs} epochs are done")

    train_model, stopped = None, False
    run.monitor()
    while not stopped and progress.epoch < end:
        # Parameters not in use yet are frozen. DDP does not know frozen ones, so it is built again when that changes.
        changed = run.model.set_trainable(prototypes=progress.epoch > 0, graph=run.objective.uses_graph(progress.epoch))
        if changed or train_model is None:
            train_model = average_gradients(torch.compile(run.model) if flags.compile else run.model, context)
        for group in run.optimizer.param_groups:
            group.update(lr=flags.lr * (0.1 if progress.epoch >= flags.lr_decay_epoch else 1.0),
                         weight_decay=flags.weight_decay)
        if flags.dry_run:
            return profile(run, train_model)
        if progress.step < run.batches.steps_per_epoch:
            run.batches.set_epoch(progress.epoch, progress.step)
            stopped = train_one_epoch(run, train_model)
        else:  # resumed with another batch size or csv
            run.log.say(f"epoch {progress.epoch + 1} is over: too few of its videos are left for a step")
        if progress.step >= run.batches.steps_per_epoch:
            progress.epoch, progress.step = progress.epoch + 1, 0
            run.meter = EpochMeter(run.batches.global_batch, context.device)
        save(run)
        if not stopped or progress.epoch == flags.epochs:
            run.monitor()
    run.stop.release(signal.SIG_IGN)  # about to end
    run.log.close()
    if run.saved:
        run.log.say(f"newest checkpoint: {run.saved}")
    if stopped and progress.epoch < flags.epochs:
        run.log.say("stopped on request; --resume resumes from there")
        return STOPPED
    return 0


def read_videos(context: DistContext, flags: argparse.Namespace) -> tuple[PackedRecords, int, str]:
    """Returns (the csv's videos that are long enough, number of the others, SHA-256 of the csv)."""
    check_same_on_all_ranks({f"flag {name}": value for name, value in vars(flags).items() if name not in FLAGS_OF_A_MACHINE}
                            | {"--monitor_csv given": bool(flags.monitor_csv)})
    csv_sha256 = file_sha256(flags.csv_file)
    check_same_on_all_ranks({"--csv_file (SHA-256)": csv_sha256})
    counts = None if context.world_size == 1 else run_long_on_main(
        context, lambda: read_packed_records(flags.csv_file, labelled=False).num_frames)
    return *run_on_all_ranks(lambda: usable_for_pretraining(
        read_packed_records(flags.csv_file, labelled=False, counts=counts), flags.num_clips, flags.clip_frames,
        flags.csv_file)), csv_sha256


def build_run(context: DistContext, flags: argparse.Namespace) -> TrainingRun:
    """Returns everything that a run needs, restored from the checkpoint that `--resume` finds."""
    stop = StopRequest()
    videos, num_dropped, csv_sha256 = read_videos(context, flags)
    batches = run_on_all_ranks(lambda: EpochBatchSampler(
        len(videos), flags.batch_per_gpu, context.rank, context.world_size, flags.seed))
    dataset = PretrainVideos(videos, flags.num_clips, flags.clip_frames, flags.max_stride, flags.img_dim, flags.seed,
                             flags.augment_on == "device", flags.decode == "half", flags.color_draws == "clip",
                             flags.swap_background, flags.flip == "on")
    loader = build_loader(dataset, batches, flags.num_workers, context.device, collate_pretraining, flags.dist_timeout)
    torch.manual_seed(flags.seed)
    model = place_model(MultiLevelModel(flags.net, flags.embedding_dim, flags.num_prototypes), context, flags.channels_last)
    model.backbone.checkpoint_activations = flags.checkpoint_activations
    optimizer = torch.optim.Adam(model.parameters(), flags.lr, weight_decay=flags.weight_decay, fused=True)
    objective = Objective(flags.queue_rows, flags.queue_start_epoch, flags.graph_start_epoch, flags.graph_threshold,
                          flags.graph_reduction, parse_loss_weights(flags.loss_weights), flags.reversed_negatives == "on")
    out = Path(flags.out or f"runs/{Path(flags.csv_file).stem}_{flags.net}")
    lock = None if flags.dry_run else run_on_all_ranks(
        lambda: hold_directory(out, flags.dist_timeout / 2) if context.is_main else None)
    run = TrainingRun(flags, context, out, csv_sha256, batches, loader, model, optimizer, objective, stop,
                      EpochMeter(batches.global_batch, context.device), PhaseTimer(flags.dry_run or 0, context.device),
                      {**IMAGENET, "frames": flags.input_frames}, lock)
    notes = load_state(run)
    if flags.monitor_csv and not flags.dry_run:
        from eval.monitor import ClipSettings, Monitor  # only where it is used
        monitor = Monitor(*flags.monitor_csv, ClipSettings(1, flags.clip_frames, 1, flags.img_dim), context,
                          scale=run.scale, batch=flags.batch_per_gpu, num_workers=flags.num_workers)
        run.monitor = lambda: monitor.log_epoch(model.backbone, run.progress, flags, run.log)
    # Also waits until every process has searched for checkpoints, before the main one writes anything.
    check_same_on_all_ranks({"newest checkpoint (is --out on a file system that all share?)":
                             (run.progress.epoch, run.progress.step)})
    open_log(run, num_dropped, notes)
    return run


def load_state(run: TrainingRun) -> list[str]:
    """Restores the checkpoint that `--resume` finds, or loads `--init_from`; returns notes to print."""
    flags, context, batches, notes, checkpoint, sums = run.flags, run.context, run.batches, [], None, None
    if not flags.dry_run:
        run.saved, checkpoint, notes = run_on_all_ranks(lambda: find_checkpoint(run.out, flags.resume))
    if checkpoint:
        run.scale = run_on_all_ranks(lambda: {**read_input(checkpoint, str(run.saved)), "frames": flags.input_frames})
        run.progress, sums, differences = run_on_all_ranks(lambda: restore_pretraining(
            checkpoint, run.saved, run.model, run.optimizer, run.objective.queue, batches.global_batch, run.csv_sha256,
            flags, context))
        run.initial = checkpoint.get("init_from")
        notes += [f"resumed from {run.saved}: {run.progress.epoch} epoch(s) and {run.progress.step} step(s) done",
                  *differences]
    elif flags.init_from:
        from eval.features.backbone import load_initial_weights  # only where it is used
        run.scale, run.initial = run_on_all_ranks(lambda: load_initial_weights(
            run.model, flags.init_from, flags.net, flags.input_frames))
        check_same_on_all_ranks({"--init_from (SHA-256)": run.initial["sha256"]})
        notes.append("initial weights: {path} ({kind} of {net}), {loaded} entries; random: {random}".format(**run.initial))
    if sums:
        run.meter.load_state_dict(sums)
    return notes


def open_log(run: TrainingRun, num_dropped: int, notes: list[str]) -> None:
    """Begins to write the run directory, and prints what the run consists of."""
    flags, context, batches, progress = run.flags, run.context, run.batches, run.progress
    num_videos, device = len(run.loader.dataset), device_name(context.device)
    if context.is_main and not flags.dry_run:
        (run.out / "checkpoints").mkdir(exist_ok=True)
        write_config(run.out, vars(flags), {
            "device": device, "processes": context.world_size, "videos": num_videos, "videos_too_short": num_dropped,
            "start_epoch": progress.epoch, "start_step": progress.step, "init_from": run.initial})
    run.log = RunLog(None if flags.dry_run else run.out, context.is_main, progress.total_steps)
    run.log.say("\n".join((
        f"{run.out}: {num_videos} videos ({num_dropped} of {num_dropped + num_videos} dropped: not more than "
        f"{flags.num_clips * flags.clip_frames} frames), {batches.steps_per_epoch} steps an epoch of "
        f"{batches.global_batch} videos ({batches.num_dropped} left out of each), {context.world_size} process(es) on "
        f"{device}", *notes)))


def train_one_epoch(run: TrainingRun, train_model: nn.Module) -> bool:
    """Trains to the end of the epoch, or less on request, which it returns. `train_model`: `run.model`, perhaps wrapped."""
    flags, context, progress, epoch = run.flags, run.context, run.progress, run.progress.epoch
    records = run.loader.dataset.records
    gather = partial(gather_rows, all_gradients=flags.gather_gradient == "all")
    autocast = torch.autocast(context.device.type, torch.bfloat16, enabled=flags.amp == "bf16")
    undo = StepUndo(run.model, run.objective.queue) if flags.on_nonfinite == "skip" else None
    train_model.train()

    for batch in run.log.progress(run.meter.time_waiting(run.loader), epoch, flags.epochs):
        run.timer.mark("data")
        # Input: uint8 [B, V+1, T, H, W, 3] -> float [B, V+1, 3, T, H, W].
        views = prepare_views(batch, context.device, flags.channels_last, run.scale)
        if undo:
            undo.save()
        run.timer.mark("input")

        # Forward, and all losses in float32.
        run.model.prototype_head.normalize_()
        with autocast:
            output = train_model(views, with_graph=run.objective.uses_graph(epoch))
        run.timer.mark("forward")
        loss = run.objective(output, epoch, gather, context.rank)
        run.timer.mark("objective")

        # Backward.
        run.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        run.timer.mark("backward")
        values = StepValues(loss, [p.grad for p in run.model.parameters() if p.grad is not None])

        # All processes agree on what went wrong; non-finite values update nothing.
        report = sync_step_status(run.stop.requested, {records[i].path: reason for i, reason in batch.bad_videos.items()},
                                  values.not_finite(), [records[i].path for i in batch.videos], context)
        note_bad_videos(report, progress, len(records), flags.max_bad_fraction, run.log)
        run.timer.mark("checks")
        if report.not_finite:
            handle_not_finite(report, progress, flags.on_nonfinite, flags.max_skips, run.out, run.log)
            undo.restore()
            progress.skipped_steps += 1
        else:
            run.optimizer.step()
            require_finite_weights(run.model, progress)
            run.meter.update(values)
        progress.step, progress.total_steps = progress.step + 1, progress.total_steps + 1
        run.timer.mark("optimizer")

        if progress.step % flags.log_every == 0 and not report.not_finite:
            run.log.write("step", epoch, progress.total_steps, {**values.to_dict(), **run.meter.speed()})
        if progress.step < run.batches.steps_per_epoch:
            if report.stop or run.timer.enough:
                return report.stop
            if flags.save_steps and progress.step % flags.save_steps == 0 and not flags.dry_run:
                save(run)

    if not flags.dry_run:  # whose epochs are cut short
        log_epoch(run)
    return report.stop


def log_epoch(run: TrainingRun) -> None:
    """Logs and prints the means over a finished epoch; NonFiniteError if all of its steps were skipped."""
    epoch, flags = run.progress.epoch, run.flags
    if not run.meter.steps:
        raise NonFiniteError(f"epoch {epoch + 1}: all of its steps had non-finite values")
    summary = {**run.meter.averages(), "lr": run.optimizer.param_groups[0]["lr"], **run.meter.speed()}
    run.log.write("epoch", epoch, run.progress.total_steps, summary)
    run.log.say(f"epoch {epoch + 1}/{flags.epochs}  loss {summary['total']:.4f}  "
                f"instance top-1 {summary['accuracy_instance_high']:.3f}  "
                f"prototypes in use {summary['prototypes_in_use']:.0f}  lr {summary['lr']:.1e}  "
                f"{summary['samples_per_s']:.1f} videos/s  {summary['data_wait']:.0%} waiting for data")


def save(run: TrainingRun) -> None:
    """Writes a checkpoint; returns in every process once it is on the disk."""
    state = pretraining_state(run.model, run.optimizer, run.objective.queue, run.progress, run.meter.state_dict(),
                              run.batches.global_batch, run.csv_sha256, run.flags, run.scale, run.context, run.initial)
    run.saved = checkpoint_path(run.out / "checkpoints", run.progress.epoch, run.progress.step)
    run_on_main(run.context, lambda: save_checkpoint(state, run.saved, run.flags.save_every, run.log))


def profile(run: TrainingRun, train_model: nn.Module) -> int:
    """Runs `--dry_run`; returns the exit status. Nothing is written."""
    flags, context, epoch = run.flags, run.context, run.progress.epoch

    def train_some() -> bool:
        run.batches.set_epoch(epoch)
        run.progress.step = 0
        return train_one_epoch(run, train_model)

    def step_on_blank_videos(num_videos: int) -> None:
        views = torch.zeros(num_videos, flags.num_clips + 1, 3, flags.clip_frames, flags.img_dim, flags.img_dim,
                            device=context.device)
        with torch.autocast(context.device.type, torch.bfloat16, enabled=flags.amp == "bf16"):
            output = run.model(views, with_graph=run.objective.uses_graph(epoch))
        run.objective(output, epoch, lambda rows: rows, 0).total.backward()

    return dry_run(run.timer, train_some, lambda index: run.loader.dataset[epoch, index], step_on_blank_videos,
                   run.batches.steps_per_epoch, flags, context, run.log.say)


def main(flags: argparse.Namespace) -> int:
    """Returns the exit status of the run. A missing csv file is reported before any port is opened."""
    for path in (flags.csv_file, *(flags.monitor_csv or ())):
        try:
            open(path).close()
        except OSError as error:
            raise InputError(f"{path}: cannot read the csv file: {error.strerror}") from error
    return launch(pretrain, flags, "train.py")


if __name__ == "__main__":
    sys.exit(exit_status_of(lambda: main(FLAGS), "train.py"))
