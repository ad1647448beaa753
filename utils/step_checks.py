"""What can go wrong in a step: requests to stop, unreadable videos, non-finite values.

Every decision is a function of what all processes know, so that all of them take the same.
"""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from utils.checkpoint import Progress
from utils.distributed import DistContext, gather_objects, true_on_any_rank
from utils.errors import AgreedError, NonFiniteError
from utils.files import write_atomically
from utils.training_log import RunLog


class StepReport(NamedTuple):
    """What one step met in all processes together, the same in each of them."""

    stop: bool                        # any process was asked to stop
    bad_videos: dict[str, str]        # path -> reason of each video found unreadable in this step
    not_finite: list[dict[str, Any]]  # of each process: {"values": name -> value, "videos": paths}; empty if all are finite


def sync_step_status(stop: bool, bad_videos: dict[str, str], not_finite: dict[str, float], videos: list[str],
                     context: DistContext) -> StepReport:
    """Returns the report of a step, of each process's own findings. `videos`: the paths in this process's batch."""
    any_stop, any_bad, any_wrong = true_on_any_rank([stop, bool(bad_videos), bool(not_finite)], context)
    found = {path: reason for part in gather_objects(bad_videos) for path, reason in part.items()} if any_bad else {}
    wrong = gather_objects({"values": not_finite, "videos": videos}) if any_wrong else []
    return StepReport(any_stop, found, wrong)


def note_bad_videos(report: StepReport, progress: Progress, num_videos: int, max_fraction: float, log: RunLog) -> None:
    """Logs each newly found unreadable video once; AgreedError if there are more than `max_fraction` of all."""
    for path, reason in report.bad_videos.items():
        if path not in progress.bad_videos:
            progress.bad_videos[path] = reason
            log.note("bad_video", progress.epoch, progress.total_steps + 1, {"path": path, "reason": reason},
                     f"an unreadable video is replaced by another: {reason}")
    num_bad = len(progress.bad_videos)
    if num_bad > max_fraction * num_videos:
        raise AgreedError(f"{num_bad} of {num_videos} videos cannot be read, more than --max_bad_fraction {max_fraction:g}; "
                          f"the last: {list(progress.bad_videos.values())[-1]}")


def handle_not_finite(report: StepReport, progress: Progress, policy: str, max_skips: int, out: Path, log: RunLog) -> None:
    """Dumps what is known of the step. Returns if it may be skipped; otherwise raises NonFiniteError, naming the terms."""
    epoch, step = progress.epoch, progress.step + 1
    values = {name: value for part in report.not_finite for name, value in part["values"].items()}
    named = ", ".join(f"{name} = {value}" for name, value in values.items())
    dump = out / "not_finite" / f"epoch_{epoch + 1:04d}_step_{step:06d}.json"
    if log.writes:
        dump.parent.mkdir(exist_ok=True)
        write_atomically(dump, json.dumps({"epoch": epoch, "step": step, "processes": [
            {"values": {name: str(value) for name, value in part["values"].items()}, "videos": part["videos"]}
            for part in report.not_finite]}, indent=2) + "\n")
    where = f"epoch {epoch + 1}, step {step}: non-finite values: {named}"
    if policy == "skip" and progress.skipped_steps < max_skips:
        log.note("skipped_step", epoch, progress.total_steps + 1, {"not_finite": named},
                 f"{where}; this step is skipped ({progress.skipped_steps + 1} of at most {max_skips}), see {dump}")
        return
    bound = f"; --max_skips {max_skips} are used up" if policy == "skip" else ""
    named_in = f", {dump} names the videos" if log.writes else ""
    raise NonFiniteError(f"{where}; nothing was updated or saved{bound}{named_in}")


def require_finite_weights(model: nn.Module, progress: Progress) -> None:
    """Raises NonFiniteError, naming the first weight, if an update left any NaN or infinite. The same in every process."""
    named = dict(model.named_parameters())
    largest = torch.stack(torch._foreach_norm([weight.detach() for weight in named.values()], torch.inf)).cpu()
    wrong = [name for name, value in zip(named, largest) if not torch.isfinite(value)]
    if wrong:
        raise NonFiniteError(f"epoch {progress.epoch + 1}, step {progress.step + 1}: the update left {len(wrong)} "
                             f"non-finite weight(s), such as {wrong[0]}; nothing was saved since")


class StepUndo:
    """What a forward pass changes besides gradients, restored when a step is skipped: buffers and the queue of scores."""

    def __init__(self, model: nn.Module, queue: Any) -> None:
        self.buffers = list(model.buffers())
        self.saved = [buffer.clone() for buffer in self.buffers]
        self.queue, self.rows = queue, None

    @torch.no_grad()
    def save(self) -> None:
        torch._foreach_copy_(self.saved, self.buffers)
        self.rows = self.queue.rows

    @torch.no_grad()
    def restore(self) -> None:
        torch._foreach_copy_(self.buffers, self.saved)
        self.queue.rows = self.rows
