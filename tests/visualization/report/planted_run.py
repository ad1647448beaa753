"""Run directories of train.py with a log made up: healthy, or with one thing wrong."""
from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

FLAGS = {"csv_file": "videos.csv", "clip_frames": 16, "num_clips": 2, "max_stride": 3.0, "img_dim": 32,
         "num_workers": 2, "net": "r3d10", "embedding_dim": 16, "num_prototypes": 200, "graph_start_epoch": 4,
         "graph_threshold": 0.05, "graph_reduction": "row",
         "queue_rows": 256, "queue_start_epoch": 2, "epochs": 12, "batch_per_gpu": 32,
         "lr": 0.001, "lr_decay_epoch": 9, "seed": 0}
PROCESSES = 2

Value = float | Callable[[int], float]


def healthy_values(epoch: int) -> dict[str, float]:
    """What an epoch (from 0) of a run that learns looks like, for a global batch of 64."""
    learned = 1 - 0.5 ** (1 + epoch / 3)  # 0.5 rising to nearly 1
    values = {"total": 12 - 8 * learned}
    for name, chance in (("instance_high", math.log(127)), ("motion_mid", math.log(129)), ("motion_low", math.log(129)),
                         ("timestamp_low", math.log(8)), ("timestamp_mid", math.log(4)),
                         ("timestamp_high", math.log(2)), ("prototype", math.log(200))):
        values[name] = chance * (1.2 - 0.6 * learned)
        values[f"accuracy_{name}"] = 0.8 * learned
    if epoch >= FLAGS["graph_start_epoch"]:
        values |= {f"graph_{level}": 3 - learned for level in ("low", "mid", "high")} | {"graph_edges_per_row": 2.5}
    return values | {"gradient_norm": 4 - learned, "prototypes_in_use": 40.0, "assignment_entropy": 2.5,
                     "lr": 0.001 if epoch < FLAGS["lr_decay_epoch"] else 0.0001, "samples_per_s": 310.0,
                     "data_wait": 0.03}


def write_run(folder: Path, epochs: int = 12, changes: Mapping[str, Value | None] | None = None,
              events: Sequence[Mapping[str, Any]] = (), flags: Mapping[str, Any] | None = None,
              config: Mapping[str, Any] | None = None) -> Path:
    """Write config.json and log.jsonl; returns `folder`.

    `changes`: name in the log -> a value for all epochs, or one by epoch, or None to leave it out. `events`: further
    lines. `flags`, `config`: in place of those above.
    """
    folder.mkdir(parents=True)
    lines = [{"kind": "step", "epoch": 0, "step": 1, **healthy_values(0)}]
    for epoch in range(epochs):
        values = healthy_values(epoch)
        for name, value in (changes or {}).items():
            values[name] = value(epoch) if callable(value) else value
        kept = {name: value for name, value in values.items() if value is not None}
        lines.append({"kind": "epoch", "epoch": epoch, "step": 10 * (epoch + 1), **kept})
    lines += [{"epoch": 0, "step": 3, **event} for event in events]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    all_flags = {**FLAGS, **(flags or {})}
    csv = Path(all_flags["csv_file"])
    (folder / "config.json").write_text(json.dumps({
        "flags": all_flags, "command": ["python", "train.py"], "git_commit": "0123456789abcdef",
        "csv_sha256": hashlib.sha256(csv.read_bytes()).hexdigest() if csv.exists() else "0" * 64,
        "versions": {"python": "3.12.1", "torch": "2.8.0"}, "device": "NVIDIA H100", "processes": PROCESSES,
        "videos": 640, "videos_too_short": 3, "start_epoch": 0, "start_step": 0, "earlier_starts": [],
        **(config or {})}))
    return folder
