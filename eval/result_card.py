"""The result card: what an evaluation found, and all that is needed to repeat it or to compare it."""
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from utils.errors import InputError
from utils.runlog import device_name, file_sha256, git_commit, library_versions, replace_text


def build_card(
    task: str, metrics: dict[str, dict[str, float]], settings: dict[str, Any], weights: dict[str, Any],
    csv_files: dict[str, str], counts: dict[str, Any], device: torch.device, duration_s: float,
) -> dict[str, Any]:
    """The card as a dictionary of plain values.

    `metrics`: level -> metric -> fraction from 0 to 1. `settings`: every choice that the numbers depend on,
    seed included. `weights`: as `load_backbone` tells them. `csv_files`: role ("train", "test") -> path.
    `counts`: numbers of videos, and those left out.
    """
    return {
        "task": task,
        "metrics": metrics,
        **weights,
        "settings": settings,
        **counts,
        "csv_files": {role: {"path": str(path), "sha256": file_sha256(path)}
                      for role, path in csv_files.items()},
        "git_commit": git_commit(),
        "versions": library_versions(),
        "device": device_name(device),
        "duration_s": round(duration_s, 3),
        "command": [sys.executable, *sys.argv],
    }


def write_card(out: Path, card: dict[str, Any]) -> Path:
    """Path of `result.json`, written whole into the folder `out`; an earlier one is replaced."""
    path = out / "result.json"
    replace_text(path, json.dumps(card, indent=2, allow_nan=False) + "\n")
    return path


def make_out_dir(out: Path) -> None:
    """Make the folder for results; InputError where that cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot make this folder: {error.strerror}") from error


def markdown_table(card: dict[str, Any], shown: tuple[str, ...]) -> str:
    """A Markdown table, a row for each level of the card: weights, `shown` settings, metrics in per cent."""
    names = list(next(iter(card["metrics"].values())))
    rows = [["weights", "net", "level", *shown, "test videos", *names]]
    for level, metrics in card["metrics"].items():
        rows.append([card["weights"], card["net"], level, *(str(card["settings"][name]) for name in shown),
                     str(card["num_test_videos"]), *(f"{100 * metrics[name]:.1f}" for name in names)])
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
