"""Several result cards as one table: python -m eval.compare RESULT_DIR ...

Settings in which the cards differ are listed below the table; with a difference in anything but the weights, the numbers
are not comparable as they stand. Metrics of another `--clip_order` are followed by their difference from those of the same
weights, videos and settings in the natural order.
"""
from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as `python eval/compare.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from collections.abc import Sequence
from typing import Any

from eval.result_card import markdown_rows, percent, read_card
from utils.cli import OneLineParser
from utils.errors import exit_status_of

NATURAL = "natural"  # as in dataset.sampling, which loads NumPy
ABOUT = ("net", "input", "pretrained_epochs", "weights_kind", "git_commit", "device", "trained_on")
COUNTS = ("num_train_videos", "num_test_videos", "num_classes", "epochs_done")
SKIPPED = ("skipped_train_videos", "skipped_held_out_videos", "skipped_test_videos")
HELD_OUT = ("groups", "fraction", "num_groups", "num_groups_held_out", "num_videos_held_out")


def comparison_rows(cards: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Returns a head, then a row for each level and card; metrics as `percent` shows them, with the `order_effect`."""
    names = list(dict.fromkeys(name for card in cards for metrics in card["metrics"].values() for name in metrics))
    levels = list(dict.fromkeys(level for card in cards for level in card["metrics"]))
    several = any(clip_order(card) != NATURAL for card in cards)
    return [["task", "weights", "net", "level", *["clip order"] * several, *names],
            *([card["task"], str(card["weights"]), str(card.get("net", "-")), level, *[clip_order(card)] * several,
               *(percent(card, level, name) + order_effect(card, cards, level, name) for name in names)]
              for level in levels for card in cards if level in card["metrics"])]


def clip_order(card: dict[str, Any]) -> str:
    """Returns the order of the frames in the test clips."""
    return card["settings"].get("clip_order", NATURAL)


def order_effect(card: dict[str, Any], cards: Sequence[dict[str, Any]], level: str, name: str) -> str:
    """Returns " (-7.5)", the difference in percentage points from the first card of the same weights, videos and settings
    but natural order; "" for cards of that order, or if there is no such card with this metric."""
    if clip_order(card) != NATURAL and name in card["metrics"][level]:
        for other in cards:
            if (clip_order(other) == NATURAL and same_weights_facts(other) == same_weights_facts(card)
                    and name in other["metrics"].get(level, {})):
                return f" ({100 * (card['metrics'][level][name] - other['metrics'][level][name]):+.1f})"
    return ""


def pick_facts(facts: dict[str, Any]) -> dict[str, Any]:
    """Returns name -> value: numbers of videos, epochs, hold-out and choice, of a card or of one of its splits."""
    holdout = facts.get("holdout", {})
    return {**{name: facts[name] for name in COUNTS if name in facts},
            **{f"num_{name}": len(facts[name]) for name in SKIPPED if name in facts},
            **{f"holdout: {name}": holdout[name] for name in HELD_OUT if name in holdout},
            **{f"chosen {level}": f"lr {pair['lr']:g} weight decay {pair['weight_decay']:g}"
               for level, pair in facts.get("chosen", {}).items()}}


def card_facts(card: dict[str, Any]) -> dict[str, Any]:
    """Returns name -> value of all that numbers depend on, but for the order of frames, which has its own column."""
    return {**{name: value for name, value in card["settings"].items()
               if name not in ("picture_level", "clip_order", "order_seed")},
            **{name: card[name] for name in ABOUT if name in card}, **pick_facts(card),
            "checkpoint_sha256": (card.get("checkpoint_sha256") or "-")[:12],
            **{f"split {split}: {name}": value for split, facts in card.get("per_split", {}).items()
               for name, value in pick_facts(facts).items()},
            **{f"{role} csv": entry["sha256"][:12] for role, entry in card["csv_files"].items()},
            **{f"version of {name}": value for name, value in card.get("versions", {}).items()}}


def same_weights_facts(card: dict[str, Any]) -> dict[str, Any]:
    """Returns what two cards have in common that differ in nothing but the order of frames, code and machine."""
    return {"task": card["task"], "tested": card.get("tested_checkpoint_sha256"), **{
        name: value for name, value in card_facts(card).items()
        if name not in ("git_commit", "device") and not name.startswith("version of ")}}


def card_differences(cards: Sequence[dict[str, Any]]) -> list[str]:
    """Returns a line for each setting, number of videos, csv file, version and the like in which the cards differ."""
    flat = [card_facts(card) for card in cards]
    values = {name: [entries.get(name, "-") for entries in flat] for entries in flat for name in entries}
    return [f"differs: {name}: " + ", ".join(map(str, found)) for name, found in values.items()
            if any(value != found[0] for value in found)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OneLineParser(prog="python -m eval.compare", description="Print several result cards as one table.")
    parser.add_argument("cards", nargs="+", type=Path, metavar="RESULT", help="result.json, or the folder it is in")
    flags = parser.parse_args(arguments)

    def work() -> None:
        cards = [read_card(path) for path in flags.cards]
        print(markdown_rows(comparison_rows(cards)), *card_differences(cards), sep="\n")

    return exit_status_of(work, parser.prog)


if __name__ == "__main__":
    sys.exit(main())
