"""What each section of a report shows, as values for report.html.j2."""
from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from dataset.frames import video_name
from dataset.records import VideoRecord, read_records
from eval.compare import card_differences, comparison_rows
from eval.metrics import class_names
from eval.result_card import CARD, read_card
from models.levels import LEVELS
from utils.errors import InputError, one_line
from utils.files import file_sha256
from utils.pretraining_flags import pretraining_parser
from visualization.curves import PANELS, schedule_marks
from visualization.main_temporal import EVAL_CARD
from visualization.report.figures import ChartLine, file_uri, line_chart, side_by_side
from visualization.report.measure import Measurement, measure_run, spread_evenly
from visualization.report.run import MONITOR, MONITOR_SKIPPED, RunDirectory, chance_losses

MAX_TABLE_ROWS = 60  # of the table of values
MEANINGS = {"retrieval": "Rows: a query video, left, and its nearest training videos. Green: same class; red: another.",
            "confusion": "Rows: the class; columns: the predicted class."}  # images beside a card, by their first word
EMBEDDING = "Videos as points, t-SNE and PCA of each level, colored by class."


def attempt(problems: list[str], work: Callable[..., Any], *arguments: Any) -> Any:
    """Returns what `work` returns, or None and the InputError's line in `problems`, for what a page can do without."""
    try:
        return work(*arguments)
    except InputError as error:
        problems.append(one_line(error))


def html_table(rows: Sequence[dict[str, Any]] | Sequence[Sequence[Any]]) -> Markup:
    """Returns a table of rows by column name, or of a head and rows; nothing without rows."""
    import pandas

    if not rows:
        return Markup()
    table = pandas.DataFrame(rows) if isinstance(rows[0], dict) else pandas.DataFrame(rows[1:], columns=rows[0])
    return Markup(table.to_html(index=False, border=0, justify="left", na_rep="-", float_format="{:.4g}".format))


def configuration_section(run: RunDirectory) -> dict[str, Any]:
    """Returns facts, a table of the flags that are not at their default, and config.json."""
    config, flags = run.config, run.flags
    changed = [dict(flag=max(action.option_strings, key=len), value=str(flags[action.dest]), default=str(action.default))
               for action in pretraining_parser()._actions if flags.get(action.dest, action.default) != action.default]
    return {
        "facts": {
            "Backbone": f"{flags['net']}, {flags['clip_frames']} frames of {flags['img_dim']} px",
            "Videos": f"{config['videos']} of {flags['csv_file']} ({config['videos_too_short']} more are too short)",
            "Global batch": f"{run.batch_at(math.inf)} videos, {config['processes']} process(es)",
            "Device": config["device"], "Commit": config["git_commit"] or "unknown", "Starts": len(run.starts)},
        "changed": html_table(changed), "all": json.dumps(config, indent=1)}


def event_table(run: RunDirectory, most: int) -> Markup:
    """Returns a table of the run's first `most` events."""
    return html_table([{"epoch": event["epoch"] + 1, "step": event["step"], "event": event["kind"].replace("_", " "),
                        "what": event.get("reason") or event.get("not_finite")} for event in run.events[:most]])


def curve_section(run: RunDirectory) -> dict[str, Any]:
    """Returns the values of the log as charts, and as a table of at most MAX_TABLE_ROWS lines, the last among them."""
    if not run.points:
        return {}
    num_prototypes = run.flags["num_prototypes"]
    most, entropy = min(num_prototypes, run.global_batch), math.log(num_prototypes)
    accuracies = PANELS["retrieval accuracy, top-1"]
    monitored = dict.fromkeys(name for line in run.monitored for name in line if name.startswith(MONITOR))
    percent, loss = {"percent": True}, {"from_zero": False}
    panels = [
        ("Loss, weighted total", ["total"], loss),
        *((f"Loss: {panel}", PANELS[panel], loss) for panel in ("contrast", "timestamps", "prototypes and graph")),
        ("Retrieval accuracy: clips and prototypes", [name for name in accuracies if "timestamp" not in name], percent),
        ("Retrieval accuracy: timestamps", [name for name in accuracies if "timestamp" in name], percent),
        ("Prototypes in use, per batch", ["prototypes_in_use"],
         {"level": (most, f"upper bound, min(K, batch) = {most}; K = {num_prototypes}")}),
        ("Entropy of assignments, nats", ["assignment_entropy"],
         {"level": (entropy, f"no preference, ln K = {entropy:.2f}")}),
        ("Graph edges per row", ["graph_edges_per_row"], {"level": (1, "the video itself alone")}),
        ("Gradient norm", ["gradient_norm"], {}),
        ("Learning rate", ["lr"], {}),
        ("Throughput, videos per second", ["samples_per_s"], {}),
        ("Time spent waiting for data", ["data_wait"], percent),
        ("Monitor, on labelled videos", [name for name in monitored if name != MONITOR_SKIPPED], percent),
    ]
    marks = schedule_marks(run.flags, run.epochs_done) if run.unit == "epoch" else []
    chance_levels: dict[str, tuple[float, str]] = {}
    for term, chance in chance_losses(run.flags, run.global_batch).items():
        chance_levels[term] = chance.loss, f"chance {chance}"
        chance_levels[f"accuracy_{term}"] = 1 / chance.candidates, f"chance {100 / chance.candidates:.1f} %"
    charts = []
    for title, names, options in panels:
        lines = [ChartLine(name.removeprefix("accuracy_").removeprefix(MONITOR), *run.series(name),
                           *chance_levels.get(name, ())) for name in names]
        if any(math.isfinite(value) for line in lines for value in line.values):
            charts.append(line_chart(title, lines, run.unit, marks=marks, **options))
    stride = math.ceil(len(run.points) / MAX_TABLE_ROWS)
    rows = [{"epoch": line["epoch"] + 1, **{name: value for name, value in line.items() if name not in ("kind", "epoch")}}
            for line in run.points[::-stride][::-1]]
    return {"charts": charts, "stride": stride, "table": html_table(rows)}


def read_report_videos(csv_path: str, most: int) -> tuple[list[VideoRecord], str]:
    """Returns (at most `most` videos of a csv, evenly spread, with labels if all have one; which they are).

    InputError if no video has frames.
    """
    records = attempt([], read_records, csv_path, True) or [
        record for record in read_records(csv_path, labelled=False) if record.num_frames]
    if not records:
        raise InputError(f"{csv_path}: no video has a frame")
    chosen = [records[index] for index in spread_evenly(len(records), most)]
    which = "all" if len(chosen) == len(records) else f"{len(chosen)} evenly spread ones of the"
    return chosen, f"{which} {len(records)} videos of {csv_path}"


def network_sections(run: RunDirectory, flags: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Returns what was measured ("measurement", None where nothing was; why is in "note") and the sections made of it.

    The videos are those of --csv_file, or else of the run.
    """
    if flags.logs_only:
        return {"measurement": None, "note": "--logs_only: nothing was computed with the network."}
    csv_path, problems = flags.csv_file or run.flags["csv_file"], []
    try:
        records, which = read_report_videos(csv_path, flags.max_videos)
    except InputError as error:
        if flags.csv_file:
            raise
        return {"measurement": None, "note": f"{one_line(error)}; --csv_file names another csv."}
    measurement = attempt(problems, measure_run, run, records, flags, device)
    if not measurement:
        return {"measurement": None, "note": problems[0]}
    note = f"Computed from {which} (--max_videos {flags.max_videos})."
    return {"measurement": measurement, "rank": rank_section(measurement),
            "prototypes": prototype_section(run, measurement, csv_path, note, flags)}


def prototype_section(run: RunDirectory, measurement: Measurement, csv_path: str, note: str,
                      flags: argparse.Namespace) -> dict[str, Any]:
    """Returns the use of prototypes, and the most used ones, each with those of its videos that have the highest scores."""
    if file_sha256(csv_path) != run.config["csv_sha256"]:
        note += " It is another file than the one that the run was trained on."
    if measurement.skipped:
        note += f" {len(measurement.skipped)} of them cannot be read; the first: {measurement.skipped[0]}"
    labels, problems = {record.label for record in measurement.records}, []
    names = {} if None in labels else attempt(problems, class_names, None, csv_path, labels)
    if problems:
        note += f" Classes have numbers, not names: {problems[0]}."
        names = {label: str(label) for label in labels}
    nearest, (num_videos, num_prototypes) = measurement.scores.argmax(axis=1), measurement.scores.shape
    counts = np.bincount(nearest, minlength=num_prototypes)
    shown = []
    for prototype in np.argsort(-counts, kind="stable")[:min(flags.prototypes, np.count_nonzero(counts))]:
        own = np.flatnonzero(nearest == prototype)
        best = own[np.argsort(-measurement.scores[own, prototype], kind="stable")[:flags.neighbors]]
        records = [measurement.records[index] for index in best]
        video, still = side_by_side(records, measurement.settings)
        shown.append({"number": prototype, "used": len(own), "video": video, "still": still, "videos": [
            {"path": record.path, "score": score, "text": names.get(record.label, video_name(record.path))}
            for record, score in zip(records, measurement.scores[best, prototype].tolist())]})
    even = num_videos / num_prototypes
    use = ChartLine("videos", range(1, num_prototypes + 1), np.sort(counts)[::-1].tolist())
    chart = line_chart("Videos nearest to each prototype, most used first", [use], "prototypes by use",
                       level=(even, f"even use: {even:.2g} videos each"))
    return {"note": note, "num_used": np.count_nonzero(counts), "num": num_prototypes, "chart": chart,
            "num_videos": num_videos, "shown": shown}


def rank_section(measurement: Measurement) -> dict[str, Any]:
    """Returns effective rank and spread at each state of the network, as charts and as a table."""
    states, levels = measurement.states, LEVELS[::-1]  # high first, as in the other charts
    places = [state.epochs for state in states]
    charts = [line_chart(title, [ChartLine(level, places, [getattr(state, name)[level] for state in states])
                                 for level in levels], "epoch", percent=percent)
              for title, name, percent in (("Effective rank of features", "ranks", False),
                                           ("Spread of features around their mean", "spreads", True))]
    rows = [{"state": state.name, "epochs": state.epochs, **{f"rank, {level}": state.ranks[level] for level in levels},
             **{f"spread, {level}": state.spreads[level] for level in levels}} for state in states]
    bound = {f"rank, {level}": min(len(measurement.records) - 1, states[-1].channels[level]) for level in levels}
    return {"charts": charts, "table": html_table([*rows, {"state": "upper bound", **bound}])}


def embedding_section(run: RunDirectory) -> dict[str, Any]:
    """Returns the figures of visualization.embedding below the run directory, and what cannot be read."""
    problems = []
    return {"images": embed_files(run.folder, sorted(run.folder.rglob("embedding*.png")), problems), "problems": problems}


def embed_files(folder: Path, paths: Iterable[Path], problems: list[str]) -> list[dict[str, Any]]:
    """Returns the images or videos of `paths`, below `folder`, that can be read; the others are in `problems`."""
    files = [{"uri": attempt(problems, file_uri, path), "name": path.relative_to(folder),
              "meaning": MEANINGS.get(path.stem.partition("_")[0], EMBEDDING)} for path in paths]
    return [file for file in files if file["uri"]]


def result_section(run: RunDirectory) -> dict[str, Any]:
    """Returns the result cards below the run directory by task, with differences and images, and what cannot be read."""
    tasks: dict[str, dict[Path, dict[str, Any]]] = {}
    problems, sections = [], []
    for path in sorted(path for name in (CARD, EVAL_CARD) for path in run.folder.rglob(name)):
        if card := attempt(problems, read_card, path):
            tasks.setdefault(card["task"], {})[path.relative_to(run.folder)] = card
    for task, cards in tasks.items():
        images = {path for card in cards for path in (run.folder / card).parent.rglob("*.png")
                  if path.stem.partition("_")[0] in MEANINGS}
        sections.append({"task": task, "table": html_table(comparison_rows([*cards.values()])),
                         "images": embed_files(run.folder, sorted(images), problems),
                         "differences": card_differences([*cards.values()]),
                         "texts": {path: json.dumps(card, indent=1) for path, card in cards.items()}})
    return {"problems": problems, "tasks": sections}


def order_section(run: RunDirectory, most: int) -> dict[str, Any]:
    """Returns at most `most` videos of temporal-order maps below the run directory, the last written folder first."""
    paths, problems = sorted(run.folder.rglob("cam/*.mp4"), key=lambda path: (-path.parent.stat().st_mtime, path)), []
    return {"videos": embed_files(run.folder, paths[:most], problems), "problems": problems,
            "num_more": len(paths[most:])}
