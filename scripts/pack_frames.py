"""Pack the frame folders of csv files into tar files ("shards"), for file systems that limit the number of files.

    python scripts/pack_frames.py data/ucf101/pretrain.csv data/ucf101/train_1.csv data/ucf101/test_1.csv packed

writes packed/shard_00000.tar, packed/shard_00001.tar, ... with --per_shard videos each, every video once, in the order of
the csv files; then packed/pretrain.csv and so on, of lines shard_00000.tar/VIDEO,number_of_frames[,label], where VIDEO is
the folder's path relative to the folder that contains all of them. Every program reads these csv files like those of frame
folders, with the same pixels: the images keep their bytes, and `tar xf` restores the folders (format: dataset/packed.py).

Can be interrupted at any time and resumed with the same command: a shard appears when it is complete, and is only written
again, which is reported, if the time of a folder, or the size or time of its first or last packed frame, has changed. The
largest number of frames that a csv file gives for a folder is packed; a missing frame is an error.

Exit status: 0; 2 wrong input, or a disk that cannot be written (one line); 130 interrupted.
"""
from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any folder

from dataset.prepare.packing import pack_csv_files
from dataset.prepare.worker_pool import available_cores
from utils.cli import OneLineParser, check_values
from utils.errors import InputError, exit_status_of


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OneLineParser(prog="pack_frames.py", description=__doc__)
    parser.add_argument("csv", nargs="+", metavar="CSV", help="frame folders: frame_dir,number_of_frames[,label]")
    parser.add_argument("out", metavar="OUT", help="folder for the shards and the new csv files; created if missing")
    parser.add_argument("--per_shard", type=int, default=1000, metavar="N", help="videos per shard")
    parser.add_argument("--workers", type=int, default=available_cores(), metavar="N", help="shards written in parallel")
    flags = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: clusters send it before they end a job

    def work() -> None:
        check_values(at_least={"--per_shard": (flags.per_shard, 1), "--workers": (flags.workers, 1)})
        try:
            pack_csv_files(flags.csv, flags.out, flags.per_shard, flags.workers)
        except OSError as error:
            raise InputError(f"{error.filename or flags.out}: {error.strerror}") from error

    return exit_status_of(work, parser.prog)


if __name__ == "__main__":
    sys.exit(main())
