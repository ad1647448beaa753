"""Loss curves of a run: python -m visualization.curves RUN_DIR [--out FIGURE.png]"""
from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from utils.cli import OneLineParser
from utils.errors import InputError, exit_status_of
from utils.figures import check_figure_path, save_figure
from utils.launch import print_any_name
from visualization.report.run import read_run

PANELS = {
    "contrast": ("instance_high", "motion_mid", "motion_low"),
    "timestamps": ("timestamp_high", "timestamp_mid", "timestamp_low"),
    "prototypes and graph": ("prototype", "graph_high", "graph_mid", "graph_low"),
    "retrieval accuracy, top-1": ("accuracy_instance_high", "accuracy_motion_mid", "accuracy_motion_low",
                                  "accuracy_timestamp_high", "accuracy_timestamp_mid", "accuracy_timestamp_low",
                                  "accuracy_prototype"),
}
CHANGES = {"graph on (--split)": "graph_start_epoch", "queue on": "queue_start_epoch", "lr / 10": "lr_decay_epoch"}
MARK_STYLES = (":", "--", "-.")


def schedule_marks(flags: Mapping[str, Any]) -> list[tuple[float, str]]:
    """Returns (place, name) of what changes during a run, not from its start: between two epochs, which count from 1."""
    return [(flags[name] + 0.5, label) for label, name in CHANGES.items() if 0 < flags.get(name, 0) < flags["epochs"]]


def draw_loss_curves(run: Path) -> Figure:
    """Returns the figure of a run's loss terms and retrieval accuracies over epochs, and of what changes on the way."""
    config, lines = read_run(run)
    flags, epochs = config["flags"], [line for line in lines if line["kind"] == "epoch"]
    if not epochs:
        raise InputError(f"{run}/log.jsonl: no finished epoch in it")
    if not any(name in line for names in PANELS.values() for name in names for line in epochs):
        raise InputError(f"{run}/log.jsonl: no loss of pretraining in it: not a run of train.py")
    figure = Figure(figsize=(11, 7), layout="tight")
    axes = figure.subplots(2, 2, sharex=True)
    numbers = [line["epoch"] + 1 for line in epochs]
    for panel, (title, names) in zip(axes.flat, PANELS.items()):
        for name in names:
            values = [line.get(name) for line in epochs]
            if any(value is not None for value in values):
                panel.plot(numbers, [float("nan") if value is None else value for value in values], marker=".",
                           label=name.removeprefix("accuracy_"))
        for (place, label), style in zip(schedule_marks(flags), MARK_STYLES):
            panel.axvline(place, color="grey", linestyle=style, label=label)
        panel.set(title=title, xlabel="epoch" if panel in axes[1] else "")
        panel.legend(fontsize=8)
        panel.grid(alpha=0.3)
        panel.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(f"{flags['net']}, {flags['img_dim']} px, {flags['csv_file']}")
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after a one-line error."""
    parser = OneLineParser(prog="python -m visualization.curves", description="Draw the loss curves of a run.")
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="run directory of train.py")
    parser.add_argument("--out", type=Path, metavar="PNG", help="figure to write (default: RUN_DIR/curves.png)")
    flags = parser.parse_args(arguments)
    path = flags.out or flags.run / "curves.png"
    print_any_name()

    def draw() -> None:
        check_figure_path(path)
        save_figure(draw_loss_curves(flags.run), path, "--out")
        print(f"curves: {path}")

    return exit_status_of(draw, parser.prog)


if __name__ == "__main__":
    sys.exit(main())
