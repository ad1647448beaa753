"""Which videos a report looks at, and what their classes are called."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from dataset.records import VideoRecord, read_records, read_rows
from eval.confusion import class_names
from utils.errors import InputError
from visualization.report.html import attempt
from visualization.report.measure import pick_videos


class Videos(NamedTuple):
    """Videos of one csv that are looked at, and what is said of them."""

    csv_path: str
    records: list[VideoRecord]
    unlabelled: str  # why they have no labels, which all of the csv's videos must have; "" where they have
    note: str


def read_videos(csv_path: str, most: int) -> Videos:
    """At most `most` videos of a csv, evenly spread, as pretraining would accept it: labels are taken where all parse.

    InputError where it cannot be read or has no whole video.
    """
    records, unlabelled = read_records(csv_path, labelled=False), ""
    labelled, bad_rows = read_rows(csv_path, labelled=True)
    if bad_rows:
        unlabelled = f"{csv_path}:{bad_rows[0].line}: {bad_rows[0].reason}"
    else:
        records = [replace(record, label=row.label) for record, row in zip(records, labelled)]
    chosen = pick_videos(records, most)
    if not chosen:
        raise InputError(f"{csv_path}: none of its {len(records)} video(s) has a frame")
    which = "all" if len(chosen) == len(records) else f"{len(chosen)} evenly spread ones of the"
    return Videos(csv_path, chosen, unlabelled, f"{which} {len(records)} videos of {csv_path}")


def label_names(csv_path: str, labels: Iterable[int]) -> tuple[dict[int, str], str]:
    """(label -> its name in classes.txt beside the csv, ""), or (label -> number, why) where there is no use in that."""
    labels = set(map(int, labels))
    names, problem = attempt(class_names, None, csv_path, labels)
    if problem:
        return {label: str(label) for label in labels}, f" Classes have numbers, not names: {problem}."
    return names, ""
