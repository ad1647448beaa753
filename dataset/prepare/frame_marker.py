"""The marker of a frame folder that extraction has finished."""
from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from dataset.frames import FRAME_MARKER
from utils.errors import InputError


@dataclass(frozen=True, slots=True)
class FrameMarker:
    """What a finished folder holds: video, number of frames, settings, the source file's size and time, and a note.

    The time is for the reader: a plain copy of the source has another one, so nothing depends on it.
    """

    video: str
    frames: int
    settings: dict[str, Any]
    source_bytes: int
    source_mtime_ns: int
    note: str = ""


def read_marker(folder: str | os.PathLike[str]) -> FrameMarker | None:
    """Returns the folder's marker; None if there is no folder, or no marker in it. InputError if it is damaged."""
    path = os.path.join(folder, FRAME_MARKER)
    try:
        with open(path, encoding="utf-8") as file:
            marker = FrameMarker(**json.load(file))
        if not (isinstance(marker.frames, int) and marker.frames > 0 and isinstance(marker.settings, dict)):
            raise ValueError(marker)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot read: {error.strerror}") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: not a marker of extract_frames.py; remove its folder to extract it again") from error
    return marker
