"""Loss curves of a run: python -m visualization.curves RUN_DIR [--out FIGURE.png]"""
from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from utils.cli import OneLineParser
from utils.errors import InputError, exit_status_of
from utils.figures import check_figure_path, new_figure, save_figure
from visualization.report.figures import ChartLine, draw_lines
from visualization.report.run import RunDirectory

PANELS = {
    "contrast": ("instance_high", "motion_mid", "motion_low"),
    "timestamps": ("timestamp_high", "timestamp_mid", "timestamp_low"),
    "prototypes and graph": ("prototype", "graph_high", "graph_mid", "graph_low"),
    "retrieval accuracy, top-1": ("accuracy_instance_high", "accuracy_motion_mid", "accuracy_motion_low",
                                  "accuracy_timestamp_high", "accuracy_timestamp_mid", "accuracy_timestamp_low",
                                  "accuracy_prototype"),
}
CHANGES = {"graph on (--split)": "graph_start_epoch", "queue on": "queue_start_epoch", "lr / 10": "lr_decay_epoch"}


def schedule_marks(flags: Mapping[str, Any], epochs_done: int) -> list[tuple[float, str]]:
    """Returns (place, name) of what has changed during a run, not from its start: between two epochs, counted from 1."""
    return [(flags[name] + 0.5, label) for label, name in CHANGES.items() if 0 < flags.get(name, 0) < epochs_done]


def draw_loss_curves(run: RunDirectory) -> Figure:
    """Returns the figure of a run's loss terms and retrieval accuracies over epochs, and of what changes on the way."""
    if not run.epochs_done:
        raise InputError(f"{run.folder}/log.jsonl: no finished epoch in it")
    figure = new_figure(f"{run.flags['net']}, {run.flags['img_dim']} px, {run.flags['csv_file']}", figsize=(11, 7),
                        layout="tight")
    axes = figure.subplots(2, 2, sharex=True)
    for panel, (title, names) in zip(axes.flat, PANELS.items()):
        lines = [ChartLine(name.removeprefix("accuracy_"), *run.series(name)) for name in names if any(run.series(name))]
        draw_lines(panel, lines, schedule_marks(run.flags, run.epochs_done))
        panel.set(xlabel="epoch" if panel in axes[1] else "")
        panel.set_title(title, pad=30)
        if lines:
            panel.legend(fontsize=8)
        panel.grid(alpha=0.3)
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OneLineParser(prog="python -m visualization.curves", description="Draw the loss curves of a run.")
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="run directory of train.py")
    parser.add_argument("--out", type=Path, metavar="PNG", help="figure to write (default: RUN_DIR/curves.png)")
    flags = parser.parse_args(arguments)
    path = flags.out or flags.run / "curves.png"

    def draw() -> None:
        check_figure_path(path)
        save_figure(draw_loss_curves(RunDirectory(flags.run)), path, "--out")
        print(f"curves: {path}")

    return exit_status_of(draw, parser.prog)


if __name__ == "__main__":
    sys.exit(main())
