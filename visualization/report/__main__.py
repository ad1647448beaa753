"""A run on one page: python -m visualization.report RUN_DIR [--csv_file train.csv --test_csv test.csv]

Writes RUN_DIR/report.html, one file that loads nothing: configuration, events, curves, prototypes with their nearest
videos, effective rank of features, an embedding, result cards, temporal-order films, and warnings at the top that
name collapse. What is not there is said, with the command that makes it.

Without --csv_file the videos are those that the run was trained on, if they are here. A labelled --csv_file or
--test_csv adds the embedding; --cam trains a temporal-order head (both csv files are needed) and films its maps.
"""
# ruff: noqa: E402
from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as `python visualization/report/__main__.py`
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import contextlib
import datetime
from collections.abc import Sequence
from html import escape

import numpy as np
import torch

from eval.features.extract import extract_features, load_backbone
from eval.cli import require_at_least
from models.levels import LEVELS
from utils.checkpoint import list_checkpoints
from utils.distributed import DistContext
from utils.errors import InputError, one_line
from utils.cli import OneLineParser
from utils.launch import print_any_name, run_told
from utils.files import file_sha256, write_atomically
from utils.training_log import git_commit
from visualization.cam import require_h264
from visualization.main_temporal import train_order_head, write_order_videos
from visualization.temporal_order.settings import CLIP_DEFAULTS, OrderSettings, check_order_settings, choose_device
from visualization.report.html import Section, attempt, missing, page, paragraph, picture
from visualization.report.measure import Measured, measure
from visualization.report.figures import contact_sheet, embedding_uri
from visualization.report.results import find_films, newest, order_html, results_html
from visualization.report.run import Run, read_run
from visualization.report.sections import (configuration_html, curves_html, events_html, prototypes_html, rank_html,
                                           warnings_html)
from visualization.report.videos import Videos, label_names, read_videos
from visualization.report.warnings import find_warnings, what_was_checked


def run_videos(run: Run, flags: argparse.Namespace) -> tuple[Videos | None, str]:
    """(videos of --csv_file, or those of the run where they are here; why not). A wrong --csv_file is an InputError."""
    if flags.logs_only:
        return None, "--logs_only: nothing was computed with the network."
    if flags.csv_file:
        return read_videos(flags.csv_file, flags.max_videos), ""
    csv_path = run.flags["csv_file"]
    if not Path(csv_path).exists():
        return None, f"The csv that this run was trained on, {csv_path}, is not here; --csv_file names another."
    return attempt(read_videos, csv_path, flags.max_videos)


def embedding_html(measured: Measured, videos: Videos, held_out: Videos | None, flags: argparse.Namespace,
                   device: torch.device, seed: int) -> str:
    """t-SNE and PCA of labelled videos: `held_out`, or else `videos`, of which `measured` has the features."""
    shown = held_out or videos
    if shown.unlabelled:
        return missing(f"{shown.csv_path} has no labels to color points by: {shown.unlabelled}",
                       f"python -m visualization.report {flags.run} --test_csv LABELLED.csv")
    records, features, skipped = measured.records, measured.features, measured.skipped
    if held_out and held_out is not videos:
        bad: dict[int, str] = {}
        features = extract_features(measured.backbone, held_out.records, measured.settings, DistContext(0, 1, device),
                                    batch=flags.batch, num_workers=flags.num_workers, skipped=bad, label="held out")
        kept = [index for index in range(len(held_out.records)) if index not in bad]
        records, skipped = [held_out.records[index] for index in kept], list(bad.values())
        features = {level: rows[kept] for level, rows in features.items()}
    labels = np.array([record.label for record in records], np.int64)
    names, note = label_names(shown.csv_path, labels)
    drawn, problem = attempt(
        embedding_uri, features, labels, names, seed,
        f"{measured.states[-1].name}: {len(labels)} videos of {Path(shown.csv_path).name}")
    if problem:
        return missing(f"No picture of {shown.note}: {problem}")
    uri, perplexity = drawn
    told = (f"Clip features of {shown.note}" + (f" ({len(skipped)} cannot be read)" if skipped else "")
            + f" at {measured.states[-1].name}, colored by class; t-SNE (perplexity {perplexity:.3g}, seed {seed}) "
            f"above, PCA below.{note}")
    return picture(uri, "Videos as points, t-SNE and PCA of each level, colored by class", told)


def model_sections(
    run: Run, flags: argparse.Namespace, device: torch.device,
) -> tuple[list[Section], Measured | None, str]:
    """The sections that need the network and videos, what was measured for them, or why nothing was."""
    videos, problem = run_videos(run, flags)
    held_out = read_videos(flags.test_csv, flags.max_videos) if flags.test_csv else None
    measured, instead = None, ""
    for tried in (videos, held_out):
        if tried and measured is None:
            videos, instead = tried, problem
            measured, problem = attempt(measure, run, videos.records, flags.max_checkpoints, device, batch=flags.batch,
                                        num_workers=flags.num_workers)
    if measured is None:
        empty = missing(problem, f"python -m visualization.report {run.folder} --csv_file VIDEOS.csv")
        return [Section("prototypes", "Prototypes", empty), Section("rank", "Effective rank", empty),
                Section("embedding", "Embedding", empty)], None, problem
    lead = f"{instead.removesuffix('.')}. " if instead else ""
    lead += f"Computed from {videos.note} (--max_videos {flags.max_videos})."
    if Path(videos.csv_path).exists() and file_sha256(videos.csv_path) != run.config.get("csv_sha256"):
        lead += " It is another file than the one that the run was trained on."
    if measured.skipped:
        lead += f" {len(measured.skipped)} of them cannot be read; the first: {measured.skipped[0]}"
    names = None
    if not videos.unlabelled:
        names, note = label_names(videos.csv_path, {record.label for record in videos.records})
        lead += note
    rows = contact_sheet(measured, flags.prototypes, flags.neighbors)
    same = paragraph("Computed from the same videos.", "soft")
    embedding = embedding_html(measured, videos, held_out, flags, device, run.flags["seed"])
    return [Section("prototypes", "Prototypes", paragraph(lead, "soft") + prototypes_html(measured, rows, names)),
            Section("rank", "Effective rank", same + rank_html(measured)),
            Section("embedding", "Embedding", embedding)], measured, ""


def make_films(run: Run, flags: argparse.Namespace, context: DistContext) -> None:
    """Train a temporal-order head on the newest checkpoint and film its maps, below the run directory."""
    out = run.folder / f"order_{Path(newest(run)).stem}"
    settings = OrderSettings(
        newest(run), train_csv=flags.csv_file, test_csv=flags.test_csv, clip_frames=run.flags["clip_frames"],
        img_dim=flags.cam_img_dim or CLIP_DEFAULTS["img_dim"], level=flags.cam_level or CLIP_DEFAULTS["level"],
        batch=flags.batch, num_workers=flags.num_workers, out=str(out), resume="auto", num_videos=flags.max_films)
    earlier = list_checkpoints(out / "checkpoints")
    try:
        check_order_settings(settings, "train")
        backbone, weights = load_backbone(settings.weights, settings.net, settings.seed)
        for run_mode in (train_order_head, write_order_videos):
            run_mode(backbone.requires_grad_(False), weights, settings, context.device)
    except InputError as error:
        if not earlier:
            raise
        raise type(error)(f"--cam: {one_line(error)} (remove {out} to train a new head)") from error


def build_report(run: Run, flags: argparse.Namespace, device: torch.device) -> str:
    """The page."""
    computed, measured, problem = model_sections(run, flags, device)
    findings = find_warnings(run, measured)
    sections = [
        Section("warnings", "Warnings", warnings_html(findings, what_was_checked(run, measured), problem)),
        Section("configuration", "Configuration", configuration_html(run)),
        Section("events", "Events", events_html(run)),
        Section("curves", "Curves", curves_html(run)),
        *computed,
        Section("results", "Results", results_html(run)),
        Section("order", "Temporal order", order_html(run, find_films(run), flags.max_films)),
    ]
    name = run.folder.resolve().name
    done = (f"{run.epochs_done} of {run.flags['epochs']} epochs" if run.unit == "epoch" or not run.points
            else f"step {run.points[-1]['step']}, no epoch finished")
    subject = (f"Multi-level feature optimization, {run.flags['net']}: {done} on "
               f"{run.config.get('videos', 'unknown')} videos, {run.config.get('device', 'unknown device')}.")
    lead = f"<h1>{escape(name)}</h1>{paragraph(subject)}"
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    foot = f"Written {now} by visualization.report, commit {git_commit() or 'unknown'}, from {run.folder}."
    return page(f"{name}: report", lead, sections, escape(foot))


def check_flags(flags: argparse.Namespace) -> None:
    """InputError for flags that cannot work."""
    require_at_least({"--max_videos": (flags.max_videos, 2), "--max_checkpoints": (flags.max_checkpoints, 1),
                      "--prototypes": (flags.prototypes, 1), "--neighbors": (flags.neighbors, 1),
                      "--max_films": (flags.max_films, 1), "--batch": (flags.batch, 1),
                      "--workers": (flags.num_workers, 0)})
    if flags.cam and not (flags.csv_file and flags.test_csv):
        raise InputError("--cam: needs --csv_file, videos to train the order head on, and --test_csv, held-out ones")
    if not flags.cam and (flags.cam_level or flags.cam_img_dim):
        raise InputError("--cam_level, --cam_img_dim: for --cam; add it")
    unused = [flag for flag, value in (("--cam", flags.cam), ("--csv_file", flags.csv_file),
                                       ("--test_csv", flags.test_csv)) if value]
    if flags.logs_only and unused:
        raise InputError(f"--logs_only: computes nothing with the network; leave {unused[0]} out")


def report_parser() -> OneLineParser:
    """The parser of `python -m visualization.report`."""
    parser = OneLineParser(prog="python -m visualization.report", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="run directory of train.py")
    parser.add_argument("--out", type=Path, metavar="HTML", help="file to write (default: RUN_DIR/report.html)")
    videos = parser.add_argument_group("videos")
    videos.add_argument("--csv_file", metavar="CSV",
                        help="videos for prototypes and effective rank (default: the run's own)")
    videos.add_argument("--test_csv", metavar="CSV",
                        help="held-out, labelled videos for the embedding, and for --cam; for prototypes and effective "
                             "rank too where those of --csv_file cannot be read")
    videos.add_argument("--max_videos", type=int, default=256, metavar="N",
                        help="videos looked at of each csv, evenly spread; --cam learns from all of them")
    content = parser.add_argument_group("content")
    content.add_argument("--max_checkpoints", type=int, default=4, metavar="N",
                         help="checkpoints measured beside the random start, evenly spread, the newest among them")
    content.add_argument("--prototypes", type=int, default=12, metavar="N", help="prototypes shown with their videos")
    content.add_argument("--neighbors", type=int, default=6, metavar="N", help="videos shown for each")
    content.add_argument("--max_films", type=int, default=8, metavar="N", help="temporal-order films on the page")
    content.add_argument("--cam", action="store_true",
                         help="train a temporal-order head on the newest checkpoint first, and film its maps: in "
                              "RUN_DIR/order_CHECKPOINT, where an earlier one goes on")
    content.add_argument("--cam_level", choices=LEVELS, help=f"map under that head (default: {CLIP_DEFAULTS['level']})")
    content.add_argument("--cam_img_dim", type=int, metavar="PX",
                         help="side of its clips, whatever that of pretraining; they are as long as in pretraining "
                              f"(default: {CLIP_DEFAULTS['img_dim']})")
    content.add_argument("--logs_only", action="store_true", help="compute nothing with the network")
    work = parser.add_argument_group("work")
    work.add_argument("--gpu", metavar="N|none", help="GPU to use; none: the CPU (default: the first there is)")
    work.add_argument("--batch", type=int, default=32, metavar="M", help="clips in one forward of the network")
    work.add_argument("--workers", dest="num_workers", type=int, default=4, help="reading processes")
    return parser


def write_report(context: DistContext, flags: argparse.Namespace) -> None:
    """Everything from flags to the file."""
    check_flags(flags)
    require_h264()
    run = read_run(flags.run)
    if flags.cam:
        make_films(run, flags, context)
    out = flags.out or flags.run / "report.html"
    # A name that is not UTF-8 is shown by its codes.
    text = build_report(run, flags, context.device).encode("utf-8", "backslashreplace").decode()
    try:
        write_atomically(out, text)
    except OSError as error:
        with contextlib.suppress(OSError):
            out.with_name(f"{out.name}.partial").unlink()
        raise InputError(f"--out {out}: cannot write there: {error.strerror}") from error
    print(f"report: {out} ({out.stat().st_size / 1e6:.1f} MB, opens without a network)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 when the page is written; what else there is, see `utils.errors`, is told in one line."""
    parser = report_parser()
    flags = parser.parse_args(arguments)
    print_any_name()
    return run_told(lambda: DistContext(0, 1, choose_device(flags.gpu)), write_report, flags, parser.prog)


if __name__ == "__main__":
    sys.exit(main())
