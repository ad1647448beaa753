"""Pictures and films of a report, as data URIs: nothing is loaded from anywhere when the page is read.

Shapes: T frames of a clip; P videos side by side in a film.
"""
from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from dataset.frames import read_frames
from dataset.records import VideoRecord
from eval.features.extract import ClipSettings
from utils.errors import InputError
from visualization.cam import encode_video
from visualization.embedding import LEAST_VIDEOS, draw_embedding, project_levels
from visualization.report.measure import Measured

TILE_SIZE = (160, 120)  # width, height of a video, px
GAP_PX, GAP_COLOR = 4, 128
FILM_FPS = 8
JPEG_QUALITY = 85
PERPLEXITY = 30.0       # of t-SNE, where there are enough videos
PHOTOGRAPHS = ("retrieval",)  # written as PNG, and a fifth of the size as JPEG


class Film(NamedTuple):
    """A film and its still picture, as data URIs, and the number of videos in it."""

    film: str
    still: str
    num_videos: int


def data_uri(data: bytes, kind: str) -> str:
    """`data` as a URI of the MIME type `kind`."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture_uri(path: Path) -> str:
    """A PNG file as it is, one made of photographs as JPEG. InputError where it cannot be read."""
    data = read_bytes(path)
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if picture is None:
        raise InputError(f"{path}: not a readable picture")
    return data_uri(encode_jpeg(picture), "image/jpeg") if path.stem in PHOTOGRAPHS else data_uri(data, "image/png")


def film_uri(path: Path) -> str:
    """An MP4 file."""
    return data_uri(read_bytes(path), "video/mp4")


def read_bytes(path: Path) -> bytes:
    """The file's content. InputError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def encode_jpeg(picture: np.ndarray) -> bytes:
    """A BGR picture as JPEG."""
    encoded, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert encoded
    return data.tobytes()


def film_of(records: Sequence[VideoRecord], settings: ClipSettings) -> Film:
    """The test clips of P videos side by side, and as still picture their middle frames."""
    clips = [read_frames(record.path, settings.sampler()(record.num_frames)[0], record.num_frames, TILE_SIZE)
             for record in records]
    gap = np.full((*clips[0].shape[:2], GAP_PX, 3), GAP_COLOR, np.uint8)
    parts = [part for clip in clips for part in (gap, clip)][1:]
    pictures = np.concatenate(parts, axis=2)
    film = encode_video(pictures, FILM_FPS)
    still = encode_jpeg(np.ascontiguousarray(pictures[len(pictures) // 2, ..., ::-1]))
    return Film(data_uri(film, "video/mp4"), data_uri(still, "image/jpeg"), len(records))


class Row(NamedTuple):
    """A prototype of the contact sheet: its number, how many videos are nearest to it, and the nearest of these."""

    prototype: int
    used: int
    videos: list[VideoRecord]
    scores: list[float]
    film: Film


def contact_sheet(measured: Measured, num_prototypes: int, num_neighbors: int) -> list[Row]:
    """The most used prototypes, each with those of its videos that have the highest scores."""
    nearest = measured.nearest
    counts = np.bincount(nearest, minlength=measured.scores.shape[1])
    rows = []
    for prototype in np.argsort(-counts, kind="stable")[:num_prototypes]:
        own = np.flatnonzero(nearest == prototype)
        if not len(own):
            break
        scores = measured.scores[own, prototype]
        best = np.argsort(-scores, kind="stable")[:num_neighbors]
        videos = [measured.records[index] for index in own[best]]
        rows.append(Row(int(prototype), len(own), videos, scores[best].tolist(), film_of(videos, measured.settings)))
    return rows


def embedding_uri(features: dict[str, np.ndarray], labels: np.ndarray, names: Sequence[str], seed: int,
                  title: str) -> tuple[str, float]:
    """(t-SNE and PCA of each level as a PNG, t-SNE's perplexity).

    InputError for too few videos, and for features that are all alike.
    """
    if len(labels) < LEAST_VIDEOS:
        raise InputError(f"{len(labels)} labelled video(s); {LEAST_VIDEOS} are needed for a picture")
    perplexity = min(PERPLEXITY, (len(labels) - 1) / 3)
    points = project_levels(features, list(features), perplexity, seed)
    named, png = {label: names[label] for label in np.unique(labels).tolist()}, io.BytesIO()
    draw_embedding(points, labels, named, title).savefig(png)
    return data_uri(png.getvalue(), "image/png"), perplexity
