"""One page about a run: python -m visualization.report RUN_DIR [--csv_file train.csv]

Writes RUN_DIR/report.html, a single file that loads nothing: warnings of collapse, configuration, events, curves,
prototypes with their nearest videos, effective rank of features, and what lies below RUN_DIR: embeddings, result cards, and
videos of temporal-order maps. For what is missing it shows the command that makes it.

Without --csv_file the videos are those that the run was trained on, if they are here.
"""
from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from utils.cli import OneLineParser, check_values
from utils.distributed import DistContext
from utils.errors import InputError
from utils.files import write_atomically
from utils.launch import run_and_report
from utils.rendezvous import require_single_process
from utils.training_log import git_commit
from visualization.cam import require_h264
from visualization.report.run import RunDirectory
from visualization.report.sections import (
    configuration_section, curve_section, embedding_section, event_table, network_sections, order_section, result_section,
)
from visualization.report.warnings import find_warnings, list_checks
from visualization.temporal_order import choose_device

MAX_LISTED = 20  # events shown one by one


def write_report(context: DistContext, flags: argparse.Namespace) -> None:
    """Writes the page that parsed flags ask for."""
    require_single_process()
    check_values({"--max_videos": (flags.max_videos, 2), "--workers": (flags.num_workers, 0), **{
        f"--{name}": (getattr(flags, name), 1)
        for name in ("max_checkpoints", "prototypes", "neighbors", "max_cam_videos", "batch")}})
    if flags.logs_only and flags.csv_file:
        raise InputError("--logs_only: computes nothing with the network; leave --csv_file out")
    require_h264()
    run, out = RunDirectory(flags.run), flags.out or flags.run / "report.html"
    computed = network_sections(run, flags, context.device)
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    page = environment.get_template("report.html.j2").render(
        run=run, name=run.folder.resolve().name, max_listed=MAX_LISTED, **computed,
        warnings=find_warnings(run, computed["measurement"]), checks=list_checks(run, computed["measurement"]),
        configuration=configuration_section(run), events=event_table(run, MAX_LISTED), curves=curve_section(run),
        results=result_section(run), embedding=embedding_section(run), order=order_section(run, flags.max_cam_videos),
        time=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"), commit=git_commit() or "unknown")
    write_atomically(out, page.encode("utf-8", "backslashreplace"))  # a name may hold bytes that are not UTF-8
    print(f"report: {out} ({out.stat().st_size / 1e6:.1f} MB, opens without a network)")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OneLineParser(prog="python -m visualization.report", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="run directory of train.py")
    parser.add_argument("--out", type=Path, metavar="HTML", help="file to write (default: RUN_DIR/report.html)")
    add = parser.add_argument_group("videos").add_argument
    add("--csv_file", metavar="CSV", help="videos for prototypes and effective rank (default: those of the run)")
    add("--max_videos", type=int, default=256, metavar="N", help="videos used, evenly spread")
    add = parser.add_argument_group("content").add_argument
    add("--max_checkpoints", type=int, default=4, metavar="N",
        help="checkpoints measured besides the random start, evenly spread, the newest among them")
    add("--prototypes", type=int, default=12, metavar="N", help="prototypes shown with their videos")
    add("--neighbors", type=int, default=6, metavar="N", help="videos shown for each")
    add("--max_cam_videos", type=int, default=8, metavar="N", help="temporal-order videos on the page")
    add("--logs_only", action="store_true", help="compute nothing with the network")
    add = parser.add_argument_group("work").add_argument
    add("--gpu", metavar="N|none", help="GPU to use; none: the CPU (default: the first there is)")
    add("--batch", type=int, default=32, metavar="M", help="clips in one forward of the network")
    add("--workers", dest="num_workers", type=int, default=4, help="DataLoader workers")
    flags = parser.parse_args(arguments)
    return run_and_report(lambda: DistContext(0, 1, choose_device(flags.gpu)), write_report, flags, parser.prog)


if __name__ == "__main__":
    sys.exit(main())
