"""Puts what a benchmark printed into docs/performance.md, between the markers with the benchmark's name.

    python -m benchmarks.input | python -m benchmarks.tables input "python -m benchmarks.input"
"""
from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.measure import describe_machine

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "performance.md"


def insert_between_markers(document: str, name: str, body: str) -> str:
    """Returns `document` with `body` between the markers of `name`; ValueError without them."""
    begin, end = f"<!-- {name} begin -->", f"<!-- {name} end -->"
    if document.count(begin) != 1 or document.count(end) != 1:
        raise ValueError(f"the document has no single pair of markers {begin} ... {end}")
    before, rest = document.split(begin)
    return f"{before}{begin}\n{body.strip()}\n{end}{rest.split(end)[1]}"


if __name__ == "__main__":
    _, NAME, COMMAND = sys.argv
    PRINTED = sys.stdin.read()
    if not PRINTED.strip():
        sys.exit(f"{NAME}: the benchmark printed nothing")
    BODY = f"`{COMMAND}` on {describe_machine()}:\n\n{PRINTED}"
    DOCUMENT.write_text(insert_between_markers(DOCUMENT.read_text(), NAME, BODY))
