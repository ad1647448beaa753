"""Reads a run directory of train.py: configuration, log, events, checkpoints; and the chance level of each loss.

Shapes: N videos of a global batch, V clips of a video, T frames of a clip, K prototypes.
"""
from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from models.levels import LEVELS
from utils.checkpoint import list_checkpoints
from utils.cli import TIME_POOL
from utils.errors import InputError

NEEDED_FLAGS = ("num_prototypes", "num_clips", "clip_frames", "batch_per_gpu", "epochs", "net", "img_dim", "csv_file",
                "graph_start_epoch", "seed")
MONITOR = "monitor_"
MONITOR_SKIPPED = "monitor_skipped"  # a count; all other monitor values are fractions


class RunDirectory:
    """What a run directory of train.py holds beside the weights. InputError where it is none.

    `config`, and its `flags` (inner name -> value, of the newest start); `starts`: what each start wrote into config.json,
    oldest first; `points`: log lines of finished epochs, or of steps while no epoch is finished (`unit` is "epoch" or
    "step"); `monitored`: lines of the monitor; `events`: all other lines; `global_batch`: N of the last point;
    `comparable`: the last points, as many as have the same N; `checkpoints`: (finished epochs, with a fraction within an
    epoch; path), oldest first, and `newest_checkpoint`: the last path, or a name for it in commands; `dumps`: descriptions
    of steps with non-finite values. Epochs in the log count from 0.
    """

    def __init__(self, folder: Path) -> None:
        (self.config, lines), self.folder = read_run(folder), folder
        self.flags: dict[str, Any] = self.config["flags"]
        lacking = [name for name in NEEDED_FLAGS if name not in self.flags]
        if lacking:
            raise InputError(f"{folder}/config.json: not a pretraining run: its flags lack {', '.join(lacking)}")
        epochs, steps, self.monitored = ([line for line in lines if line["kind"] == kind]
                                         for kind in ("epoch", "step", "monitor"))
        self.points, self.unit = epochs or steps, "epoch" if epochs else "step"
        self.events = [line for line in lines if line["kind"] not in ("epoch", "step", "monitor")]
        self.starts: list[dict[str, Any]] = [*self.config.get("earlier_starts", []), self.config]
        self.epochs_done = epochs[-1]["epoch"] + 1 if epochs else 0
        self.global_batch = self.batch_at(self.points[-1]["epoch"] if self.points else math.inf)
        self.comparable = list(itertools.takewhile(lambda line: self.batch_at(line["epoch"]) == self.global_batch,
                                                   reversed(self.points)))[::-1]
        self.dumps = sorted((folder / "not_finite").glob("*.json"))
        self.checkpoints = [(done + step / max(self.config["videos"] // self.batch_at(done), 1), path)
                            for (done, step), path in list_checkpoints(folder / "checkpoints")]
        self.newest_checkpoint = [folder / "checkpoints" / "CHECKPOINT.pt", *(path for _, path in self.checkpoints)][-1]

    def batch_at(self, epoch: float) -> int:
        """Returns N in `epoch` (from 0): that of the last start that trained it, whose values are in the log."""
        start = [self.starts[0], *(start for start in self.starts if start["start_epoch"] <= epoch)][-1]
        return start["flags"]["batch_per_gpu"] * start["processes"]

    def series(self, name: str, lines: Sequence[Mapping[str, Any]] | None = None) -> tuple[list[int], list[float]]:
        """Returns (epochs from 1, or steps; values) of `name` in the log, or in `lines` of it."""
        if lines is None:
            lines = self.monitored if name.startswith(MONITOR) else self.points
        holding = [line for line in lines if name in line]
        return [line["epoch"] + 1 if self.unit == "epoch" else line["step"] for line in holding], [
            float(line[name]) for line in holding]


def read_run(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns (config.json, with flags; lines of log.jsonl, without an unfinished last one) of a run directory."""
    where = f"{folder}: not a run directory with log.jsonl and config.json of train.py"
    try:
        lines = (folder / "log.jsonl").read_text().splitlines(keepends=True)
        config = json.loads((folder / "config.json").read_text())
        entries, _ = [], config["flags"]
        for number, line in enumerate((line for line in lines if line.endswith("\n")), start=1):  # else being written
            where = f"{folder}/log.jsonl:{number}: not a log line of train.py"
            entries.append(json.loads(line))
            [entries[-1][name] for name in ("kind", "epoch", "step")]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{where}: {error!r}") from error
    return config, entries


class Chance(NamedTuple):
    """Loss of a contrast whose candidates are all the same: ln(candidates), divided by N for means over entries."""

    candidates: float
    loss: float

    def __str__(self) -> str:
        whole = f"ln {self.candidates:g} = {math.log(self.candidates):.2f}"
        return whole if self.loss > 0.9 * math.log(self.candidates) else f"{whole}, as a mean over entries {self.loss:.3f}"


def chance_losses(flags: Mapping[str, Any], global_batch: int) -> dict[str, Chance]:
    """Returns loss term -> its value where all embeddings, or all scores, are the same.

    Instance contrast has NV - 1 candidates with V - 1 positives: ln((NV - 1) / (V - 1)), which is ln(1 + 2 (N - 1)) for
    V = 2; motion contrast V more, the reversed features. Timestamps: ln t, with t = T/2, T/4, T/8 at low, mid, high (half of
    it with a TimePooledStem).
    Swapped prediction: ln K. Graph constraint: ln N, or an Nth of it as a mean over elements.
    """
    n, v, k = global_batch, flags["num_clips"], flags["num_prototypes"]
    motion, first = (n * v - 1 + v) / (v - 1), 2 if str(flags.get("net")).endswith(TIME_POOL) else 1
    candidates = {"instance_high": (n * v - 1) / (v - 1), "motion_mid": motion, "motion_low": motion, "prototype": k,
                  **{f"timestamp_{level}": flags["clip_frames"] // 2 ** power for power, level in enumerate(LEVELS, first)}}
    chances = {name: Chance(number, math.log(number)) for name, number in candidates.items()}
    scale = 1 / n if flags.get("graph_reduction") == "element" else 1.0
    return chances | {f"graph_{level}": Chance(n, scale * math.log(n)) for level in LEVELS}
