"""Several result cards as one table: python -m eval.compare RESULT_DIR ...

Settings in which the cards differ are listed below the table; a difference in anything but the weights means that the
numbers are not comparable as they stand.
"""
from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as `python eval/compare.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import json
from collections.abc import Sequence
from typing import Any

from eval.table import markdown_rows, percent
from utils.errors import InputError, report
from utils.cli import OneLineParser

ABOUT = ("net", "input", "pretrained_epochs", "weights_kind", "git_commit", "device", "trained_on")
HELD_OUT = ("groups", "fraction", "num_groups", "num_groups_held_out", "num_videos_held_out")
COUNTS = ("num_train_videos", "num_test_videos", "num_classes", "epochs_done")
SKIPPED = ("skipped_train_videos", "skipped_held_out_videos", "skipped_test_videos")


def read_card(path: Path) -> dict[str, Any]:
    """The card in `path`, a result.json or the folder of one. InputError where it is none."""
    file = path / "result.json" if path.is_dir() else path
    try:
        card = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: not a result card: {error}") from error
    if not isinstance(card, dict) or not {"task", "metrics", "weights", "settings", "csv_files"} <= card.keys():
        raise InputError(f"{file}: not a result card: lacks task, metrics, weights, settings or csv_files")
    if not (isinstance(card["task"], str) and isinstance(card["settings"], dict)
            and is_two_deep(card["metrics"], (int, float)) and is_two_deep(card["csv_files"], str)):
        raise InputError(f"{file}: not a result card: expected a task's name, settings, metrics as level -> name -> number, "
                         "and csv_files as role -> path and sha256")
    return card


def is_two_deep(value: Any, kind: type | tuple[type, ...]) -> bool:
    """Whether `value` is name -> name -> something of `kind`."""
    return isinstance(value, dict) and all(isinstance(inner, dict) and all(isinstance(leaf, kind) for leaf in inner.values())
                                           for inner in value.values())


def table(cards: Sequence[dict[str, Any]]) -> str:
    """Markdown table of `rows`."""
    return markdown_rows(rows(cards))


def rows(cards: Sequence[dict[str, Any]]) -> list[list[str]]:
    """A row per card and level, after a head; metrics in per cent, "-" where a card has not got one.

    A card of several splits shows mean ± sample standard deviation over them.
    """
    names = list(dict.fromkeys(name for card in cards for metrics in card["metrics"].values() for name in metrics))
    levels = list(dict.fromkeys(level for card in cards for level in card["metrics"]))
    return [["task", "weights", "net", "level", *names],
            *([card["task"], str(card["weights"]), str(card.get("net", "-")), level,
               *(percent(card, level, name) for name in names)]
              for level in levels for card in cards if level in card["metrics"])]


def found_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """Name -> value: how many videos, how far trained, what was held out and chosen; of a card or one of its splits."""
    chosen = {f"chosen {level}": f"lr {pair['lr']:g} weight decay {pair['weight_decay']:g}"
              for level, pair in facts.get("chosen", {}).items()}
    skipped = {name.replace("skipped_", "num_skipped_"): len(facts[name]) for name in SKIPPED if name in facts}
    holdout = facts.get("holdout", {})
    held_out = {f"holdout: {name}": holdout[name] for name in HELD_OUT if name in holdout}
    return {**{name: facts[name] for name in COUNTS if name in facts}, **skipped, **held_out, **chosen}


def differences(cards: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each setting, count of videos, csv file, library version and the like in which the cards differ."""
    flat = [{**{name: value for name, value in card["settings"].items() if name != "picture_level"},
             **{name: card[name] for name in ABOUT if name in card}, **found_facts(card),
             "checkpoint_sha256": (card.get("checkpoint_sha256") or "-")[:12],
             **{f"split {split}: {name}": value for split, facts in card.get("per_split", {}).items()
                for name, value in found_facts(facts).items()},
             **{f"{role} csv": entry["sha256"][:12] for role, entry in card["csv_files"].items()},
             **{f"version of {name}": value for name, value in card.get("versions", {}).items()}} for card in cards]
    names = dict.fromkeys(name for entries in flat for name in entries)
    return [f"differs: {name}: " + ", ".join(str(entries.get(name, "-")) for entries in flat) for name in names
            if any(entries.get(name, "-") != flat[0].get(name, "-") for entries in flat)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 after a user's mistake, told in one line."""
    parser = OneLineParser(prog="python -m eval.compare", description="Print several result cards as one table.")
    parser.add_argument("cards", nargs="+", type=Path, metavar="RESULT", help="result.json, or the folder it is in")
    try:
        cards = [read_card(path) for path in parser.parse_args(arguments).cards]
    except InputError as error:
        return report(error, parser.prog)
    print(table(cards))
    for line in differences(cards):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
