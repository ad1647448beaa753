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
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from dataset.records import read_records, usable_for_pretraining
from dataset.transforms import IMAGENET, read_input
from dataset.videos import EpochBatchSampler, PretrainVideos, build_loader, collate_pretraining, prepare_views
from models.convert import check_keys, unwrap
from models.multilevel import MultiLevelModel
from models.objective import Objective
from utils.checkpoint import (Progress, canonical, checkpoint_path, find_checkpoint, pretraining_state, read_weights,
                              reading_entries, restore_pretraining, save_checkpoint)
from utils.distributed import (DistContext, average_gradients, check_same_on_all_ranks, gather_objects, gather_rows,
                               place_model, run_long_on_main, run_on_all_ranks, run_on_main, share_buffers)
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
    batches: EpochBatchSampler
    loader: DataLoader
    model: MultiLevelModel
    optimizer: torch.optim.Optimizer
    objective: Objective
    stop: StopRequest
    progress: Progress
    meter: EpochMeter
    timer: PhaseTimer
    monitor: Callable[[nn.Module], dict[str, float]] | None
    log: RunLog
    saved: Path | None  # the newest checkpoint
    csv_sha256: str
    scale: dict[str, object]  # of `scale_clips`
    initial: dict[str, object] | None  # what --init_from loaded at the run's start
    lock: object  # of the run directory, in the main process; free when the run ends


def pretrain(context: DistContext, flags: argparse.Namespace, make_monitor: Callable | None = None) -> int:
    """Trains in this process up to `--epoch`, `--stop_after` or a request to stop; returns the exit status.

    `make_monitor`: (context, flags, scale) -> monitor of `--monitor_csv`.
    """
    run = build_run(context, flags, make_monitor)
    progress, begin = run.progress, run.progress.epoch
    if flags.dry_run:
        progress.epoch = min(max(flags.graph_start_epoch, flags.queue_start_epoch, 1), flags.epochs - 1)  # all is in use
    end = min(flags.epochs, begin + (flags.stop_after or flags.epochs))
    if begin >= flags.epochs:
        run.log.say(f"nothing to do: {begin} of {flags.epochs} epochs are done")

    train_model, stopped = None, False
    run_monitor(run)
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
        run.batches.set_epoch(progress.epoch, progress.step)
        stopped = train_one_epoch(run, train_model)
        if progress.step == run.batches.steps_per_epoch:
            progress.epoch, progress.step = progress.epoch + 1, 0
            run.meter = EpochMeter(run.batches.global_batch, context.device)
        save(run)
        if not stopped or progress.epoch == flags.epochs:
            run_monitor(run)
    run.stop.release(signal.SIG_IGN)  # about to end
    run.log.close()
    if run.saved:
        run.log.say(f"newest checkpoint: {run.saved}")
    if stopped and progress.epoch < flags.epochs:
        run.log.say("stopped on request; --resume resumes from there")
        return STOPPED
    return 0


def build_run(context: DistContext, flags: argparse.Namespace, make_monitor: Callable | None) -> TrainingRun:
    """Returns everything that a run needs, restored from the checkpoint that `--resume` finds."""
    stop = StopRequest()
    check_same_on_all_ranks({f"flag {name}": value for name, value in vars(flags).items() if name not in FLAGS_OF_A_MACHINE}
                            | {"--monitor_csv given": bool(flags.monitor_csv)})
    csv_sha256 = file_sha256(flags.csv_file)
    check_same_on_all_ranks({"--csv_file (SHA-256)": csv_sha256})
    counts = None if context.world_size == 1 else run_long_on_main(
        context, lambda: [video.num_frames for video in read_records(flags.csv_file, labelled=False)])
    videos, num_dropped = run_on_all_ranks(lambda: usable_for_pretraining(
        read_records(flags.csv_file, labelled=False, counts=counts), flags.num_clips, flags.clip_frames, flags.csv_file))
    batches = run_on_all_ranks(lambda: EpochBatchSampler(
        len(videos), flags.batch_per_gpu, context.rank, context.world_size, flags.seed))
    dataset = PretrainVideos(videos, flags.num_clips, flags.clip_frames, flags.max_stride, flags.img_dim, flags.seed,
                             flags.augment_on == "device", flags.decode == "half", flags.color_draws == "clip",
                             flags.swap_background)
    loader = build_loader(dataset, batches, flags.num_workers, context.device, collate_pretraining, flags.dist_timeout)

    torch.manual_seed(flags.seed)
    model = place_model(MultiLevelModel(flags.net, flags.embedding_dim, flags.num_prototypes), context, flags.channels_last)
    model.backbone.checkpoint_activations = flags.checkpoint_activations
    optimizer = torch.optim.Adam(model.parameters(), flags.lr, weight_decay=flags.weight_decay, fused=True)
    objective = Objective(flags.queue_rows, flags.queue_start_epoch, flags.graph_start_epoch, flags.graph_threshold,
                          flags.graph_reduction, parse_loss_weights(flags.loss_weights), flags.reversed_negatives == "on")

    out = Path(flags.out or f"runs/{Path(flags.csv_file).stem}_{flags.net}")
    lock, source, checkpoint, notes, progress, sums = None, None, None, [], Progress(), None
    if not flags.dry_run:
        lock = run_on_all_ranks(lambda: hold_directory(out, flags.dist_timeout / 2) if context.is_main else None)
        source, checkpoint, notes = run_on_all_ranks(lambda: find_checkpoint(out, flags.resume))
    scale, initial = {**IMAGENET, "frames": flags.input_frames}, None
    if checkpoint:
        scale, initial = run_on_all_ranks(lambda: (
            {**read_input(checkpoint, str(source)), "frames": flags.input_frames}, check_initial(checkpoint, source, flags)))
        progress, sums, differences = run_on_all_ranks(lambda: restore_pretraining(
            checkpoint, source, model, optimizer, objective.queue, batches.global_batch, csv_sha256, flags, context))
        notes += [f"resumed from {source}: {progress.epoch} epoch(s) and {progress.step} step(s) done", *differences]
    elif flags.init_from:
        scale, initial = run_on_all_ranks(lambda: load_initial_weights(model, flags))
        check_same_on_all_ranks({"--init_from (SHA-256)": initial["sha256"]})
        notes.append("initial weights: {path} ({kind} of {net}), {loaded} entries; random: {random}".format(**initial))
    monitor = run_on_all_ranks(lambda: make_monitor(context, flags, scale)) if flags.monitor_csv else None
    epoch_is_over = progress.step >= batches.steps_per_epoch
    if epoch_is_over:
        notes.append(f"epoch {progress.epoch + 1} is over: too few of its videos are left for a step of "
                     f"{batches.global_batch}")
        progress.epoch, progress.step, sums = progress.epoch + 1, 0, None
    # Also waits until every process has searched for checkpoints, before the main one writes anything.
    check_same_on_all_ranks({"newest checkpoint (is --out on a file system that all share?)":
                             (progress.epoch, progress.step)})
    meter = EpochMeter(batches.global_batch, context.device)
    if sums:
        meter.load_state_dict(sums)

    if context.is_main and not flags.dry_run:
        (out / "checkpoints").mkdir(exist_ok=True)
        write_config(out, vars(flags), {"device": device_name(context.device), "processes": context.world_size,
                                        "videos": len(videos), "videos_too_short": num_dropped,
                                        "start_epoch": progress.epoch, "start_step": progress.step,
                                        "init_from": initial})
    log = RunLog(None if flags.dry_run else out, context.is_main, progress.total_steps)
    log.say("\n".join((
        f"{out}: {len(videos)} videos ({num_dropped} of {num_dropped + len(videos)} dropped: not more than "
        f"{flags.num_clips * flags.clip_frames} frames), {batches.steps_per_epoch} steps an epoch of "
        f"{batches.global_batch} videos ({batches.num_dropped} left out of each), {context.world_size} process(es) on "
        f"{device_name(context.device)}", *notes)))
    run = TrainingRun(flags, context, out, batches, loader, model, optimizer, objective, stop, progress, meter,
                      PhaseTimer(flags.dry_run or 0, context.device), monitor, log, source, csv_sha256, scale, initial, lock)
    if epoch_is_over:
        save(run)
    return run


def load_initial_weights(model: MultiLevelModel, flags: argparse.Namespace) -> tuple[dict, dict]:
    """Returns (how clips are scaled for the weights of `--init_from`, what was loaded from it into `model`).

    A whole model gives all entries but those whose shape --channel or --cluster change; a backbone or a classifier gives the
    backbone. The others stay as they are drawn. InputError unless net, input and every entry fit.
    """
    path = flags.init_from
    checkpoint, kind, net = read_weights(path)
    if net != canonical(flags.net):
        raise InputError(f"--init_from {path}: holds a {net}, --net is {flags.net}; add --net {net}")
    with reading_entries(path, "weights"):
        state, own = unwrap(checkpoint["model"]), model.state_dict()
        if kind == "model":
            with torch.device("meta"):
                check_keys(state, MultiLevelModel(net, checkpoint["embedding_dim"], checkpoint["num_prototypes"]))
            state = {name.replace("graph.", "graph_heads.", 1) if name.startswith("graph.") else name: value
                     for name, value in state.items()}
        else:
            prefix = "" if kind == "backbone" else "backbone."
            state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
            check_keys(state, model.backbone)
            state = {f"backbone.{name}": value for name, value in state.items()}
        kept = {name: value for name, value in state.items() if value.shape == own[name].shape}
        scale = read_input(checkpoint["weights"] if kind == "classifier" else checkpoint, path)
        if scale["frames"] != flags.input_frames:
            raise InputError(f"--init_from {path}: its input is {scale['frames']}, --input is {flags.input_frames}")
        model.load_state_dict(kept, strict=False)
    random = sorted({".".join(name.split(".")[:2]) for name in own.keys() - kept.keys()})
    return scale, {"path": path, "sha256": file_sha256(path), "kind": kind, "net": net, "loaded": len(kept),
                   "random": ", ".join(random) or "none"}


def check_initial(checkpoint: dict, source: Path, flags: argparse.Namespace) -> dict | None:
    """Returns what the run of `checkpoint` started from; InputError if `--init_from` names other weights."""
    initial = checkpoint.get("init_from")
    if flags.init_from:
        then = initial["sha256"] if isinstance(initial, dict) else None
        read_weights(flags.init_from)  # reports a file that cannot be read
        if file_sha256(flags.init_from) != then:
            raise InputError(f"--init_from {flags.init_from}: {source} is of a run that started from other weights "
                             f"({initial['path'] if then else 'random'}); name another --out, or leave --init_from out")
    return initial


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

    if flags.dry_run:  # whose epochs are cut short
        return report.stop
    if not run.meter.steps:
        raise NonFiniteError(f"epoch {epoch + 1}: all of its steps had non-finite values")
    summary = {**run.meter.averages(), "lr": run.optimizer.param_groups[0]["lr"], **run.meter.speed()}
    run.log.write("epoch", epoch, progress.total_steps, summary)
    run.log.say(f"epoch {epoch + 1}/{flags.epochs}  loss {summary['total']:.4f}  "
                f"instance top-1 {summary['accuracy_instance_high']:.3f}  "
                f"prototypes in use {summary['prototypes_in_use']:.0f}  lr {summary['lr']:.1e}  "
                f"{summary['samples_per_s']:.1f} videos/s  {summary['data_wait']:.0%} waiting for data")
    return report.stop


def run_monitor(run: TrainingRun) -> None:
    """Logs the monitor's values after every `--monitor_every`-th epoch and the last, unless an earlier start did so."""
    progress, epochs = run.progress, run.flags.epochs
    due = progress.epoch > 0 and (progress.epoch % run.flags.monitor_every == 0 or progress.epoch == epochs)
    if not run.monitor or run.flags.dry_run or progress.step or not due or any(
            gather_objects(run.log.has_monitored(progress.total_steps))):
        return
    share_buffers(run.model.backbone)
    values = run.monitor(run.model.backbone)
    run.log.write("monitor", progress.epoch - 1, progress.total_steps, values)
    run.log.say(f"epoch {progress.epoch}/{epochs}  monitor: " + "  ".join(f"{name.removeprefix('monitor_')} {value:.3f}"
                                                                       for name, value in values.items()))


def save(run: TrainingRun) -> None:
    """Writes a checkpoint; returns in every process once it is on the disk."""
    progress = run.progress
    state = pretraining_state(run.model, run.optimizer, run.objective.queue, progress, run.meter.state_dict(),
                              run.batches.global_batch, run.csv_sha256, run.flags,
                              run.scale, run.context, run.initial)
    run.saved = checkpoint_path(run.out / "checkpoints", progress.epoch, progress.step)
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


def make_monitor(context: DistContext, flags: argparse.Namespace, scale: dict) -> Callable[[nn.Module], dict[str, float]]:
    """Returns the monitor of `--monitor_csv`, whose modules are imported only if it is used."""
    from eval.monitor import ClipSettings, Monitor
    settings = ClipSettings(clips=1, clip_frames=flags.clip_frames, img_dim=flags.img_dim)
    return Monitor(*flags.monitor_csv, settings, context, scale=scale, batch=flags.batch_per_gpu,
                   num_workers=flags.num_workers)


def main(flags: argparse.Namespace) -> int:
    """Returns the exit status of the run. A missing csv file is reported before any port is opened."""
    for path in (flags.csv_file, *(flags.monitor_csv or ())):
        try:
            open(path).close()
        except OSError as error:
            raise InputError(f"{path}: cannot read the csv file: {error.strerror}") from error
    return launch(partial(pretrain, make_monitor=make_monitor), flags, "train.py")


if __name__ == "__main__":
    sys.exit(exit_status_of(lambda: main(FLAGS), "train.py"))
