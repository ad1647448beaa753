"""Result cards as text. Standard library only, so that comparing cards needs no torch."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def percent(card: dict[str, Any], level: str, name: str) -> str:
    """A metric of the card in per cent, as in "41.5", or "41.5 ± 0.6" over several splits; "-" without it."""
    if name not in card["metrics"].get(level, {}):
        return "-"
    mean_text = f"{100 * card['metrics'][level][name]:.1f}"
    return mean_text + (f" ± {100 * card['metrics_std'][level][name]:.1f}" if "metrics_std" in card else "")


def markdown_rows(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
