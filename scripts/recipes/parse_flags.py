"""Parses the flags of a command, and ends before it does anything: what DRY_RUN=1 runs in place of a recipe's commands.

    python scripts/recipes/parse_flags.py train.py --csv_file a.csv
    python scripts/recipes/parse_flags.py -m eval.retrieval --weights a.pt --train_csv a.csv --test_csv b.csv

Exit status: 0; 2 after the parser's one-line error.
"""
from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from utils.cli import OneLineParser  # noqa: E402


def parse_and_exit(parser: OneLineParser, arguments: list[str] | None = None) -> None:
    """Parses as OneLineParser does, then ends the program."""
    argparse.ArgumentParser.parse_args(parser, arguments)
    print(f"{parser.prog}: the flags are valid")
    sys.exit(0)


OneLineParser.parse_args = parse_and_exit
if len(sys.argv) < 2:
    sys.exit("parse_flags.py: error: needs a command, such as train.py or -m eval.retrieval, and its flags")
if sys.argv[1] == "-m":
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
