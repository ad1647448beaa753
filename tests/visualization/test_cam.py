"""Maps as images: scales, colors, files, and videos whose panels play in step."""
from __future__ import annotations

import warnings
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

import visualization.cam as cam
from dataset.frames import read_frames
from utils.errors import InputError
from visualization.cam import overlay, remove_cams, require_h264, to_color_levels, write_cams

RNG = np.random.default_rng(0)


def decode(path: Path) -> tuple[str, str, np.ndarray]:
    with av.open(str(path)) as container:
        [stream] = container.streams
        context = stream.codec_context
        return context.name, context.pix_fmt, np.stack([frame.to_ndarray(format="rgb24")
                                                        for frame in container.decode(stream)])


def test_one_scale_for_all_or_one_for_each_frame():
    maps = RNG.normal(size=(2, 5, 8, 8)).astype(np.float32) * np.arange(1, 6)[:, None, None]
    for scale, groups in (("clip", [maps]), ("frame", list(maps.reshape(-1, 8, 8)))):
        levels = to_color_levels(maps, scale).reshape(len(groups), -1)
        for group, row in zip(groups, levels):
            expected = (group - group.min()) / (group.max() - group.min()) * 255
            assert np.abs(row - expected.ravel()).max() <= 0.51
            assert row.min() == 0 and row.max() == 255


@pytest.mark.parametrize("scale", ["clip", "frame"])
@pytest.mark.parametrize("value", [0.0, -3.5])
def test_a_constant_map_is_dark_blue_without_warnings(scale, value, tmp_path):
    frames, maps = np.full((2, 8, 32, 32, 3), 100, np.uint8), np.full((2, 8, 32, 32), value, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not to_color_levels(maps, scale).any()
        video = write_cams(tmp_path, "v", frames, maps, maps[0], scale=scale, folders=("a", "b"), fps=4)
    assert video.exists()
    [dark_blue] = np.unique(overlay(frames[0], to_color_levels(maps, scale)[0]).reshape(-1, 3), axis=0)
    assert dark_blue.tolist() == [50, 50, 114]  # half of (100, 100, 100) and of JET's (0, 0, 128)


def test_half_the_frame_and_half_the_color():
    frames = RNG.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    levels = RNG.integers(0, 256, (3, 16, 16), dtype=np.uint8)
    colors = cv2.applyColorMap(levels.reshape(-1, 1), cv2.COLORMAP_JET)[:, 0, ::-1].reshape(frames.shape)
    expected = (frames.astype(float) + colors) / 2
    assert np.abs(overlay(frames, levels) - expected).max() <= 0.5
    red = overlay(np.zeros((1, 1, 1, 3), np.uint8), np.array([[[255]]], np.uint8))[0, 0, 0]
    assert red[0] > 50 and red[1] == red[2] == 0


@pytest.mark.parametrize("side", [64, 33, 224])
def test_files_of_a_clip(side, tmp_path):
    frames = RNG.integers(0, 256, (2, 9, side, side, 3), dtype=np.uint8)
    maps = RNG.normal(size=(2, 9, side, side)).astype(np.float32)
    for folder in ("natural", "reversed"):  # left by an earlier clip of more frames
        (tmp_path / folder / "0000_some.name").mkdir(parents=True)
        (tmp_path / folder / "0000_some.name" / "image_00012.jpg").write_bytes(b"old")
    assert remove_cams(tmp_path) == 0  # videos
    video = write_cams(tmp_path, "0000_some.name", frames, maps, maps.mean(axis=0), scale="clip",
                      folders=("natural", "reversed"), fps=4)
    assert video == tmp_path / "0000_some.name.mp4"
    for row, folder in enumerate(("natural", "reversed")):
        names = sorted(path.name for path in (tmp_path / folder / "0000_some.name").iterdir())
        assert names == [f"image_{i:05d}.jpg" for i in range(1, 10)]
        # The project's own reader reads them; JPEG changes noise, but not its mean.
        images = read_frames(str(tmp_path / folder / "0000_some.name"), np.arange(9), 9)
        expected = overlay(frames[row], to_color_levels(maps, "clip")[row])
        assert images.shape == expected.shape
        assert np.abs(images.mean(axis=(1, 2)) - expected.mean(axis=(1, 2))).max() < 3
    name, pixels, shown = decode(video)
    assert (name, pixels, len(shown)) == ("h264", "yuv420p", 9)
    assert shown.shape[1] % 2 == shown.shape[2] % 2 == 0
    assert not list(tmp_path.rglob("*.partial"))


def test_panels_play_in_step_and_the_cursor_moves(tmp_path):
    """Frame i of the clip is grey 20 i, its evidence a band that moves down; played backwards, up."""
    num, side = 9, 64
    clip = np.stack([np.full((side, side, 3), 20 * i, np.uint8) for i in range(num)])
    hot = np.zeros((num, side, side), np.float32)
    for i in range(num):
        hot[i, 7 * i:7 * i + 7] = 1
    video = write_cams(tmp_path, "v", np.stack([clip, clip[::-1]]), np.stack([hot, hot[::-1]]), hot,
                      scale="clip", folders=("a", "b"), fps=4)
    _, _, shown = decode(video)
    panel = side * -(-cam.PANEL_PX // side)
    # Matplotlib leaves a margin of 5 % on either side of the frames.
    columns = shown.shape[2] * (0.07 + 0.91 * (0.05 + np.arange(num) / (num - 1)) / 1.1)
    curves = shown[:, -cam.CURVE_PX + 30:-60].mean(axis=(1, 3))  # of each column
    cursors = (np.median(curves, axis=0) - curves).argmax(axis=1)
    assert np.abs(cursors - columns).max() <= 1
    for i, image in enumerate(shown.astype(int)):
        panels = [image[cam.TITLE_PX:cam.TITLE_PX + panel, left:left + panel] for left in
                  (number * (panel + cam.GAP_PX) for number in range(4))]
        assert abs(panels[0].mean() - 20 * i) < 4
        for colored in panels[1:]:
            redness = (colored[..., 0] - colored[..., 2]).mean(axis=1)
            assert abs(redness.argmax() / panel * side - (7 * i + 3)) <= 4


def test_any_folder_and_video_name_can_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frames, maps = np.zeros((2, 3, 32, 32, 3), np.uint8), np.zeros((2, 3, 32, 32), np.float32)
    names = [cam.cam_name(12345, f"videos/{name}.mp4") for name in ("x" * 250, "é" * 127)]
    assert names == [f"12345_{'x' * 200}", f"12345_{'é' * 100}"]
    for name, folder in (*zip(names, (".", ".")), ("v", "2024-11-24T15:08"), ("v", "\udcff")):  # a protocol; not UTF-8
        path = write_cams(Path(folder), name, frames, maps, maps[0], scale="clip", folders=("a", "b"), fps=4)
        assert len(decode(path.absolute())[2]) == 3


def test_what_cannot_be_written_names_its_path(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    frames, maps = np.zeros((2, 8, 32, 32, 3), np.uint8), np.zeros((2, 8, 32, 32), np.float32)
    with pytest.raises(NotADirectoryError, match=f"{tmp_path}/file"):  # the command reports it in one line
        write_cams(tmp_path / "file", "v", frames, maps, maps[0], scale="clip", folders=("a", "b"), fps=4)
    require_h264()
    monkeypatch.setattr(cam, "CODEC", "libnone")
    with pytest.raises(InputError, match="libnone"):
        require_h264()
