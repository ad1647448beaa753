"""Checks of csv files and of their videos: by what is on disk, and by decoding every frame."""
from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from dataset.frames import (count_images, decode_image, find_series, locate_video, stored_images, video_identity,
                            video_name)
from dataset.prepare.worker_pool import Crash, run_jobs
from dataset.records import VideoRecord
from dataset.video_file import find_cut, iterate_frames, promised_frames
from utils.errors import InputError
from utils.files import NUM_THREADS, read_lines, show_progress

_BATCH = 32  # videos of one job: one each takes longer to hand out than to do
_EXTRACT = "remove its folder and run extract_frames.py again"

KINDS = {  # kind of finding -> what to do about it
    "row": "correct the line",
    "unreadable": "check the path and its permissions, or extract the video again",
    "no frames": _EXTRACT,
    "gap": f"{_EXTRACT}; --fix keeps the frames before the gap",
    "count": "write the csv again with make_csv.py, or let --fix correct it",
    "short": "none needed: pretraining leaves such videos out",
    "empty file": f"{_EXTRACT}, or download the video file again",
    "broken image": _EXTRACT,
    "image sizes": f"{_EXTRACT}, with --size",
    "broken video": "download the video file again",
    "cut video": "download the video file again; --decode finds what can be read",
    "duplicate": "keep one of the lines",
    "overlap": "test videos must not be trained on: write the csv files again from the official lists",
    "group": "clips of one recording on both sides: split by group",
    "label": "labels are line numbers of classes.txt, from 0",
    "label gap": "find the videos of the missing classes, or renumber the classes",
    "numbered from 0": "none needed: reading detects it",
    "header": "--decode finds the true count",
    "class not tested": "none needed if intended",
}
NOTES = {"numbered from 0", "header", "class not tested"}
KEPT_BY_FIX = NOTES | {"gap", "count", "overlap", "group", "label gap"}  # --fix drops the line of any other finding


class DataFinding(NamedTuple):
    """One finding: its kind, csv file, line in it (0: the whole file), path of the video, and what is wrong."""

    kind: str
    csv: str
    line: int
    path: str
    detail: str


class VideoInspection(NamedTuple):
    """State of a video on disk.

    `identity` is equal for all paths to one folder or file. `num_frames` can be read up to a `gap` ("": none), None if
    only decoding finds out; the header of a video file promises about `promised`. `findings` are (kind, detail).
    """

    identity: str
    num_frames: int | None = None
    promised: int | None = None
    gap: str = ""
    findings: tuple[tuple[str, str], ...] = ()


def inspect_videos(paths: Sequence[str]) -> dict[str, VideoInspection]:
    """Returns path -> inspection, in order, inspected by threads."""
    batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        inspections = itertools.chain.from_iterable(pool.map(lambda batch: [*map(inspect_video, batch)], batches))
        return dict(show_progress(zip(paths, inspections), len(paths), "inspecting", "videos"))


def inspect_video(path: str) -> VideoInspection:
    """Returns the state of a video by the file names in its folder, its file's size and header, or its shard's index."""
    stored, identity = locate_video(path), video_identity(path)
    try:
        if stored.kind == "packed":
            return VideoInspection(identity, count_images(path))
        status = os.stat(stored.path)
        if stored.kind == "file":
            if status.st_size == 0:
                return VideoInspection(identity, findings=(("empty file", "0 bytes"),))
            with open(path, "rb"):  # a file without permission is not broken
                cut = find_cut(path)
                return VideoInspection(identity, None, promised_frames(path), "", (("cut video", cut),) if cut else ())
        series = find_series(path)
    except OSError as error:
        return VideoInspection(identity, findings=(("unreadable", error.strerror),))
    except InputError as error:
        reason = str(error).removeprefix(f"{path}: ")
        kind = "unreadable" if stored.kind == "packed" or "cannot read" in reason else "no frames"
        return VideoInspection(identity, findings=(("broken video" if stored.kind == "file" else kind, reason),))
    gap = f"{series.missing} missing, {series.naming.file_name(series.usable)} first" if series.missing else ""
    from_0 = (("numbered from 0", f"the first frame is {series.naming.file_name(0)}"),) if series.naming.first == 0 else ()
    return VideoInspection(identity, series.usable, None, gap, from_0)


def decode_videos(inspections: Mapping[str, VideoInspection], num_workers: int) -> dict[str, VideoInspection]:
    """Returns the inspections with the findings of decoding each readable video, and with a video file's frame count."""
    decoded = dict(inspections)
    readable = [path for path, video in inspections.items() if {*dict(video.findings)} <= NOTES | {"cut video"}]
    jobs = run_jobs(decode_video, readable, num_workers)
    for path, result in show_progress(jobs, len(readable), "decoding", "videos"):
        if isinstance(result, Crash):
            result = None, (("broken video", f"decoding it: {result.reason}"),)
        video, (num_frames, findings) = inspections[path], result
        known = [finding for finding in video.findings if finding[0] != "cut video"]  # decoding finds out more
        decoded[path] = video._replace(findings=(*known, *findings),
                                       num_frames=video.num_frames if num_frames is None else num_frames)
    return decoded


def decode_video(path: str) -> tuple[int | None, tuple[tuple[str, str], ...]]:
    """Returns (frames of a file, None if it breaks off and for images; (kind, first detail and number) of findings)."""
    details: dict[str, list[str]] = {}
    count, first_size, of_file = 0, "", locate_video(path).kind == "file"
    try:
        for kind, detail, size in _decode_frames(path):
            count += 1
            first_size = first_size or size
            if size not in ("", first_size):
                kind, detail = "image sizes", f"{detail} is {size}, the first {first_size}"
            if kind:
                details.setdefault(kind, []).append(detail)
    except InputError as error:
        reason = str(error).removeprefix(f"{path}: ") + (f" (after {count} frames)" if of_file and count else "")
        details.setdefault("broken video" if of_file else "unreadable", []).append(reason)
        of_file = False
    return count if of_file else None, tuple(
        (kind, texts[0] if len(texts) == 1 else f"{texts[0]}; {len(texts)} such frames") for kind, texts in details.items())


def _decode_frames(path: str) -> Iterator[tuple[str, str, str]]:
    """Yields ("", name, WIDTHxHEIGHT) of each frame, of a frame folder up to a gap; (kind, detail, "") of a bad image."""
    stored = locate_video(path)
    if stored.kind == "file":
        for number, (_, frame) in enumerate(iterate_frames(path), start=1):
            yield "", f"frame {number}", f"{frame.shape[1]}x{frame.shape[0]}"
        return
    count = count_images(path)
    for where, data in stored_images(path, range(count), count):
        name = where.removeprefix(path if stored.kind == "packed" else stored.path).lstrip("/: ")
        if not data:
            yield "empty file", f"{name} has 0 bytes", ""
            continue
        try:
            height, width, _ = decode_image(data, name, strict=True).shape
        except InputError as error:
            yield "broken image", str(error), ""
        else:
            yield "", name, f"{width}x{height}"


def count_classes(given: Path | None, csv_path: str) -> int | None:
    """Returns the number of classes in classes.txt; None where none is given and none is beside the csv."""
    path = given or Path(csv_path).with_name("classes.txt")
    if not given and not path.exists():
        return None
    count = len(read_lines(path))
    if not count:
        raise InputError(f"{path}: lists no class")
    return count


def tabulate_rows(records: Mapping[str, Sequence[VideoRecord]], test: Sequence[str],
                  inspections: Mapping[str, VideoInspection], num_classes: Mapping[str, int | None],
                  group_of: Callable[[str], str | None]) -> pd.DataFrame:
    """Returns a table of what the csv and the disk say of each csv line (NA: not known); `test`: csv files of that side."""
    lines = [(csv, record.line, record.path, record.num_frames, record.label)
             for csv, of_csv in records.items() for record in of_csv]
    videos = pd.DataFrame(inspections.values(), list(inspections), VideoInspection._fields)
    rows = pd.DataFrame(lines, columns=["csv", "line", "path", "in_csv", "label"]).join(videos, on="path")
    rows = rows.astype({column: "Int64" for column in ("in_csv", "label", "num_frames", "promised")})
    num_labels = rows.groupby("csv").label.transform("max") + 1  # NA without labels
    rows["num_classes"] = rows.csv.map(num_classes).astype("Int64").fillna(num_labels).where(num_labels.notna())
    rows["group"] = [group_of(video_name(path)) for path in rows.path]
    rows["is_test"] = rows.csv.isin(test)
    return rows


def check_rows(rows: pd.DataFrame, needed: int | None) -> list[DataFinding]:
    """Returns the findings of single rows; with `needed` also of videos that have no more frames than that."""
    places = rows.csv + ":" + rows.line.astype(str)
    training = rows.assign(place=places)[~rows.is_test]

    def first_training_place(column: str) -> pd.Series:
        return rows[column].map(training.dropna(subset=column).drop_duplicates(column).set_index(column).place)

    rows = rows.assign(
        frames=rows.num_frames.fillna(rows.in_csv), needed=-1 if needed is None else needed, last=rows.num_classes - 1,
        first_line=rows.groupby(["csv", "identity"]).line.transform("first"),
        members=rows.groupby(["csv", "group"]).line.transform("size"),
        training_identity=first_training_place("identity"), training_group=first_training_place("group"))
    cut = (rows.in_csv > rows.num_frames) & (rows.gap != "")  # otherwise no frame behind the gap is read
    checks = (
        ("gap", cut, "{gap}; {num_frames} can be read, the csv has {in_csv}"),
        ("count", (rows.in_csv != rows.num_frames) & ~cut, "the csv has {in_csv} frames, {num_frames} can be read"),
        ("short", rows.frames <= rows.needed, "{frames} frames, more than {needed} are needed"),
        ("duplicate", rows.line != rows.first_line, "the same video as line {first_line}"),
        ("label", rows.label >= rows.num_classes, "label {label}, but {num_classes} classes: 0 to {last}"),
        ("overlap", rows.is_test & rows.training_identity.notna(), "is trained on: {training_identity}"),
        ("group", rows.is_test & rows.training_group.notna() & ~rows.duplicated(["csv", "group"]),
         "{group}: {members:.0f} test video(s), trained on: {training_group}"),
        ("header", rows.num_frames.isna() & (rows.in_csv != rows.promised),
         "the csv has {in_csv} frames, the file's header promises about {promised}"),
    )
    on_disk = [DataFinding(kind, row.csv, row.line, row.path, detail)
               for row in rows[rows.findings.map(bool).astype(bool)].itertuples() for kind, detail in row.findings]
    return on_disk + [DataFinding(kind, row["csv"], row["line"], row["path"], detail.format_map(row))
                      for kind, found, detail in checks for row in rows[found.fillna(False)].to_dict("records")]


def check_classes(rows: pd.DataFrame) -> list[DataFinding]:
    """Returns findings of classes without a video (a note for a test set)."""
    findings = []
    for (csv, size, is_test), of_csv in rows.groupby(["csv", "num_classes", "is_test"], sort=False):
        for before, after in itertools.pairwise([-1, *sorted(of_csv.label[of_csv.label < size].unique()), size]):
            if after > before + 1:
                last = f" to {after - 1}" if after > before + 2 else ""
                findings.append(DataFinding("class not tested" if is_test else "label gap", csv, 0, "",
                                            f"no video with label {before + 1}{last}"))
    return findings


def fix_rows(records: Sequence[VideoRecord], inspections: Mapping[str, VideoInspection],
             findings: Sequence[DataFinding]) -> tuple[list[VideoRecord], Counter[str]]:
    """Returns (usable rows of a csv with the frame counts on disk; how many were dropped or corrected, by reason)."""
    dropped: dict[int, str] = {}
    for finding in findings:
        if finding.kind not in KEPT_BY_FIX:
            dropped.setdefault(finding.line, f"dropped: {finding.kind}")
    kept, done = [], Counter(dropped.values())
    for record in records:
        if record.line not in dropped:
            num_frames = inspections[record.path].num_frames
            if num_frames is not None and num_frames != record.num_frames:
                done["count filled in" if record.num_frames is None else "count corrected"] += 1
                record = replace(record, num_frames=num_frames)
            kept.append(record)
    return kept, done
