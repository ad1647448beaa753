"""Pretrain a 3D CNN by multi-level feature optimization (Qian et al., ICCV 2021, arXiv 2108.02183).

The published runs, four GPUs of one machine:

    python train.py --net resnet18 --csv_file kinetics.csv --epoch 100 --lr_decay 70 --split 20 --cluster 1000 \\
        -thres 0.05 --train_batch 64 --gpu 0,1,2,3 --multiprocessing-distributed
    python train.py --net resnet18 --csv_file ucf101.csv --epoch 300 --lr_decay 200 --split 50 --cluster 200 \\
        -thres 0.05 --train_batch 64 --gpu 0,1,2,3 --multiprocessing-distributed

Other ways to start:

    python train.py --csv_file my.csv                                   one process, one GPU or the CPU
    torchrun --nproc_per_node 4 train.py --csv_file my.csv              processes started by torchrun
    python train.py --csv_file my.csv --multiprocessing-distributed \\
        --world-size 2 --rank 0 --dist-url tcp://HOST:10001             first of two machines (the other: --rank 1)
    python train.py --csv_file my.csv --resume                          go on where the run stopped

Shapes: B videos of this process, V clips of T frames and their overview, H = W = `--img_dim`.
"""
# ruff: noqa: E402
from __future__ import annotations

if __name__ == "__main__":  # first, so that --help and a wrong flag answer before torch is imported
    from utils.flags import parse_pretraining_flags
    FLAGS = parse_pretraining_flags()

import argparse
import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from dataset.records import read_records, usable_for_pretraining
from dataset.transforms import normalize
from dataset.videos import EpochBatchSampler, PretrainVideos, build_loader
from models.multilevel import MultiLevelModel
from models.objective import Objective
from utils.checkpoint import (checkpoint_path, list_checkpoints, pretraining_state, prune_checkpoints,
                              restore_pretraining, resume_source, write_checkpoint)
from utils.distributed import Process, gather_rows, launch, wait_for_all
from utils.metrics import EpochMeter, StepValues
from utils.runlog import RunLog, device_name, write_config


def pretrain(process: Process, flags: argparse.Namespace) -> None:
    """The whole run in this process: build, resume, and an epoch after the other, each with its checkpoint."""
    videos, num_dropped = usable_for_pretraining(
        read_records(flags.csv_file, labelled=False), flags.num_clips, flags.clip_frames, flags.csv_file)
    batches = EpochBatchSampler(len(videos), flags.batch_per_gpu, process.rank, process.world_size, flags.seed)
    dataset = PretrainVideos(videos, flags.num_clips, flags.clip_frames, flags.max_stride, flags.img_dim, flags.seed)
    loader = build_loader(dataset, batches, flags.num_workers, process.device)

    torch.manual_seed(flags.seed)
    model = MultiLevelModel(flags.net, flags.embedding_dim, flags.num_prototypes).to(process.device)
    if flags.channels_last:
        model.backbone.to(memory_format=torch.channels_last_3d)
    if process.device.type == "cuda" and process.world_size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    optimizer = torch.optim.Adam(model.parameters(), flags.lr, weight_decay=flags.weight_decay,
                                 fused=process.device.type == "cuda")
    objective = Objective(flags.queue_rows, flags.queue_start_epoch, flags.graph_start_epoch, flags.graph_threshold,
                          flags.graph_reduction)

    out = run_directory(flags)
    source = resume_source(out, flags.resume)
    wait_for_all()  # every process has looked for checkpoints before the main one writes anything
    start, notes = 0, []
    if source:
        start, notes = restore_pretraining(source, model, optimizer, objective.queue, flags, process)
    if process.is_main:
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_config(out, vars(flags), {"device": device_name(process.device), "processes": process.world_size,
                                        "videos": len(videos), "videos_too_short": num_dropped,
                                        "start_epoch": start})
    log = RunLog(out, process.is_main, start * batches.steps_per_epoch)
    for line in (
        f"{out}: {len(videos)} videos ({num_dropped} of {num_dropped + len(videos)} dropped: not more than "
        f"{flags.num_clips * flags.clip_frames} frames), {batches.steps_per_epoch} steps an epoch of "
        f"{batches.global_batch} videos ({batches.num_dropped} left out of each), {process.world_size} process(es) on "
        f"{device_name(process.device)}",
        *([f"resumed from {source} after epoch {start}"] if source else []), *notes,
    ):
        log.say(line)
    if start >= flags.epochs:
        log.say(f"nothing to do: {start} of {flags.epochs} epochs are done")

    train_model = None
    for epoch in range(start, min(flags.epochs, start + (flags.stop_after or flags.epochs))):
        # What is not in use yet is frozen and so unknown to the wrapper, which is made anew when that changes.
        changed = model.set_trainable(prototypes=epoch > 0, graph=objective.uses_graph(epoch))
        if changed or train_model is None:
            train_model = wrap(model, process, flags)
        for group in optimizer.param_groups:
            group["lr"] = flags.lr * (0.1 if epoch >= flags.lr_decay_epoch else 1.0)
        batches.set_epoch(epoch)
        train_one_epoch(train_model, model, objective, optimizer, loader, epoch, process, flags, log)
        state = pretraining_state(model, optimizer, objective.queue, epoch + 1, flags, process)
        if process.is_main:
            write_checkpoint(state, checkpoint_path(out / "checkpoints", epoch + 1))
            prune_checkpoints(out / "checkpoints", flags.save_every)
    log.close()
    if list_checkpoints(out / "checkpoints"):
        log.say(f"newest checkpoint: {list_checkpoints(out / 'checkpoints')[-1][1]}")


def train_one_epoch(train_model: nn.Module, model: MultiLevelModel, objective: Objective,
                    optimizer: torch.optim.Optimizer, loader: DataLoader, epoch: int, process: Process,
                    flags: argparse.Namespace, log: RunLog) -> None:
    """One pass over the videos; `train_model` is `model`, compiled or wrapped for several processes."""
    device = process.device
    gather = partial(gather_rows, all_gradients=flags.gather_gradient == "all")
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=flags.amp == "bf16")
    meter = EpochMeter(flags.batch_per_gpu * process.world_size, device)
    first_step = epoch * len(loader)
    train_model.train()

    for step, clips in enumerate(log.progress(meter.time_waiting(loader), epoch, flags.epochs), start=1):
        # Input: uint8 [B, V+1, T, H, W, 3] -> float [B, V+1, 3, T, H, W].
        views = normalize(clips.to(device, non_blocking=True))
        if not flags.channels_last:
            views = views.contiguous()

        # Forward, and all losses in float32.
        model.prototype_head.normalize_()
        with autocast:
            output = train_model(views, with_graph=objective.uses_graph(epoch))
        loss = objective(output, epoch, gather, process.rank)
        values = StepValues(loss)

        # Backward; nothing is updated by a loss that is not finite.
        optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        values.require_finite(epoch, step)
        optimizer.step()

        meter.update(values)
        if step % flags.log_every == 0:
            log.write("step", epoch, first_step + step, {**values.to_dict(), **meter.speed()})

    summary = {**meter.averages(), "lr": optimizer.param_groups[0]["lr"], **meter.speed()}
    log.write("epoch", epoch, first_step + len(loader), summary)
    log.say(f"epoch {epoch + 1}/{flags.epochs}  loss {summary['total']:.4f}  "
            f"instance top-1 {summary['accuracy_instance_high']:.3f}  "
            f"prototypes in use {summary['prototypes_in_use']:.0f}  lr {summary['lr']:.1e}  "
            f"{summary['samples_per_s']:.1f} videos/s  {summary['data_wait']:.0%} waiting for data")


def wrap(model: MultiLevelModel, process: Process, flags: argparse.Namespace) -> nn.Module:
    """`model` as it is trained: compiled on demand, its gradients averaged over processes."""
    train_model = torch.compile(model) if flags.compile else model
    if process.world_size == 1:
        return train_model
    return DistributedDataParallel(train_model, device_ids=[process.device] if process.device.type == "cuda" else None,
                                   gradient_as_bucket_view=True)


def run_directory(flags: argparse.Namespace) -> Path:
    """The run directory of these flags."""
    return Path(flags.out or f"runs/{Path(flags.csv_file).stem}_{flags.net}")


if __name__ == "__main__":
    sys.exit(launch(pretrain, FLAGS))
