"""Checkpoints: written so that a whole one is always there, read without running anything in them."""
from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Any

import torch

from utils.distributed import Process, gather_objects
from utils.errors import InputError

FORMAT = "mfo"
NAME = re.compile(r"epoch_(\d+)\.pt")
# Flags that say what the weights and the optimizer's state are; a resumed run must have the same.
FIXED_FLAGS = {"net": "--net", "embedding_dim": "--channel", "num_prototypes": "--cluster", "num_clips": "--sample"}
# Flags that say where and how fast a run goes, not what it computes.
FREE_FLAGS = {"resume", "path", "out", "num_workers", "save_every", "stop_after", "log_every", "gpu", "nproc",
              "multiprocessing_distributed", "num_nodes", "node_rank", "dist_url", "dist_backend", "dist_timeout"}


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The checkpoint at `path`, on the CPU. InputError, in one line, where it cannot be read.

    Only tensors and plain values are accepted (`weights_only`): a crafted file runs nothing.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot read the checkpoint: {error.strerror or error}") from error
    except Exception as error:  # a stranger's bytes can make the unpickler raise anything
        reason = str(error).strip().splitlines()
        raise InputError(f"{path}: not a whole checkpoint of tensors and plain values: "
                         f"{reason[0] if reason else type(error).__name__}") from error
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path}: holds a {type(checkpoint).__name__}, not a checkpoint")
    return checkpoint


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write so that `path` holds either what it held before or all of `checkpoint`, whatever happens meanwhile."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"{path}: the checkpoint could not be written: {error}") from error
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def checkpoint_path(folder: Path, epochs_done: int) -> Path:
    """Where the checkpoint after `epochs_done` epochs lies."""
    return folder / f"epoch_{epochs_done:04d}.pt"


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(epochs done, path) of every checkpoint in `folder`, oldest first."""
    found = ((NAME.fullmatch(path.name), path) for path in folder.glob("epoch_*.pt"))
    return sorted((int(match[1]), path) for match, path in found if match)


def prune_checkpoints(folder: Path, save_every: int) -> None:
    """Delete all but the newest checkpoint and those of every `save_every`-th epoch."""
    for epochs_done, path in list_checkpoints(folder)[:-1]:
        if epochs_done % save_every:
            path.unlink()


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of torch's random generators in this process; all other draws come from explicit seeds."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Go on from `random_state`."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def resume_source(out: Path, resume: str | None) -> Path | None:
    """The checkpoint to go on from, None for a fresh run.

    `resume` None: `out` must hold no checkpoint, or InputError. "auto": the newest in `out`, None if there is none.
    Otherwise a path.
    """
    if resume not in (None, "auto"):
        return Path(resume)
    present = list_checkpoints(out / "checkpoints")
    if resume is None and present:
        raise InputError(f"--out {out}: holds a run of {present[-1][0]} epoch(s) already; add --resume to go on with it, or "
                         "name another directory")
    return present[-1][1] if present else None


def pretraining_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer, queue: Any, epochs_done: int,
                      flags: argparse.Namespace, process: Process) -> dict[str, Any]:
    """All that a run needs to go on as if it had not stopped. Every process must call this."""
    return {
        "format": FORMAT, "kind": "model", "net": flags.net, "embedding_dim": flags.embedding_dim,
        "num_prototypes": flags.num_prototypes, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
        "queue": queue.state_dict(), "epochs_done": epochs_done, "flags": vars(flags),
        "random": gather_objects(random_state(process.device)),
    }


def restore_pretraining(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, queue: Any,
                        flags: argparse.Namespace, process: Process) -> tuple[int, list[str]]:
    """Set everything to the state at `path`; returns the epochs done and lines on what differs from then."""
    checkpoint = read_checkpoint(path)
    missing = {"optimizer", "queue", "epochs_done", "flags", "random", "model"} - checkpoint.keys()
    if missing:
        raise InputError(f"{path}: no pretraining checkpoint to resume from: it lacks {', '.join(sorted(missing))}")
    then, now = checkpoint["flags"], vars(flags)
    for name, flag in FIXED_FLAGS.items():
        if canonical(then[name]) != canonical(now[name]):
            raise InputError(f"{flag} {now[name]}: {path} was trained with {flag} {then[name]}")
    notes = [f"changed since: {name} {then[name]} -> {now[name]}" for name in sorted(now.keys() - FREE_FLAGS)
             if name in then and canonical(then[name]) != canonical(now[name])]
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    queue.load_state_dict(checkpoint["queue"], process.device)
    states = checkpoint["random"]
    if len(states) == process.world_size:
        set_random_state(states[process.rank], process.device)
    else:
        notes.append(f"changed since: {len(states)} process(es) -> {process.world_size}: global batch and random states "
                     "differ from what they would have been")
    return checkpoint["epochs_done"], notes


def canonical(value: Any) -> Any:
    """`value`, with the reference's name of a backbone replaced by ours."""
    return "r3d18" if value == "resnet18" else value
