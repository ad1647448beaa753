"""Checks that decode every frame of a video."""
from __future__ import annotations

from dataset.frames import decode_image, find_series, is_video_file, read_folder, split_packed_path
from dataset.packed import open_shard, read_packed
from dataset.video_file import iterate_frames
from utils.errors import InputError


class FrameFindings:
    """Findings of a video's frames: the details of all of a kind, and the size that every frame must have."""

    def __init__(self) -> None:
        self.details: dict[str, list[str]] = {}
        self.first_size = ""

    def add(self, kind: str, detail: str) -> None:
        """Adds a finding."""
        self.details.setdefault(kind, []).append(detail)

    def add_size(self, name: str, shape: tuple[int, ...]) -> None:
        """Adds a finding if a frame of `shape` [H, W, 3] differs in size from the first one."""
        size = f"{shape[1]}x{shape[0]}"
        self.first_size = self.first_size or size
        if size != self.first_size:
            self.add("image sizes", f"{name} is {size}, the first {self.first_size}")

    def summary(self) -> tuple[tuple[str, str], ...]:
        """Returns (kind, detail of the first finding and how many there are) of each kind."""
        return tuple((kind, details[0] if len(details) == 1 else f"{details[0]}; {len(details)} such frames")
                     for kind, details in self.details.items())


def decode_video(path: str) -> tuple[int | None, tuple[tuple[str, str], ...]]:
    """Returns (number of frames of a video file, None otherwise; `FrameFindings.summary`) after decoding every frame."""
    findings = FrameFindings()
    if is_video_file(path):
        num_frames = _decode_file(path, findings)
    else:
        num_frames = None
        try:
            _decode_images(path, findings)
        except InputError as error:
            findings.add("unreadable", str(error).removeprefix(f"{path}: "))
    return num_frames, findings.summary()


def _decode_file(path: str, findings: FrameFindings) -> int | None:
    """Returns the number of frames of a video file; None, with a finding, if decoding breaks off."""
    count = 0
    try:
        for count, (_, frame) in enumerate(iterate_frames(path), start=1):
            findings.add_size(f"frame {count}", frame.shape)
    except InputError as error:
        reason = str(error).removeprefix(f"{path}: ")
        findings.add("broken video", f"{reason} (after {count} frames)" if count else reason)
        return None
    return count


def _decode_images(path: str, findings: FrameFindings) -> None:
    """Decodes each image of a frame folder, up to a gap, or of a video in a shard. InputError if one cannot be read."""
    if packed := split_packed_path(path):
        count = len(open_shard(packed[0]).find(packed[1]))
        images = read_packed(*packed, range(count), count)
    else:
        count = find_series(path).usable
        images = read_folder(path, range(count), count)
    for where, data in images:
        name = where.removeprefix(path).lstrip("/: ")
        if not data:
            findings.add("empty file", f"{name} has 0 bytes")
            continue
        try:
            findings.add_size(name, decode_image(data, name, strict=True).shape)
        except InputError as error:
            findings.add("broken image", str(error))
