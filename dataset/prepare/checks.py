"""Faults of csv files and of the videos that they name, found without decoding."""
from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from dataset.frames import find_series, is_video_file, names_video_file, split_packed_path
from dataset.packed import open_shard
from dataset.records import read_rows
from dataset.video_file import promised_frames
from utils.errors import InputError

NUM_THREADS = 32  # what is waited for is the file system
_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of finding: what to do about it, what --fix does ("drop", "count" or ""), whether it is only a note."""

    advice: str
    fix: str = ""
    note: bool = False


KINDS = {
    "row": Kind("mend the line", "drop"),
    "unreadable": Kind("look at the path and its permissions, or extract the video anew", "drop"),
    "no frames": Kind("remove its folder and start extract_frames.py again", "drop"),
    "gap": Kind("remove its folder and start extract_frames.py again; --fix keeps the frames before the gap", "count"),
    "count": Kind("write the csv anew with make_csv.py, or let --fix correct it", "count"),
    "short": Kind("pretraining leaves such videos out by itself", "drop"),
    "empty file": Kind("remove its folder and start extract_frames.py again, or fetch the video file anew", "drop"),
    "broken picture": Kind("remove its folder and start extract_frames.py again", "drop"),
    "picture sizes": Kind("remove its folder and start extract_frames.py again, with --size", "drop"),
    "broken video": Kind("fetch the video file anew", "drop"),
    "duplicate": Kind("keep one of the lines", "drop"),
    "overlap": Kind("a test video must not be trained on: write the csv files anew from the official lists"),
    "group": Kind("clips of one recording on both sides: split by group"),
    "label": Kind("labels are line numbers of classes.txt, from 0", "drop"),
    "label gap": Kind("look for the missing classes' videos, or number the classes anew"),
    "numbered from 0": Kind("nothing: reading finds it out", note=True),
    "header": Kind("--decode tells the true count", note=True),
    "class not tested": Kind("nothing, if it is meant so", note=True),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault: its kind, the csv, its line (0: the whole file), the video's path, and what is wrong."""

    kind: str
    csv: str
    line: int
    path: str
    detail: str


@dataclass(frozen=True, slots=True)
class Line:
    """A csv line that can be read; ``label`` is None in a csv without labels."""

    number: int
    path: str
    num_frames: int | None
    label: int | None


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at a video told.

    ``identity`` is equal for two paths to one folder or file; ``num_frames`` can be read from the first on (None:
    only decoding tells); ``faults`` are (kind, detail).
    """

    identity: tuple
    num_frames: int | None
    faults: tuple[tuple[str, str], ...] = ()


def read_lines(csv_path: str) -> tuple[list[Line], list[Finding]]:
    """Returns (the lines that can be read, a finding for each other one). Labelled if any line has a label."""
    records, bad_rows = read_rows(csv_path)
    return ([Line(record.line, record.path, record.num_frames, record.label) for record in records],
            [Finding("row", csv_path, row.line, row.path, row.reason) for row in bad_rows])


def look_at_all(paths: Sequence[str]) -> Iterator[tuple[str, Look]]:
    """Yields (path, look) of each, in order, by threads."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for start in range(0, len(paths), _CHUNK):  # a job for each path at once would take memory
            chunk = paths[start : start + _CHUNK]
            yield from zip(chunk, pool.map(look_at, chunk))


def look_at(path: str) -> Look:
    """Returns what the names in a frame folder, the size and header of a video file, or a shard's index tell."""
    packed = split_packed_path(path)
    try:
        if packed:
            return Look(packed, len(open_shard(packed[0]).find(packed[1])))
        try:
            status = os.stat(path)
        except OSError as error:
            return Look((path,), None, (("unreadable", error.strerror),))
        identity = status.st_dev, status.st_ino
        if is_video_file(path):
            return _look_at_file(path, identity, status.st_size)
        series = find_series(path)
    except InputError as error:
        reason = str(error).removeprefix(f"{path}: ")
        kind = "unreadable" if packed or "cannot read" in reason else "no frames"
        return Look(packed or identity, None, ((kind, reason),))
    faults = []
    if series.missing:
        faults.append(("gap", f"{series.missing} missing, {series.naming.file_name(series.usable)} first"))
    if series.naming.first == 0:
        faults.append(("numbered from 0", f"the first frame is {series.naming.file_name(0)}"))
    return Look(identity, series.usable, tuple(faults))


def _look_at_file(path: str, identity: tuple, size: int) -> Look:
    if size == 0:
        return Look(identity, None, (("empty file", "0 bytes"),))
    if not os.access(path, os.R_OK):
        return Look(identity, None, (("unreadable", "no permission to read it"),))
    try:
        promised = promised_frames(path)
    except InputError as error:
        return Look(identity, None, (("broken video", str(error).removeprefix(f"{path}: ")),))
    return Look(identity, None, (("header", f"{promised}"),) if promised else ())


def compare(csv_path: str, lines: Sequence[Line], looks: dict[str, Look], needed: int | None) -> list[Finding]:
    """Returns the findings of a csv's lines against the disk; ``needed`` frames are too few (None: any will do)."""
    findings = []
    seen: dict[tuple, int] = {}
    for line in lines:
        look = looks[line.path]

        def add(kind: str, detail: str) -> None:
            findings.append(Finding(kind, csv_path, line.number, line.path, detail))

        known = None not in (line.num_frames, look.num_frames)
        too_many = known and line.num_frames > look.num_frames
        for kind, detail in look.faults:
            if kind == "gap":
                if too_many:  # else no frame behind the gap is asked for
                    add(kind, f"{detail}; {look.num_frames} can be read, the csv has {line.num_frames}")
            elif kind == "header":
                if look.num_frames is None and line.num_frames not in (None, int(detail)):
                    add(kind, f"the csv has {line.num_frames} frames, the file's header promises about {detail}")
            else:
                add(kind, detail)
        has_gap = any(kind == "gap" for kind, _ in look.faults)
        if known and line.num_frames != look.num_frames and not (too_many and has_gap):
            add("count", f"the csv has {line.num_frames} frames, {look.num_frames} can be read")
        frames = line.num_frames if look.num_frames is None else look.num_frames
        if needed is not None and frames is not None and frames <= needed:
            add("short", f"{frames} frames, more than {needed} are needed")
        if look.identity in seen:
            add("duplicate", f"the same video as line {seen[look.identity]}")
        seen.setdefault(look.identity, line.number)
    return findings


def check_labels(csv_path: str, lines: Sequence[Line], num_classes: int | None, is_test: bool) -> list[Finding]:
    """Returns labels outside of 0 to ``num_classes`` - 1, and classes without a video (a note for a test set).

    Without ``num_classes`` the largest label tells it.
    """
    labels = {line.label for line in lines if line.label is not None}
    if not labels:
        return []
    size = max(labels) + 1 if num_classes is None else num_classes
    findings = [Finding("label", csv_path, line.number, line.path,
                        f"label {line.label}, but {size} classes: 0 to {size - 1}")
                for line in lines if line.label is not None and line.label >= size]
    kind = "class not tested" if is_test else "label gap"
    present = sorted(labels)
    previous = -1
    for label in [*(label for label in present if label < size), size]:
        if label > previous + 1:
            last = "" if label == previous + 2 else f" to {label - 1}"
            findings.append(Finding(kind, csv_path, 0, "", f"no video with label {previous + 1}{last}"))
        previous = label
    return findings


def check_sides(
    training: dict[str, list[Line]], testing: dict[str, list[Line]], looks: dict[str, Look],
    group_of: Callable[[str], str | None],
) -> list[Finding]:
    """Returns test videos that are training videos too, and groups that have videos on both sides."""
    trained: dict[tuple, str] = {}
    groups: dict[str, str] = {}
    for csv_path, lines in training.items():
        for line in lines:
            trained.setdefault(looks[line.path].identity, f"{csv_path}:{line.number}")
            group = group_of(own_name(line.path))
            if group is not None:
                groups.setdefault(group, f"{csv_path}:{line.number}")
    findings = []
    for csv_path, lines in testing.items():
        shared: dict[str, list[Line]] = defaultdict(list)
        for line in lines:
            if (where := trained.get(looks[line.path].identity)) is not None:
                findings.append(Finding("overlap", csv_path, line.number, line.path, f"is trained on: {where}"))
            group = group_of(own_name(line.path))
            if group in groups:
                shared[group].append(line)
        findings += [Finding("group", csv_path, members[0].number, members[0].path,
                             f"{group}: {len(members)} test video(s), trained on: {groups[group]}")
                     for group, members in shared.items()]
    return findings


def own_name(path: str) -> str:
    """Returns a video's own name, the same for its frame folder, its file and its place in a shard."""
    name = os.path.basename(path)
    return os.path.splitext(name)[0] if names_video_file(name) else name


def fix_lines(
    lines: Sequence[Line], looks: dict[str, Look], findings: Sequence[Finding]
) -> tuple[list[Line], dict[str, int]]:
    """Returns (the usable lines with the counts on disk, how many lines were dropped or corrected for what).

    ``findings`` are those of this csv. A line is dropped for the first of its findings that asks for it.
    """
    by_line: dict[int, list[Finding]] = defaultdict(list)
    done: dict[str, int] = defaultdict(int)
    for finding in findings:
        by_line[finding.line].append(finding)
        done["dropped: row"] += finding.kind == "row"
    kept = []
    for line in lines:
        fatal = [f.kind for f in by_line[line.number] if KINDS[f.kind].fix == "drop"]
        if fatal:
            done[f"dropped: {fatal[0]}"] += 1
            continue
        frames = looks[line.path].num_frames
        if frames is not None and frames != line.num_frames:
            done["count filled in" if line.num_frames is None else "count corrected"] += 1
            line = replace(line, num_frames=frames)
        kept.append(line)
    return kept, {what: number for what, number in done.items() if number}
