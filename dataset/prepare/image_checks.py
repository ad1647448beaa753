"""Checks that decode every frame of a video."""
from __future__ import annotations

from collections.abc import Iterator, Mapping

from dataset.frames import decode_image, find_series, is_video_file, read_folder, split_packed_path
from dataset.packed import open_shard, read_packed
from dataset.prepare.checks import NOTES, VideoInspection
from dataset.prepare.worker_pool import Crash, run_jobs
from dataset.video_file import iterate_frames
from utils.errors import InputError
from utils.files import show_progress


def decode_videos(inspections: Mapping[str, VideoInspection], num_workers: int) -> dict[str, VideoInspection]:
    """Returns the inspections with the findings of decoding each readable video, and with a video file's frame count."""
    decoded = dict(inspections)
    readable = [path for path, video in inspections.items() if all(kind in NOTES for kind, _ in video.findings)]
    jobs = run_jobs(decode_video, readable, num_workers)
    for path, result in show_progress(jobs, len(readable), "decoding", "videos"):
        if isinstance(result, Crash):
            result = None, (("broken video", f"decoding it: {result.reason}"),)
        video, (num_frames, findings) = inspections[path], result
        decoded[path] = video._replace(findings=(*video.findings, *findings),
                                       num_frames=video.num_frames if num_frames is None else num_frames)
    return decoded


def decode_video(path: str) -> tuple[int | None, tuple[tuple[str, str], ...]]:
    """Returns (number of frames of a video file, None if it breaks off and for images; findings as (kind, detail)).

    The detail is that of the first finding of its kind, with their number.
    """
    details: dict[str, list[str]] = {}
    count, first_size, of_file = 0, "", is_video_file(path)
    try:
        for kind, detail, size in _decode_file(path) if of_file else _decode_images(path):
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


def _decode_file(path: str) -> Iterator[tuple[str, str, str]]:
    """Yields ("", name, WIDTHxHEIGHT) of each frame of a video file."""
    for number, (_, frame) in enumerate(iterate_frames(path), start=1):
        yield "", f"frame {number}", f"{frame.shape[1]}x{frame.shape[0]}"


def _decode_images(path: str) -> Iterator[tuple[str, str, str]]:
    """Yields ("", name, WIDTHxHEIGHT) of each image of a shard or, up to a gap, of a frame folder.

    (kind, detail, "") of an empty or broken one.
    """
    if packed := split_packed_path(path):
        count = len(open_shard(packed[0]).find(packed[1]))
        images = read_packed(*packed, range(count), count)
    else:
        count = find_series(path).usable
        images = read_folder(path, range(count), count)
    for where, data in images:
        name = where.removeprefix(path).lstrip("/: ")
        if not data:
            yield "empty file", f"{name} has 0 bytes", ""
            continue
        try:
            height, width, _ = decode_image(data, name, strict=True).shape
        except InputError as error:
            yield "broken image", str(error), ""
        else:
            yield "", name, f"{width}x{height}"
