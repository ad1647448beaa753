"""The result card: what an evaluation found, and all that is needed to repeat it or to compare it.

Cards are read and shown without torch, which only `build_card` imports.
"""
from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from utils.errors import InputError
from utils.files import file_sha256, write_atomically

if TYPE_CHECKING:
    import torch

    from eval.splits import EvalSplit

CARD = "result.json"
SHOWN_IF_GIVEN = ("clip_order", "shots")  # settings that a card may lack
Metrics = dict[str, dict[str, float]]  # level -> metric -> fraction from 0 to 1


class SplitResult(NamedTuple):
    """What the evaluation of one split found; `details`: "num_test_videos" and more, plain values; `figures`: what writes
    them, once the card is written."""

    split: EvalSplit
    metrics: Metrics
    details: dict[str, Any]
    figures: Sequence[Callable[[], None]] = ()


def build_card(task: str, results: Sequence[SplitResult], settings: dict[str, Any], weights: dict[str, Any],
               device: torch.device, duration_s: float) -> dict[str, Any]:
    """Returns the card as a dictionary of plain values.

    `settings`: every choice that the numbers depend on, seed included; `weights`: as `load_backbone` returns them. Without
    `--splits` there is one result, and its details stand in the card itself. With it, "metrics" holds the means over the
    splits, "metrics_std" their sample standard deviations (n - 1; for two splits and more), "per_split" each split's metrics
    and details, and "num_test_videos" the sum. A metric that some split lacks, such as R@50 among fewer videos, is left out.
    """
    import av

    from models.multilevel import level_layers
    from utils.training_log import device_name, git_commit, library_versions

    def over_splits(statistic: Callable[[list[float]], float]) -> Metrics:
        return {level: {name: float(statistic([result.metrics[level][name] for result in results])) for name in metrics
                        if all(name in result.metrics[level] for result in results)}
                for level, metrics in results[0].metrics.items()}

    if len(results) == 1 and results[0].split.name is None:
        found, details = {"metrics": results[0].metrics}, results[0].details
    else:
        found = {"metrics": over_splits(mean)}
        if len(results) > 1:
            found |= {"metrics_std": over_splits(stdev), "std": "sample (n - 1) over splits"}
        settings = {**settings, "splits": [result.split.name for result in results]}
        details = {"num_test_videos": sum(result.details["num_test_videos"] for result in results),
                   "per_split": {result.split.name: {"metrics": result.metrics, **result.details} for result in results}}
    if results[0].split.shots:
        num_shots, seeds = zip(*(result.split.shots for result in results))
        settings = {**settings, "shots": num_shots[0], "shots_seeds": list(dict.fromkeys(seeds))}
    csv_files = {role if result.split.name is None else f"{role} {result.split.name}": path
                 for result in results for role, path in result.split.csv_files.items()}
    return {
        "task": task, **found, **weights, "layers": level_layers(weights["net"]),
        "settings": settings, **details,
        "csv_files": {role: {"path": str(path), "sha256": file_sha256(path)} for role, path in csv_files.items()},
        "git_commit": git_commit(), "versions": {**library_versions(), "av": av.__version__},
        "device": device_name(device), "duration_s": round(duration_s, 3), "command": [sys.executable, *sys.argv]}


def make_out_dir(out: Path, flag: str = "--out") -> None:
    """Makes the folder that `flag` names; InputError where that cannot be."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag} {out}: cannot make this folder: {error.strerror}") from error


def write_card(out: Path, card: dict[str, Any], shown: tuple[str, ...], results: Sequence[SplitResult] = (),
               name: str = CARD) -> None:
    """Writes the card `name`, whole, into the folder `out`; prints its path and its `markdown_table`; then draws the figures
    of `results`, on which the card must not depend."""
    write_atomically(out / name, json.dumps(card, indent=2, allow_nan=False) + "\n")
    print(f"wrote {out / name}\n\n{markdown_table(card, shown)}", flush=True)
    for result in results:
        for draw in result.figures:
            draw()


def read_card(path: Path) -> dict[str, Any]:
    """Returns the card in `path`, a result.json or its folder; InputError for anything else."""
    file = path / CARD if path.is_dir() else path
    try:
        card = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not a result card: {error}") from error
    if not isinstance(card, dict) or not {"task", "metrics", "weights", "settings", "csv_files"} <= card.keys():
        raise InputError(f"{file}: not a result card: lacks task, metrics, weights, settings or csv_files")
    return card


def markdown_table(card: dict[str, Any], shown: tuple[str, ...]) -> str:
    """Returns a Markdown table, a row for each level of the card: weights, `shown` settings, metrics in per cent."""
    names = list(next(iter(card["metrics"].values())))
    shown = (*shown, *(name for name in SHOWN_IF_GIVEN if name in card["settings"]))
    return markdown_rows([["weights", "net", "level", *shown, "test videos", *names], *(
        [card["weights"], card["net"], level, *(str(card["settings"][name]) for name in shown),
         str(card["num_test_videos"]), *(percent(card, level, name) for name in names)] for level in card["metrics"])])


def markdown_rows(rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table; the first row is its head."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]))


def percent(card: dict[str, Any], level: str, name: str) -> str:
    """Returns a metric of the card in per cent, as in "41.5", or "41.5 ± 0.6" over several splits; "-" without it."""
    if name not in card["metrics"].get(level, {}):
        return "-"
    return f"{100 * card['metrics'][level][name]:.1f}" + (
        f" ± {100 * card['metrics_std'][level][name]:.1f}" if "metrics_std" in card else "")
