"""Checkpoints: written so that a whole one is always there, read without running anything in them."""
from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, Callable

import safetensors.torch
import torch

from utils.checkpoint_form import find_problem, is_flags
from utils.distributed import DistContext, gather_objects
from utils.errors import InputError
from utils.files import write_atomically
from utils.progress import Progress
from utils.training_log import RunLog

FORMAT = "mfo"
NAME = re.compile(r"epoch_(\d+)(?:_step_(\d+))?\.pt")
# Flags that say what the weights and the optimizer's state are; a resumed run must have the same.
FIXED_FLAGS = {"net": "--net", "embedding_dim": "--channel", "num_prototypes": "--cluster", "num_clips": "--sample"}
# Flags that say where and how fast a run goes, not what it computes.
FREE_FLAGS = {"resume", "path", "out", "num_workers", "save_every", "save_steps", "stop_after", "log_every", "gpu", "nproc",
              "multiprocessing_distributed", "num_nodes", "node_rank", "dist_url", "dist_backend", "dist_timeout",
              "max_bad_fraction", "max_skips", "monitor_csv", "monitor_every", "dry_run", "checkpoint_activations"}


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The checkpoint at `path`, on the CPU. InputError, in one line, where it cannot be read.

    Only tensors and plain values are accepted (`weights_only`): a crafted file runs nothing. A file that ends in
    ".safetensors" must be one of `write_safetensors`.
    """
    if Path(path).suffix == ".safetensors":
        return read_safetensors(path)
    try:
        damaged = find_damage(path)
        if damaged:
            raise ValueError(f"{damaged} is damaged")
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


def find_damage(path: str | os.PathLike[str]) -> str | None:
    """The first part of a zip file that differs from its checksum, or None. torch itself does not look."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as file:
        return file.testzip()


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `write_safetensors` wrote: its configuration, and the weights under "model". InputError if it is not whole."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read the checkpoint: {error.strerror or error}") from error
    try:
        state = safetensors.torch.load(data)
        header = json.loads(data[8:8 + int.from_bytes(data[:8], "little")])
        configuration = json.loads(header["__metadata__"]["configuration"])
        return {**configuration, "model": state}
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: no whole file of weights with their configuration: "
                         f"{str(error).splitlines()[0] if str(error) else type(error).__name__}") from error


def write_safetensors(state: dict[str, torch.Tensor], configuration: dict[str, Any], path: Path) -> None:
    """Write weights and, as metadata, their `configuration` (plain values), as safely as `write_checkpoint`."""
    data = safetensors.torch.save(state, {"configuration": json.dumps(configuration)})
    write_with_advice(data, len(data), path)


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write so that `path` holds either what it held before or all of `checkpoint`, whatever happens meanwhile."""
    write_with_advice(lambda file: torch.save(checkpoint, file), num_bytes(checkpoint), path)


def write_with_advice(content: bytes | Callable[[BinaryIO], object], size: int, path: Path) -> None:
    """Writes a checkpoint atomically; InputError, with the `size` in bytes that it needs, where that fails."""
    try:
        write_atomically(path, content)
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save hides why it could not write
        if not isinstance(cause, OSError):
            raise
        reason = cause.strerror or str(error).splitlines()[0]
        if not path.parent.is_dir():
            raise InputError(f"{path}: cannot be written: there is no folder {path.parent}") from error
        raise InputError(f"{path}: the checkpoint could not be written: {reason}; it needs about {size / 1e6:.1f} MB, "
                         f"{shutil.disk_usage(path.parent).free / 1e6:.1f} MB are free there; earlier checkpoints are "
                         "unchanged") from error


def num_bytes(value: Any) -> int:
    """Bytes of all tensors inside `value`."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(num_bytes, value.values()))
    return sum(map(num_bytes, value)) if isinstance(value, (list, tuple)) else 0


def checkpoint_path(folder: Path, epochs: int, steps: int = 0) -> Path:
    """Where the checkpoint after `epochs` whole epochs and `steps` steps of the next lies."""
    return folder / (f"epoch_{epochs:04d}_step_{steps:06d}.pt" if steps else f"epoch_{epochs:04d}.pt")


def list_checkpoints(folder: Path) -> list[tuple[tuple[int, int], Path]]:
    """((whole epochs, steps of the next), path) of every checkpoint in `folder`, oldest first."""
    found = ((NAME.fullmatch(path.name), path) for path in folder.glob("epoch_*.pt"))
    return sorted(((int(match[1]), int(match[2] or 0)), path) for match, path in found if match)


def prune_checkpoints(folder: Path, save_every: int, written: Path) -> None:
    """Delete all but the checkpoint just `written` and those before it of every `save_every`-th whole epoch.

    What is said to be later than it is torn, or counts in steps of another batch. Parts of files that a kill cut off go too.
    """
    found = list_checkpoints(folder)
    [now] = [place for place, path in found if path == written]
    for (epochs, steps), path in found:
        if path != written and ((epochs, steps) > now or steps or epochs % save_every):
            path.unlink()
    for path in folder.glob("*.partial"):
        path.unlink()


def save_checkpoint(state: dict[str, Any], path: Path, save_every: int, log: RunLog) -> None:
    """Writes a checkpoint, after what has been logged is on the disk, and deletes those that it replaces."""
    log.sync()
    write_checkpoint(state, path)
    prune_checkpoints(path.parent, save_every, path)


def find_checkpoint(out: Path, resume: str | None) -> tuple[Path | None, dict[str, Any] | None, list[str]]:
    """(path, checkpoint, lines to tell) of what to go on from; None twice for a fresh run.

    `resume` None: `out` must hold no checkpoint, or InputError. "auto": the newest in `out` that is whole, None if
    there is none at all; InputError if there are some, and all are torn. Otherwise a path; `out` must not hold later
    checkpoints, or those of another run, which going on from there would delete.
    """
    present = list_checkpoints(out / "checkpoints")
    if resume not in (None, "auto"):
        named = Path(resume).resolve()
        later = [path.name for _, path in reversed(present)]
        later = later[:next((i for i, (_, path) in enumerate(reversed(present)) if path.resolve() == named), None)]
        if later:
            raise InputError(f"--resume {resume}: --out {out} holds {later[0]} already; --resume alone goes on from "
                             "the newest, another --out begins a branch")
        return Path(resume), read_checkpoint(resume), []
    if resume is None and present:
        raise InputError(f"--out {out}: holds a run already ({present[-1][1].name}); add --resume to go on with it, or name "
                         "another directory")
    torn: list[str] = []
    for _, path in reversed(present):
        try:
            return path, read_checkpoint(path), torn
        except InputError as error:
            torn.append(f"passed over: {error}")
    if torn:
        raise InputError(f"--resume: no whole checkpoint in {out / 'checkpoints'} ({torn[0]}); remove them to begin anew")
    return None, None, []


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


def pretraining_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer, queue: Any, progress: Progress,
                      sums: dict[str, Any], global_batch: int, csv_sha256: str, flags: argparse.Namespace,
                      context: DistContext) -> dict[str, Any]:
    """All that a run needs to go on as if it had not stopped. Every process must call this, each with its own `sums`."""
    return {
        "format": FORMAT, "kind": "model", "net": flags.net, "embedding_dim": flags.embedding_dim,
        "num_prototypes": flags.num_prototypes, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
        "queue": queue.state_dict(), "epochs_done": progress.epoch, "progress": progress.state_dict(),
        "global_batch": global_batch, "csv_sha256": csv_sha256, "flags": vars(flags),
        "processes": gather_objects({"random": random_state(context.device), "sums": sums}),
    }


def restore_pretraining(checkpoint: dict[str, Any], path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer,
                        queue: Any, global_batch: int, csv_sha256: str, flags: argparse.Namespace,
                        context: DistContext) -> tuple[Progress, dict[str, Any] | None, list[str]]:
    """Set everything to the state of `checkpoint`; returns (progress, this process's sums, lines on what differs).

    With another global batch or number of processes the position in the epoch is that of the videos seen (rounded down
    to whole steps), and the sums of the epoch so far are not known.
    """
    missing = sorted({"model", "optimizer", "queue", "flags", "progress", "processes", "global_batch", "csv_sha256"}
                     - checkpoint.keys())
    if missing or checkpoint.get("format") != FORMAT:
        raise InputError(f"{path}: no pretraining checkpoint to resume from: it lacks {', '.join(missing) or 'our format'}")
    then, now = checkpoint["flags"], vars(flags)
    for name, flag in FIXED_FLAGS.items() if is_flags(then) else ():
        if canonical(then.get(name)) != canonical(now[name]):
            raise InputError(f"{flag} {now[name]}: {path} was trained with {flag} {then.get(name)}")
    problem = find_problem(checkpoint, model, optimizer, flags.num_prototypes)
    if problem:
        raise InputError(f"{path}: damaged, or not of this project: {problem}")
    notes = [f"changed since: {name} {then[name]} -> {now[name]}" for name in sorted(now.keys() - FREE_FLAGS)
             if name in then and canonical(then[name]) != canonical(now[name])]
    if checkpoint["csv_sha256"] != csv_sha256:
        notes.append("changed since: the content of the csv; the order of its videos in the epoch at hand is another")
    progress, processes = Progress(**checkpoint["progress"]), checkpoint["processes"]
    try:
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        queue.load_state_dict(checkpoint["queue"], context.device)
        if queue.rows is not None and queue.rows.shape[1:] != (flags.num_clips, flags.num_prototypes):
            raise ValueError(f"the queue's rows are of shape {tuple(queue.rows.shape)}")
        same = len(processes) == context.world_size and checkpoint["global_batch"] == global_batch
        if same:
            set_random_state(processes[context.rank]["random"], context.device)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:  # damaged, or a stranger's
        raise InputError(f"{path}: its state does not fit this run: {str(error).splitlines()[0]}") from error
    if not same:
        notes.append(f"changed since: {len(processes)} process(es) with {checkpoint['global_batch']} videos a step -> "
                     f"{context.world_size} with {global_batch}: random states and batches differ from what they would have "
                     "been, and the means of the epoch at hand are those from here on")
        progress.step = progress.step * checkpoint["global_batch"] // global_batch
        return progress, None, notes
    graph_now, graph_then = (start <= progress.epoch for start in (
        now["graph_start_epoch"], then.get("graph_start_epoch", now["graph_start_epoch"])))
    if progress.step and graph_now != graph_then:
        notes.append("the graph constraint is switched inside an epoch: its means are those from here on")
        return progress, None, notes
    return progress, processes[context.rank]["sums"], notes


def canonical(value: Any) -> Any:
    """`value`, with the reference's name of a backbone replaced by ours."""
    return "r3d18" if value == "resnet18" else value
