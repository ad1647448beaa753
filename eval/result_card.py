"""The result card: what an evaluation found, and all that is needed to repeat it or to compare it."""
from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import av
import torch

from eval.splits import Split
from eval.table import markdown_rows, percent
from utils.errors import InputError
from utils.files import file_sha256, write_atomically
from utils.training_log import device_name, git_commit, library_versions

CARD = "result.json"
# The part of the network whose output is the map of each level.
RESNET_LAYERS = {"low": "layer2", "mid": "layer3", "high": "layer4"}
LAYERS_OF = {"s3d": {"low": "block 3c", "mid": "block 4f", "high": "block 5c"}}
Metrics = dict[str, dict[str, float]]  # level -> metric -> fraction from 0 to 1


@dataclass(frozen=True)
class Outcome:
    """What the evaluation of one split found.

    `details`: numbers of videos ("num_test_videos" is needed), those left out, what was chosen: plain values.
    """

    split: Split
    metrics: Metrics
    details: dict[str, Any]


def build_card(
    task: str, outcomes: Sequence[Outcome], settings: dict[str, Any], weights: dict[str, Any],
    device: torch.device, duration_s: float,
) -> dict[str, Any]:
    """The card as a dictionary of plain values.

    `settings`: every choice that the numbers depend on, seed included. `weights`: as `load_backbone` tells
    them. Without `--splits` there is one outcome, and its details stand in the card itself. With it "metrics"
    holds the means over the splits, "metrics_std" their sample standard deviations (n - 1; for two splits and
    more), "per_split" each split's metrics and details, and "num_test_videos" the sum.
    """
    if len(outcomes) == 1 and outcomes[0].split.name is None:
        [outcome] = outcomes
        found = {"metrics": outcome.metrics}
        details = outcome.details
    else:
        found = average_metrics([outcome.metrics for outcome in outcomes])
        settings = {**settings, "splits": [outcome.split.name for outcome in outcomes]}
        details = {"num_test_videos": sum(outcome.details["num_test_videos"] for outcome in outcomes),
                   "per_split": {outcome.split.name: {"metrics": outcome.metrics, **outcome.details}
                                 for outcome in outcomes}}
    csv_files = {role if outcome.split.name is None else f"{role} {outcome.split.name}": path
                 for outcome in outcomes for role, path in outcome.split.csv_files.items()}
    return {
        "task": task,
        **found,
        **weights,
        "layers": LAYERS_OF.get(weights["net"], RESNET_LAYERS),
        "settings": settings,
        **details,
        "csv_files": {role: {"path": str(path), "sha256": file_sha256(path)} for role, path in csv_files.items()},
        "git_commit": git_commit(),
        "versions": {**library_versions(), "av": av.__version__},
        "device": device_name(device),
        "duration_s": round(duration_s, 3),
        "command": [sys.executable, *sys.argv],
    }


def average_metrics(per_split: Sequence[Metrics]) -> dict[str, Any]:
    """{"metrics": means, "metrics_std": sample standard deviations, "std": which kind}; means alone of one split.

    A metric that some split lacks, such as R@50 among fewer videos, is left out.
    """
    values = {level: {name: [metrics[level][name] for metrics in per_split]
                      for name in names if all(name in metrics[level] for metrics in per_split)}
              for level, names in per_split[0].items()}
    found: dict[str, Any] = {"metrics": over(values, mean)}
    if len(per_split) > 1:
        found |= {"metrics_std": over(values, stdev), "std": "sample (n - 1) over splits"}
    return found


def over(values: dict[str, dict[str, list[float]]], statistic: Any) -> Metrics:
    """`statistic` of each list."""
    return {level: {name: float(statistic(each)) for name, each in names.items()} for level, names in values.items()}


def write_card(out: Path, card: dict[str, Any], name: str = CARD) -> Path:
    """Path of the card `name`, written whole into the folder `out`; an earlier one is replaced."""
    path = out / name
    write_atomically(path, json.dumps(card, indent=2, allow_nan=False) + "\n")
    return path


def make_out_dir(out: Path, flag: str = "--out") -> None:
    """Make the folder that `flag` names; InputError where that cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag} {out}: cannot make this folder: {error.strerror}") from error


def markdown_table(card: dict[str, Any], shown: tuple[str, ...]) -> str:
    """A Markdown table, a row for each level of the card: weights, `shown` settings, metrics in per cent."""
    names = list(next(iter(card["metrics"].values())))
    rows = [["weights", "net", "level", *shown, "test videos", *names]]
    for level in card["metrics"]:
        rows.append([card["weights"], card["net"], level, *(str(card["settings"][name]) for name in shown),
                     str(card["num_test_videos"]), *(percent(card, level, name) for name in names)])
    return markdown_rows(rows)
