"""A run directory read: configuration, log, events, checkpoints, and what each loss is worth without any learning.

Shapes: N videos of a global batch, V clips of a video, T frames of a clip, K prototypes.
"""
from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from models.levels import LEVELS
from utils.checkpoint import list_checkpoints
from utils.errors import InputError

NEEDED_FLAGS = ("num_prototypes", "num_clips", "clip_frames", "batch_per_gpu", "epochs", "net", "img_dim", "csv_file",
                "graph_start_epoch", "seed")
MONITOR = "monitor_"
MONITOR_SKIPPED = "monitor_skipped"  # a count; all others are shares


class Chance(NamedTuple):
    """The loss of a contrast whose candidates all look alike: ln(candidates), times a share for means over entries."""

    candidates: float
    loss: float

    def __str__(self) -> str:
        whole = math.log(self.candidates)
        shared = f", over {self.candidates:g} entries {self.loss:.3f}" if self.loss < 0.9 * whole else ""
        return f"ln {self.candidates:g} = {whole:.2f}{shared}"


@dataclass(frozen=True)
class Run:
    """What a run directory of train.py holds beside the weights.

    `points` are the lines of finished epochs, or of steps where no epoch is finished yet (`unit` tells which);
    `monitored` those that hold monitor values; `events` all other lines.
    """

    folder: Path
    config: dict[str, Any]
    points: list[dict[str, Any]]
    unit: str
    monitored: list[dict[str, Any]]
    events: list[dict[str, Any]]
    dumps: list[Path]
    checkpoints: list[tuple[float, Path]]  # (epochs done, with a fraction inside an epoch; path), oldest first

    @property
    def flags(self) -> dict[str, Any]:
        """Inner name -> value, of the newest start."""
        return self.config["flags"]

    @property
    def starts(self) -> list[dict[str, Any]]:
        """What each start wrote into config.json, oldest first; the last is `config` itself."""
        return starts_of(self.config)

    @property
    def global_batch(self) -> int:
        """N in the log's last line; before any, that of the newest start."""
        return batch_in(self.config, self.points[-1]["epoch"]) if self.points else batch_of(self.config, self.flags)

    @property
    def alike(self) -> list[dict[str, Any]]:
        """The last of `points`, as many of them as have the same N."""
        num = self.global_batch
        same = itertools.takewhile(lambda line: batch_in(self.config, line["epoch"]) == num, reversed(self.points))
        return list(same)[::-1]

    @property
    def epochs_done(self) -> int:
        """Finished epochs by the log."""
        return self.points[-1]["epoch"] + 1 if self.points and self.unit == "epoch" else 0

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """(places, values) of a name in the log; places are epochs from 1, or steps."""
        return series_of(self.monitored if name.startswith(MONITOR) else self.points, name, self.unit)

    def recent(self, name: str, skipped_epochs: int = 0) -> list[float]:
        """Finite values of a name in `alike`, without the run's first `skipped_epochs`."""
        _, values = series_of([line for line in self.alike if line["epoch"] >= skipped_epochs], name, self.unit)
        return [value for value in values if math.isfinite(value)]

    def names(self, prefix: str) -> list[str]:
        """Names in the log that begin with `prefix`, in the log's order."""
        lines = self.monitored if prefix == MONITOR else self.points
        return list(dict.fromkeys(name for line in lines for name in line if name.startswith(prefix)))

    def events_of(self, kind: str) -> list[dict[str, Any]]:
        """Lines of one kind of event."""
        return [line for line in self.events if line["kind"] == kind]


def starts_of(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each start wrote into config.json, oldest first."""
    return [*config.get("earlier_starts", []), config]


def batch_of(start: Mapping[str, Any], flags: Mapping[str, Any]) -> int:
    """N of a start; `flags` where it does not tell its own."""
    return start.get("flags", flags)["batch_per_gpu"] * start.get("processes", 1)


def batch_in(config: Mapping[str, Any], epoch: float) -> int:
    """N in `epoch` (from 0): that of the last start that went through it, whose values stand in the log."""
    starts = starts_of(config)
    through = [start for start in starts if start.get("start_epoch", 0) <= epoch]
    return batch_of((through or starts[:1])[-1], config["flags"])


def series_of(lines: Sequence[Mapping[str, Any]], name: str, unit: str) -> tuple[list[float], list[float]]:
    """(places, values) of the lines that hold `name`."""
    held = [line for line in lines if isinstance(line.get(name), (int, float))]
    places = [line["epoch"] + 1 if unit == "epoch" else line["step"] for line in held]
    return places, [float(line[name]) for line in held]


def read_run(folder: Path) -> Run:
    """The run in `folder`. InputError where there is none, or none of train.py."""
    lines, config = read_log(folder), read_config(folder)
    lacking = [name for name in NEEDED_FLAGS if name not in config["flags"]]
    if lacking:
        raise InputError(f"{folder}/config.json: no pretraining run of train.py: its flags lack {', '.join(lacking)}")
    epochs = [line for line in lines if line["kind"] == "epoch"]
    steps = [line for line in lines if line["kind"] == "step"]
    monitored = [line for line in lines if any(name.startswith(MONITOR) for name in line)]
    events = [line for line in lines if line["kind"] not in ("epoch", "step") and line not in monitored]
    checkpoints = [(done + step / max(config.get("videos", 0) // batch_in(config, done), 1), path)
                   for (done, step), path in list_checkpoints(folder / "checkpoints")]
    return Run(folder, config, epochs or steps, "epoch" if epochs else "step", monitored, events,
               sorted((folder / "not_finite").glob("*.json")), checkpoints)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json. InputError where there is none."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: not a run directory with log.jsonl and config.json: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("flags"), dict):
        raise InputError(f"{folder}/config.json: holds no flags: not a run directory of train.py")
    return config


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl; a last one without its end, which a run is writing or was killed at, is left out."""
    path = folder / "log.jsonl"
    try:
        text = path.read_text()
    except (OSError, ValueError) as error:
        raise InputError(f"{folder}: not a run directory with log.jsonl and config.json: {error}") from error
    lines = []
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if not line.endswith("\n"):
            break
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}:{number}: not a line of a log: {error}") from error
        if not isinstance(entry, dict) or not {"kind", "epoch", "step"} <= entry.keys():
            raise InputError(f"{path}:{number}: not a line of a log: lacks kind, epoch or step")
        lines.append(entry)
    return lines


def chance_losses(flags: Mapping[str, Any], global_batch: int) -> dict[str, Chance]:
    """Loss term -> its value where all embeddings, or all scores, are the same, so that nothing can be told apart.

    For instance contrast the NV - 1 candidates hold V - 1 positives: ln((NV - 1) / (V - 1)), which is
    ln(1 + 2 (N - 1)) for V = 2; V reversed features join them for motion contrast. Timestamps: ln t, with t = T/2, T/4,
    T/8 at low, mid, high. Swapped prediction: ln K. Graph constraint: ln N, or a N-th of it as a mean over elements.
    """
    n, v, k = global_batch, flags["num_clips"], flags["num_prototypes"]
    candidates = {"instance_high": (n * v - 1) / (v - 1), "motion_mid": (n * v - 1 + v) / (v - 1),
                  "motion_low": (n * v - 1 + v) / (v - 1), "prototype": k,
                  **{f"timestamp_{level}": flags["clip_frames"] // 2 ** power for power, level in enumerate(LEVELS, 1)}}
    chances = {name: Chance(number, math.log(number)) for name, number in candidates.items()}
    share = 1 / n if flags.get("graph_reduction") == "element" else 1.0
    return chances | {f"graph_{level}": Chance(n, share * math.log(n)) for level in LEVELS}
