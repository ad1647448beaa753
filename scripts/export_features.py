"""Write the features of videos: one vector per video and level, for use in other code.

    python scripts/export_features.py --weights CHECKPOINT --csv_file my.csv --out features.npz

Labels are not needed. The file holds, for N videos, `videos` (their paths, [N]) and for each level `low`, `mid` and `high`
float32 [N, C]: the feature map averaged over time and space, then over the video's clips. Read it by `numpy.load`.
"""
# ruff: noqa: E402
from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it starts from any folder

import numpy as np

from dataset.records import read_records
from eval.cli import add_feature_flags, read_clip_settings, run_command
from eval.features.backbone import load_backbone
from eval.features.extract import extract_features, keep_readable
from eval.result_card import make_out_dir
from utils.cli import OneLineParser, add_launch_flags, check_values
from utils.distributed import DistContext, check_same_on_all_ranks, run_on_all_ranks, run_long_on_main
from utils.errors import InputError
from utils.files import write_atomically


def export_features(context: DistContext, flags: argparse.Namespace) -> None:
    """Extracts in all processes; the main one writes."""
    records = run_long_on_main(context, lambda: read_records(flags.csv_file, labelled=False))
    run_on_all_ranks(lambda: make_out_dir(flags.out.parent))
    backbone, weights = run_on_all_ranks(lambda: load_backbone(flags.weights, flags.net, flags.seed, flags.input_frames))
    check_same_on_all_ranks({"--weights, SHA-256": weights["checkpoint_sha256"]})
    skipped: dict[int, str] = {}
    features = extract_features(backbone, records, read_clip_settings(flags), context, scale=weights["input"],
                                batch=flags.batch, num_workers=flags.num_workers, amp=flags.amp,
                                skipped=skipped if flags.skip_bad else None, label="videos")

    def write() -> None:
        if len(skipped) == len(records):
            raise InputError(f"{flags.csv_file}: none of its videos can be read; the first: {skipped[0]}")
        videos, rows = keep_readable(records, features, skipped)
        write_atomically(flags.out, partial(np.savez, videos=np.array([video.path for video in videos]), **rows))
        print(f"{flags.out}: {len(videos)} videos, {len(skipped)} skipped as unreadable; channels "
              + ", ".join(f"{level} {values.shape[1]}" for level, values in rows.items()))

    run_on_all_ranks(lambda: write() if context.is_main else None)


def check_export_flags(flags: argparse.Namespace) -> None:
    """Raises InputError for flags that cannot work."""
    read_clip_settings(flags)
    check_values({"--batch": (flags.batch, 1), "--workers": (flags.num_workers, 0), "--seed": (flags.seed, 0)})
    if flags.out.suffix != ".npz":
        raise InputError(f"--out {flags.out}: must end in .npz")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status, see `utils.errors`."""
    parser = OneLineParser(prog="export_features.py", description=__doc__)
    data = parser.add_argument_group("data")
    data.add_argument("--csv_file", required=True, metavar="CSV", help="videos: frame_dir,number_of_frames[,label]")
    data.add_argument("--out", type=Path, default="features.npz", metavar="NPZ", help="file to write")
    add_feature_flags(parser)
    add_launch_flags(parser)
    return run_command(parser, check_export_flags, export_features, arguments)


if __name__ == "__main__":
    sys.exit(main())
