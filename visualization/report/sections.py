"""The sections of a report, each as HTML: what there is, or why there is nothing and which command fills it."""
from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from models.levels import LEVELS
from utils.pretraining_flags import pretraining_parser
from visualization.curves import PANELS, schedule_marks
from visualization.report.charts import Level, Series, bar_chart, line_chart
from visualization.report.html import details, facts, film, missing, paragraph, table
from visualization.report.measure import Measured
from visualization.report.figures import Row
from visualization.report.run import MONITOR, MONITOR_SKIPPED, Run, batch_of, chance_losses
from visualization.report.warnings import Finding

MAX_LISTED = 20        # events shown one by one
MAX_TABLE_EPOCHS = 60  # lines of the table of values
LOSS_PANELS = ("contrast", "timestamps", "prototypes and graph")


def warnings_html(findings: Sequence[Finding], checked: Sequence[str], problem: str) -> str:
    """The warnings, or that there are none, and what was looked at; `problem`: why nothing was, with the network."""
    boxes = "".join(
        f'<div class="warning {"serious" if one.collapse else "notice"}"><h3>{escape(one.title)}</h3>'
        f"<p><b>Seen:</b> {escape(one.seen)}</p><p><b>Usually means:</b> {escape(one.means)}</p>"
        f"<p><b>Try:</b> {escape(one.remedy)}</p></div>" for one in findings)
    if not findings:
        boxes = ('<div class="warning well"><h3>None</h3>'
                 "<p>Nothing that was checked looks like collapse or trouble.</p></div>")
    if problem:
        boxes += paragraph(f"Only the log was judged, not what the network makes of videos: {problem}")
    return boxes + details("What was checked", "".join(f"<p>{escape(line)}</p>" for line in checked))


def configuration_html(run: Run) -> str:
    """Flags, versions, commit, device, csv hash, earlier starts."""
    config, flags = run.config, run.flags
    spelled, defaults = {}, {}
    for action in pretraining_parser()._actions:
        spelled[action.dest], defaults[action.dest] = max(action.option_strings, key=len), action.default
    changed = [name for name in flags if name in defaults and flags[name] != defaults[name]]
    main = facts({
        "Backbone": f"{flags['net']}, {flags['clip_frames']} frames of {flags['img_dim']} px",
        "Videos": f"{config.get('videos', 'unknown')} of {flags['csv_file']}"
                  f" ({config.get('videos_too_short', 0)} more are too short)",
        "Global batch": f"{batch_of(config, flags)} videos, {config.get('processes', 1)} process(es)",
        "Device": config.get("device", "unknown"),
        "Commit": config.get("git_commit") or "unknown",
        "csv, SHA-256": config.get("csv_sha256", "unknown"),
        "Versions": ", ".join(f"{name} {version}" for name, version in config.get("versions", {}).items()),
    })
    differing = table(["flag", "value", "default"],
                      [[spelled[name], *map(or_none, (flags[name], defaults[name]))] for name in changed],
                      caption="Flags that are not at their default")
    everything = details(f"All {len(flags)} flags", table(
        ["flag", "name inside", "value"],
        [[spelled.get(name, "-"), name, or_none(value)] for name, value in flags.items()]))
    command = details("Command", f"<pre>{escape(' '.join(map(str, config.get('command', []))))}</pre>")
    return main + differing + everything + command + starts_html(run)


def or_none(value: Any) -> str:
    """A flag's value as text; "none" may be one itself."""
    return "not given" if value is None else str(value)


def starts_html(run: Run) -> str:
    """A table of the starts of a resumed run; of one that was never resumed, a line."""
    starts = run.starts
    if len(starts) == 1:
        return paragraph("Started once.")
    rows = [[number, start.get("start_epoch", 0), start.get("start_step", 0), start.get("processes", 1),
             batch_of(start, run.flags), start.get("device", ""), start.get("versions", {}).get("torch", ""),
             (start.get("git_commit") or "")[:12]]
            for number, start in enumerate(starts, start=1)]
    return table(["start", "after epochs", "and steps", "processes", "global batch", "device", "torch", "commit"], rows,
                 caption=f"Started {len(starts)} times")


def events_html(run: Run) -> str:
    """Unreadable videos, skipped steps, dumps of numbers that are not finite."""
    if not run.events and not run.dumps:
        return paragraph("No unreadable video, no skipped step.")
    rows = [[event["epoch"] + 1, event["step"], event["kind"].replace("_", " "),
             event.get("reason") or event.get("not_finite") or
             ", ".join(f"{name}: {value}" for name, value in event.items() if name not in ("kind", "epoch", "step"))]
            for event in run.events]
    shown = table(["epoch", "step", "event", "what"], rows[:MAX_LISTED])
    more = paragraph(f"{len(rows) - MAX_LISTED} more in log.jsonl.") if len(rows) > MAX_LISTED else ""
    names = ", ".join(f"not_finite/{path.name}" for path in run.dumps[:MAX_LISTED])
    dumps = paragraph(f"Steps with numbers that are not finite are described in {names}.") if names else ""
    return (shown if rows else "") + more + dumps


def curves_html(run: Run) -> str:
    """Every value of the log over epochs."""
    if not run.points:
        return missing("The log has no values yet: no epoch is finished, and no step logged (--log_every).",
                       f"python train.py --csv_file {run.flags['csv_file']} --out {run.folder} --resume")
    flags, chances = run.flags, chance_losses(run.flags, run.global_batch)
    marks = schedule_marks(flags) if run.unit == "epoch" else []
    places = [line["epoch"] + 1 if run.unit == "epoch" else line["step"] for line in run.points]
    most, entropy = min(flags["num_prototypes"], run.global_batch), math.log(flags["num_prototypes"])

    def chance_of(name: str) -> tuple[float | None, str]:
        """Where a line would be by chance, and how its legend says so."""
        chance = chances.get(short_name(name))
        if chance is None:
            return None, ""
        if name.startswith("accuracy_"):
            return 1 / chance.candidates, f"chance {100 / chance.candidates:.1f} %"
        return chance.loss, f"chance {chance}"

    def chart(title: str, names: Sequence[str], *, levels: Sequence[Level] = (), percent: bool = False,
              least: float | None = None) -> str:
        lines = [Series(short_name(name), *run.series(name), *chance_of(name)) for name in names]
        lines = [line for line in lines if any(map(math.isfinite, line.values))]
        if not lines:
            return ""
        return line_chart(title, lines, place_name=run.unit, marks=marks, levels=levels, percent=percent, least=least,
                          extent=(places[0], places[-1]))

    accuracies = [name for name in PANELS["retrieval accuracy, top-1"] if run.series(name)[1]]
    of_time = [name for name in accuracies if "timestamp" in name]
    charts = [
        chart("Loss, weighted total", ["total"]),
        *(chart(f"Loss: {panel}", PANELS[panel]) for panel in LOSS_PANELS),
        chart("Retrieval accuracy: clips and prototypes", [name for name in accuracies if name not in of_time],
              percent=True, least=0),
        chart("Retrieval accuracy: timestamps", of_time, percent=True, least=0),
        chart("Prototypes in use, per batch", ["prototypes_in_use"], least=0,
              levels=[Level(most, f"most possible, min(K, batch) = {most}; K = {flags['num_prototypes']}")]),
        chart("Entropy of assignments, nats", ["assignment_entropy"], least=0,
              levels=[Level(entropy, f"no preference, ln K = {entropy:.2f}")]),
        chart("Graph edges per row", ["graph_edges_per_row"], least=0, levels=[Level(1, "the video itself alone")]),
        chart("Gradient norm", ["gradient_norm"], least=0),
        chart("Learning rate", ["lr"], least=0),
        chart("Throughput, videos a second", ["samples_per_s"], least=0),
        chart("Time spent waiting for data", ["data_wait"], percent=True, least=0),
        chart("Monitor, on labelled videos", [name for name in run.names(MONITOR) if name != MONITOR_SKIPPED],
              percent=True, least=0),
    ]
    lacking = [title for title, name in (("gradient norm", "gradient_norm"), ("graph edges", "graph_edges_per_row"))
               if not run.series(name)[1]]
    notes = [f"Means over each {run.unit}. Dotted: by chance, where all candidates look alike. Dashed: what changes on "
             "the way."]
    if len(run.alike) < len(run.points):
        notes.append(f"The global batch has changed on the way; by chance is that of the last {run.unit}, with "
                     f"{run.global_batch} videos.")
    notes += [f"Not in this log: {', '.join(lacking)}."] if lacking else []
    return "".join(map(paragraph, notes)) + f'<div class="charts">{"".join(charts)}</div>' + values_html(run)


def short_name(name: str) -> str:
    """A name of the log without what its chart's title says."""
    return name.removeprefix("accuracy_").removeprefix(MONITOR)


def values_html(run: Run) -> str:
    """The same values as a table, on demand."""
    names = [name for name in run.names("") if name not in ("kind", "epoch", "step")]
    stride = math.ceil(len(run.points) / MAX_TABLE_EPOCHS)
    points = run.points[::-stride][::-1]  # the last one always
    rows = [[point["epoch"] + 1, point["step"],
             *(f"{point[name]:.4g}" if isinstance(point.get(name), (int, float)) else "-" for name in names)]
            for point in points]
    every = f", every {stride}th" if stride > 1 else ""
    return "<br>" + details(f"All values as a table{every}", table(["epoch", "step", *names], rows, numbers_from=0))


def prototypes_html(measured: Measured, rows: Sequence[Row], label_names: Sequence[str] | None) -> str:
    """Usage of prototypes, and the nearest videos of the most used ones."""
    num_videos, num_prototypes = measured.scores.shape
    counts = sorted((measured.nearest == k).sum() for k in range(num_prototypes))[::-1]
    used = sum(count > 0 for count in counts)
    even = num_videos / num_prototypes
    charts = bar_chart("Videos nearest to each prototype, most used first", list(map(float, counts)),
                       place_name="prototypes by use", level=Level(even, f"even use: {even:.2g} videos each"))
    sheet = []
    for row in rows:
        texts = [label_names[video.label] if label_names else Path(video.path).stem for video in row.videos]
        names = "".join(f'<li title="{escape(f"{video.path}, similarity {score:.3f}")}">{escape(text)}</li>'
                        for video, text, score in zip(row.videos, texts, row.scores))
        columns = f"grid-template-columns: repeat({len(row.videos)}, minmax(0, 1fr)); width: "
        width = f"{100 * len(row.videos) / max(len(other.videos) for other in rows):.1f}%"
        label = f"The {len(row.videos)} nearest videos of prototype {row.prototype}: {', '.join(texts)}"
        sheet.append(f'<figure><figcaption>Prototype {row.prototype} <span>{row.used} of {num_videos} videos, '
                     f'similarity {row.scores[0]:.2f} to {row.scores[-1]:.2f}</span></figcaption>'
                     f'<div style="width: {width}">{film(row.film.film, label, row.film.still)}</div>'
                     f'<ol class="names" style="{columns}{width}">{names}</ol></figure>')
    lead = paragraph(
        f"{used} of {num_prototypes} prototypes are the nearest one of some video, by {measured.states[-1].name}. A "
        "video's nearest prototype is that of highest cosine similarity to its embedding, for one clip from its "
        "middle, without the balancing of Sinkhorn-Knopp. Below are the most used ones, each with those of its videos "
        "that are most similar to it.")
    return f'{lead}<div class="charts">{charts}</div><h3>Nearest videos</h3><div class="sheet">{"".join(sheet)}</div>'


def rank_html(measured: Measured) -> str:
    """Effective rank and spread at each state."""
    states = measured.states
    levels = LEVELS[::-1]  # high first, as in the other charts
    places = [state.epochs for state in states]
    chart = line_chart("Effective rank of features", [Series(level, places, [state.ranks[level] for state in states])
                                                      for level in levels], place_name="epoch", least=0)
    spread = line_chart("Spread of features around their mean", [
        Series(level, places, [state.spreads[level] for state in states]) for level in levels], place_name="epoch",
        percent=True, least=0)
    most = {level: min(len(measured.records) - 1, states[-1].channels[level]) for level in levels}
    rows = [[state.name, f"{state.epochs:g}", *(f"{state.ranks[level]:.1f}" for level in levels),
             *(f"{100 * state.spreads[level]:.1f} %" for level in levels)] for state in states]
    rows.append(["most possible", "", *(most[level] for level in levels), *("" for _ in levels)])
    head = ["state", "epochs", *(f"rank, {level}" for level in levels), *(f"spread, {level}" for level in levels)]
    lead = paragraph(
        "Effective rank: the exponential of the entropy of the singular values of the videos' features, their mean "
        "taken off; about how many directions they fill. Spread: their standard deviation as a share of their size. A "
        "random start usually fills more directions than a trained network, evenly and without meaning; what warns is "
        "a rank that falls from one checkpoint to the next, or is near 1.")
    return f'{lead}<div class="charts">{chart}{spread}</div><br>{table(head, rows, numbers_from=1)}'
