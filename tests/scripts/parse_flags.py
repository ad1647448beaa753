"""Parses the flags of a command as OneLineParser does, and ends before it does anything: the Python of a recipe in tests."""
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
if sys.argv[1] == "-m":
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
