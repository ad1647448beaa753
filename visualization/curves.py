"""Loss curves of a run: python -m visualization.curves RUN_DIR [--out PICTURE.png]"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Mapping, Sequence

import matplotlib

matplotlib.use("Agg")  # files, no window
from matplotlib import pyplot as plt  # noqa: E402

from utils.errors import InputError, report  # noqa: E402
from utils.cli import OneLineParser  # noqa: E402
from utils.launch import print_any_name  # noqa: E402
from visualization.report.run import read_config, read_log  # noqa: E402

PANELS = {
    "contrast": ("instance_high", "motion_mid", "motion_low"),
    "timestamps": ("timestamp_high", "timestamp_mid", "timestamp_low"),
    "prototypes and graph": ("prototype", "graph_high", "graph_mid", "graph_low"),
    "retrieval accuracy, top-1": ("accuracy_instance_high", "accuracy_motion_mid", "accuracy_motion_low",
                                  "accuracy_timestamp_high", "accuracy_timestamp_mid",
                                  "accuracy_timestamp_low", "accuracy_prototype"),
}
MARK_STYLES = (":", "--", "-.")
ENDINGS = (".png", ".jpg", ".svg", ".pdf")


def read_epochs(run: Path) -> tuple[list[dict], dict]:
    """The epoch lines of a run's log.jsonl, and the flags in its config.json. InputError where none has what is drawn."""
    lines, flags = read_log(run), read_config(run)["flags"]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    if not epochs:
        raise InputError(f"{run}/log.jsonl: no finished epoch in it")
    if not any(name in line for names in PANELS.values() for name in names for line in epochs):
        raise InputError(f"{run}/log.jsonl: no loss of pretraining in it: not a run of train.py")
    return epochs, flags


def schedule_marks(flags: Mapping[str, Any]) -> list[tuple[float, str]]:
    """(place, name) of what changes during a run; epochs count from 1 at their end, so that a change lies between two.

    What is on from the start, or never comes, has no mark.
    """
    changes = {"graph on (--split)": "graph_start_epoch", "queue on": "queue_start_epoch", "lr / 10": "lr_decay_epoch"}
    return [(flags[name] + 0.5, label) for label, name in changes.items() if 0 < flags.get(name, 0) < flags["epochs"]]


def draw_curves(epochs: list[dict], flags: dict, path: Path) -> None:
    """Write the picture: every loss term and retrieval accuracy over epochs, and what changes on the way.

    InputError where it cannot be written.
    """
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), sharex=True)
    numbers = [line["epoch"] + 1 for line in epochs]
    for panel, (title, names) in zip(axes.flat, PANELS.items()):
        for name in names:
            values = [line.get(name) for line in epochs]
            if any(value is not None for value in values):
                panel.plot(numbers, [float("nan") if value is None else value for value in values], marker=".",
                           label=name.removeprefix("accuracy_"))
        for (place, label), style in zip(schedule_marks(flags), MARK_STYLES):
            panel.axvline(place, color="grey", linestyle=style, label=label)
        panel.set_title(title)
        panel.legend(fontsize=8)
        panel.grid(alpha=0.3)
    for panel in axes[1]:
        panel.set_xlabel("epoch")
    figure.suptitle(f"{flags['net']}, {flags['img_dim']} px, {flags['csv_file']}")
    figure.tight_layout()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise InputError(f"--out {path}: cannot write the picture: {error.strerror}") from error
    finally:
        plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 after a user's mistake, told in one line."""
    parser = OneLineParser(prog="python -m visualization.curves", description="Draw the loss curves of a run.")
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="run directory of train.py")
    parser.add_argument("--out", type=Path, metavar="PNG", help="picture to write (default: RUN_DIR/curves.png)")
    flags: argparse.Namespace = parser.parse_args(arguments)
    path = flags.out or flags.run / "curves.png"
    print_any_name()
    try:
        if path.suffix.lower() not in ENDINGS:
            raise InputError(f"--out {path}: must end in one of {', '.join(ENDINGS)}")
        draw_curves(*read_epochs(flags.run), path)
    except InputError as error:
        return report(error, parser.prog)
    print(f"curves: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
