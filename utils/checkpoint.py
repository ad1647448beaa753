"""Checkpoints: atomic writing, safe reading, and resuming."""
from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from utils.distributed import DistContext, gather_objects
from utils.errors import InputError
from utils.files import file_sha256, write_atomically

if TYPE_CHECKING:  # evaluations read checkpoints without a training log
    from utils.training_log import RunLog

FORMAT = "mfo"
NAME = re.compile(r"epoch_(\d+)(?:_step_(\d+))?\.pt")
# Flags that determine tensor shapes or what the network sees; they must not change on resume.
FIXED_FLAGS = {"net": "--net", "embedding_dim": "--channel", "num_prototypes": "--cluster", "num_clips": "--sample",
               "input_frames": "--input"}
# Flags that do not affect what a run computes.
FREE_FLAGS = {"resume", "path", "init_from", "out", "num_workers",
              "save_every", "save_steps", "stop_after", "log_every", "gpu", "nproc",
              "multiprocessing_distributed", "num_nodes", "node_rank", "dist_url", "dist_backend", "dist_timeout",
              "max_bad_fraction", "max_skips", "monitor_csv", "monitor_every", "dry_run", "checkpoint_activations"}
# What a pickled NumPy scalar consists of; the module was renamed in NumPy 2.
NUMPY_SCALARS = [np.dtype,
                 *((np.float64(0).__reduce__()[0], f"numpy.{module}.multiarray.scalar") for module in ("core", "_core")),
                 *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?SU"}]
REFUSED_TYPE = re.compile(r"(?:\bGLOBAL |<class ')(\w[\w.]+)")
DAMAGE = (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError)  # raised when damaged entries are read


@dataclass
class Progress:
    """Counts from the start of a run; saved in checkpoints by `asdict`, restored by `Progress(**saved)`."""

    epoch: int = 0          # whole epochs done
    step: int = 0           # steps done in the current epoch
    total_steps: int = 0
    skipped_steps: int = 0  # of these, skipped because of non-finite values
    bad_videos: dict[str, str] = field(default_factory=dict)  # path -> reason of each unreadable video met


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the checkpoint at `path`, on the CPU; InputError if it cannot be read.

    Only tensors, plain values and NumPy scalars are accepted, so an untrusted file runs no code. A ".safetensors"
    file must have been written by `write_safetensors`: its weights are under "model".
    """
    try:
        if Path(path).suffix == ".safetensors":
            with safetensors.safe_open(path, "pt") as file:
                configuration = json.loads(file.metadata()["configuration"])
            return {**configuration, "model": safetensors.torch.load_file(path)}
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                if damaged := file.testzip():  # torch.load does not compare checksums
                    raise ValueError(f"{damaged} is damaged")
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot read the checkpoint: {error.strerror or error}") from error
    except Exception as error:  # untrusted bytes can make the unpickler raise anything
        if refused := REFUSED_TYPE.search(str(error)):
            name = re.sub(r"^numpy\._?core\.multiarray\._reconstruct$", "numpy.ndarray", refused[1])
            raise InputError(f"{path}: holds an object of {name} beside tensors and plain values, which is not read, "
                             "as that could run code; load it where it was written and save the weights alone, by "
                             "torch.save(model.state_dict(), PATH)") from error
        reason = str(error).rpartition("WeightsUnpickler error: ")[2].strip().splitlines()
        raise InputError(f"{path}: not a whole checkpoint of tensors and plain values: "
                         f"{reason[0] if reason else type(error).__name__}") from error
    if not isinstance(checkpoint, dict):
        raise InputError(f"{path}: holds a {type(checkpoint).__name__}, not a checkpoint")
    return checkpoint


def read_weights(path: str) -> tuple[dict[str, Any], str, str]:
    """Returns (checkpoint, its kind, its net); InputError unless it is a model, backbone or classifier of this project."""
    checkpoint = read_checkpoint(path)
    form, kind, net = (value if isinstance(value, str) else None for value in map(checkpoint.get, ("format", "kind", "net")))
    if form != FORMAT or kind not in ("model", "backbone", "classifier") or net is None:
        raise InputError(f"{path}: no checkpoint of this project (format {form!r}, kind {kind!r}, net {net!r}); other "
                         "checkpoints must be converted first")
    refuse_old_conversion(checkpoint, path)
    return checkpoint, kind, canonical(net)


def refuse_old_conversion(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Raises InputError for 3D-ResNets weights converted before `..._time_pool`, or a classifier made from them."""
    kind, origin = checkpoint.get("kind"), checkpoint.get("weights")
    if kind == "classifier" and isinstance(origin, dict):  # a backbone in another file than an export was converted
        converted = origin.get("weights_kind") == "backbone" and not str(origin.get("weights")).endswith(".safetensors")
    else:
        converted = kind == "backbone" and "source" in checkpoint
    if converted and checkpoint.get("net") in ("r3d18", "r3d34", "r3d50"):
        raise InputError(f"{path}: 3D-ResNets weights that an earlier version converted, for a stem that does not pool over "
                         f"time as theirs does: convert them again{', and train again' if kind == 'classifier' else ''}")


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint atomically; InputError with the needed size if that fails."""
    data = io.BytesIO()
    torch.save(checkpoint, data)
    write_or_explain(data.getbuffer(), path)


def write_safetensors(state: dict[str, Tensor], configuration: dict[str, Any], path: Path) -> None:
    """Writes weights and, as metadata, their `configuration` (plain values), as `write_checkpoint` does."""
    write_or_explain(safetensors.torch.save(state, {"configuration": json.dumps(configuration)}), path)


def write_or_explain(data: bytes | memoryview, path: Path) -> None:
    """Writes atomically; InputError, with the size that is needed, where the disk is full or not writable."""
    try:
        write_atomically(path, data)
    except OSError as error:
        if not path.parent.is_dir():
            raise InputError(f"{path}: cannot be written: there is no folder {path.parent}") from error
        raise InputError(f"{path}: the checkpoint could not be written: {error.strerror}; it needs about "
                         f"{len(data) / 1e6:.1f} MB, {shutil.disk_usage(path.parent).free / 1e6:.1f} MB are free there; "
                         "earlier checkpoints are unchanged") from error


def checkpoint_path(folder: Path, epochs: int, steps: int = 0) -> Path:
    """Returns the path of the checkpoint after `epochs` whole epochs and `steps` steps of the next."""
    return folder / (f"epoch_{epochs:04d}_step_{steps:06d}.pt" if steps else f"epoch_{epochs:04d}.pt")


def list_checkpoints(folder: Path) -> list[tuple[tuple[int, int], Path]]:
    """Returns ((whole epochs, steps of the next), path) of every checkpoint in `folder`, oldest first."""
    found = ((NAME.fullmatch(path.name), path) for path in folder.glob("epoch_*.pt"))
    return sorted(((int(match[1]), int(match[2] or 0)), path) for match, path in found if match)


def prune_checkpoints(folder: Path, save_every: int, written: Path) -> None:
    """Deletes all checkpoints but the one just `written` and, of those before it, every `save_every`-th whole epoch's.

    Later ones are damaged or from another batch size, so they go too, as do partial files of a killed run.
    """
    found = list_checkpoints(folder)
    [now] = [place for place, path in found if path == written]
    for (epochs, steps), path in found:
        if path != written and ((epochs, steps) > now or steps or epochs % save_every):
            path.unlink()
    for path in folder.glob("*.partial"):
        path.unlink()


def save_checkpoint(state: dict[str, Any], path: Path, save_every: int, log: RunLog) -> None:
    """Writes a checkpoint, once everything logged is on the disk, and deletes those that it replaces."""
    log.sync()
    write_checkpoint(state, path)
    prune_checkpoints(path.parent, save_every, path)


def find_checkpoint(out: Path, resume: str | None) -> tuple[Path | None, dict[str, Any] | None, list[str]]:
    """Returns (path, checkpoint, notes to print) to resume from; (None, None, []) for a new run.

    `resume` None: InputError if `out` holds checkpoints. "auto": the newest whole one in `out`; InputError if all are
    damaged. A path: InputError if `out` holds later checkpoints, or those of another run, which resuming would delete.
    """
    present = [path for _, path in reversed(list_checkpoints(out / "checkpoints"))]
    if resume not in (None, "auto"):
        named = Path(resume).resolve()
        later = present[:next((i for i, path in enumerate(present) if path.resolve() == named), None)]
        if later:
            raise InputError(f"--resume {resume}: --out {out} holds {later[0].name} already; --resume alone resumes from "
                             "the newest, another --out starts a branch")
        return Path(resume), read_checkpoint(resume), []
    if resume is None and present:
        raise InputError(f"--out {out}: holds a run already ({present[0].name}); add --resume to resume it, or name another "
                         "directory")
    damaged = []
    for path in present:
        try:
            return path, read_checkpoint(path), damaged
        except InputError as error:
            damaged.append(f"skipped: {error}")
    if damaged:
        raise InputError(f"--resume: no whole checkpoint in {out / 'checkpoints'} ({damaged[0]}); remove them to start from "
                         "scratch")
    return None, None, []


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Returns the state of torch's random generators in this process; all other draws come from explicit seeds."""
    cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **cuda}


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def pretraining_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer, queue: Any, progress: Progress,
                      sums: dict[str, Any], global_batch: int, csv_sha256: str, flags: argparse.Namespace,
                      scale: dict[str, Any], context: DistContext,
                      initial: dict[str, Any] | None = None) -> dict[str, Any]:
    """Returns everything needed to resume exactly. Every process must call this, each with its own `sums` of the epoch.

    `scale`: how clips are scaled, for whoever uses the weights. `initial`: what `--init_from` loaded.
    """
    return {
        "format": FORMAT, "kind": "model", "net": flags.net, "embedding_dim": flags.embedding_dim,
        "num_prototypes": flags.num_prototypes, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
        "queue": queue.state_dict(), "epochs_done": progress.epoch, "progress": asdict(progress),
        "global_batch": global_batch, "csv_sha256": csv_sha256, "flags": vars(flags), "input": scale,
        "init_from": initial,
        "processes": gather_objects({"random": random_state(context.device), "sums": sums}),
    }


def restore_pretraining(checkpoint: dict[str, Any], path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer,
                        queue: Any, global_batch: int, csv_sha256: str, flags: argparse.Namespace,
                        context: DistContext) -> tuple[Progress, dict[str, Any] | None, list[str]]:
    """Sets everything to the state of `checkpoint`; returns (progress, this process's sums, notes on what differs).

    With another global batch or number of processes, the step in the epoch follows from the number of videos seen, rounded
    down, and the sums of the epoch are None.
    """
    with reading_entries(path, "model", checkpoint):
        then = {"input_frames": "rgb", "color_draws": "frame", "flip": "on", "swap_background": 0.0, **checkpoint["flags"]}
        now = vars(flags)
        for name, flag in FIXED_FLAGS.items():
            if canonical(then.get(name)) != canonical(now[name]):
                raise InputError(f"{flag} {now[name]}: {path} was trained with {flag} {then.get(name)}")
        model.load_state_dict(checkpoint["model"])
        # Settings of the optimizer come from this run's flags and code.
        optimizer.load_state_dict(optimizer.state_dict() | {"state": checkpoint["optimizer"]["state"]})
        queue.load_state_dict(checkpoint["queue"], context.device)
        initial = checkpoint.get("init_from")
        if flags.init_from and file_sha256(flags.init_from) != (initial or {}).get("sha256"):
            raise InputError(f"--init_from {flags.init_from}: {path} is of a run that started from other weights "
                             f"({initial['path'] if initial else 'random'}); name another --out, or leave --init_from out")
        progress, processes = Progress(**checkpoint["progress"]), checkpoint["processes"]
        notes = [f"changed since: {name} {then[name]} -> {now[name]}" for name in sorted(now.keys() - FREE_FLAGS)
                 if name in then and canonical(then[name]) != canonical(now[name])]
        if checkpoint["csv_sha256"] != csv_sha256:
            notes.append("changed since: the content of the csv; the order of its videos in the current epoch differs")
        if (len(processes), checkpoint["global_batch"]) != (context.world_size, global_batch):
            notes.append(f"changed since: {len(processes)} process(es) with {checkpoint['global_batch']} videos a step -> "
                         f"{context.world_size} with {global_batch}: random states and batches differ from an uninterrupted "
                         "run's, and the means of the current epoch are those of the steps from here on")
            progress.step = progress.step * checkpoint["global_batch"] // global_batch
            return progress, None, notes
        own = processes[context.rank]
        set_random_state(own["random"], context.device)
        graph_start = then.get("graph_start_epoch", now["graph_start_epoch"])
        switched = (graph_start <= progress.epoch) != (now["graph_start_epoch"] <= progress.epoch)
        if progress.step and (switched or then.get("loss_weights") != now["loss_weights"]):
            notes.append("the graph constraint or the loss weights change within an epoch, whose means are those of the "
                         "steps from here on")
            return progress, None, notes
        return progress, own["sums"], notes


@contextlib.contextmanager
def reading_entries(path: str | Path, kind: str, checkpoint: dict[str, Any] | None = None) -> Iterator[None]:
    """Raises InputError, in one line, for whatever damaged entries of the checkpoint at `path` make their users raise.

    With `checkpoint`, also unless it is one of this project and of `kind`.
    """
    try:
        if checkpoint and (checkpoint.get("format"), checkpoint.get("kind")) != (FORMAT, kind):
            raise ValueError(f"format {checkpoint.get('format')!r}, kind {checkpoint.get('kind')!r}")
        yield
    except InputError:
        raise
    except DAMAGE as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        lacks = "it lacks " if isinstance(error, KeyError) else ""
        raise InputError(f"{path}: damaged, or no {kind} checkpoint of this project: {lacks}{reason}") from error


def canonical(value: Any) -> Any:
    """Returns `value`, with the official code's name of a backbone replaced by the one used here."""
    return "r3d18" if value == "resnet18" else value
