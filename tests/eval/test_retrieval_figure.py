"""The figure of retrieval: frames and their colors, and that what cannot be drawn costs no result."""
from __future__ import annotations

import cv2
import numpy as np

import eval.retrieval as retrieval
from dataset.records import VideoRecord

BLUE = (20, 20, 230)  # class 2 of color_set


def test_figure_frames_hits_green_and_misses_red(color_set, tmp_path):
    videos = [VideoRecord(str(color_set / f"train_{label}_0"), 1, label) for label in range(3)]
    retrieval.draw_neighbors(tmp_path / "p.png", videos[:2], [[videos[0], videos[2]], [videos[2], videos[1]]])
    figure = cv2.imread(str(tmp_path / "p.png"))[..., ::-1]
    height = retrieval.TILE_SIZE[1] + 2 * retrieval.BORDER_PX
    width = retrieval.TILE_SIZE[0] + 2 * retrieval.BORDER_PX
    gap = figure.shape[1] - 3 * width
    assert figure.shape[0] == 2 * height and gap > 0
    corners = [[tuple(figure[row * height, column].tolist()) for column in (0, width + gap, 2 * width + gap)]
               for row in range(2)]
    grey, green, red = retrieval.GREY, retrieval.GREEN, retrieval.RED
    assert corners == [[grey, green, red], [grey, red, green]]
    shown = figure[height + height // 2, width + gap + width // 2].astype(int)
    assert np.abs(shown - np.array(BLUE)).max() < 40, "the second query's first neighbor is of class 2"


def test_a_frame_that_cannot_be_drawn_does_not_take_the_result_along(color_set, tmp_path, capsys):
    """A video whose middle frame is missing, which is in no clip; then one that is gone, its features stored."""
    long, frame = tmp_path / "long", (color_set / "test_0_0" / "image_00001.jpg").read_bytes()
    long.mkdir()
    for number in range(1, 41):
        if number != 20:
            (long / f"image_{number:05d}.jpg").write_bytes(frame)
    (tmp_path / "test.csv").write_text(f"{long},40,0\n")
    flags = ["--weights", "random", "--net", "r3d10", "--train_csv", str(color_set / "train.csv"), "--test_csv",
             str(tmp_path / "test.csv"), "--img_dim", "32", "--seq", "8", "--clips", "2", "--workers", "0", "--levels",
             "low", "--gpu", "none", "--feature_dir", str(tmp_path / "features"), "--out", str(tmp_path / "out")]
    card, figure = tmp_path / "out" / "result.json", tmp_path / "out" / "retrieval.png"
    assert retrieval.main(flags) == 0 and figure.exists()
    card.unlink(), figure.unlink(), long.rename(tmp_path / "gone")
    capsys.readouterr()
    assert retrieval.main(flags) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "the figure cannot be drawn" in line and str(long) in line and card.exists() and not figure.exists()
    assert retrieval.main([*flags, "--skip_bad"]) == 0
    assert cv2.imread(str(figure))[retrieval.BORDER_PX + 9, retrieval.BORDER_PX + 9].tolist() == [255, 255, 255]
