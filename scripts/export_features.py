"""Write the features of videos: one vector per video and level, for use in other code.

    python scripts/export_features.py --weights CHECKPOINT --csv_file my.csv --out features.npz

Labels are not needed. The file holds, for N videos, `videos` (their paths, [N]) and for each level `low`, `mid` and `high`
float32 [N, C]: the feature map averaged over time and space, then over the video's clips. Read it by `numpy.load`.
"""
from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it starts from any folder

import numpy as np

from eval.cli import add_feature_flags, check_feature_flags, run_command
from eval.features.csv_features import read_listed_features
from utils.cli import OneLineParser, add_launch_flags
from utils.distributed import DistContext, run_on_main
from utils.errors import InputError
from utils.files import write_atomically


def export_features(context: DistContext, flags: argparse.Namespace) -> None:
    """Extracts in all processes; the main one writes."""
    videos, _ = read_listed_features("exported", False, flags, context)

    def write() -> None:
        write_atomically(flags.out, partial(
            np.savez, videos=np.array([record.path for record in videos.records]), **videos.features))
        print(f"{flags.out}: {len(videos.records)} videos; channels "
              + ", ".join(f"{level} {rows.shape[1]}" for level, rows in videos.features.items()))

    run_on_main(context, write)


def check_export_flags(flags: argparse.Namespace) -> None:
    check_feature_flags(flags)
    if flags.out.suffix != ".npz":
        raise InputError(f"--out {flags.out}: must end in .npz")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OneLineParser(prog="export_features.py", description=__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--csv_file", required=True, metavar="CSV", help="videos: frame_dir,number_of_frames[,label]")
    data.add_argument("--out", type=Path, default="features.npz", metavar="NPZ", help="file to write")
    add_feature_flags(parser)
    add_launch_flags(parser)
    return run_command(parser, check_export_flags, export_features, arguments)


if __name__ == "__main__":
    sys.exit(main())
