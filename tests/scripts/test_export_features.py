"""Features written for other code: one row per video of the csv, those that the evaluations extract."""
from __future__ import annotations

import numpy as np
import torch

from dataset.frames import write_frame
from dataset.records import read_records
from dataset.transforms import IMAGENET
from eval.features.backbone import load_backbone
from eval.features.extract import ClipSettings, extract_features
from scripts.export_features import main
from utils.distributed import DistContext

CLIPS = ["--img_dim", "32", "--seq", "8", "--clips", "2", "--workers", "0"]


def test_unlabelled_videos_get_the_features_of_the_evaluations(tmp_path, capsys):
    rng, lines = np.random.default_rng(0), []
    for name in "ab":
        (tmp_path / name).mkdir()
        lines.append(f"{name},10")
        for index in range(10):
            write_frame(tmp_path / name, index, rng.integers(0, 256, (36, 48, 3), np.uint8), 90)
    (tmp_path / "my.csv").write_text("\n".join([*lines, "absent,10"]) + "\n")
    command = ["--weights", "random", "--net", "r3d10", "--input", "residual", "--csv_file", str(tmp_path / "my.csv"),
               *CLIPS]
    assert main([*command, "--out", str(tmp_path / "features.txt")]) == 2
    assert main([*command, "--out", str(tmp_path / "out/features.npz")]) == 2  # one video cannot be read
    assert "absent" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "out/features.npz"), "--skip_bad"]) == 0
    stored = np.load(tmp_path / "out/features.npz")
    records = read_records(str(tmp_path / "my.csv"), labelled=False)[:2]
    assert stored["videos"].tolist() == [record.path for record in records]
    wanted = extract_features(load_backbone("random", "r3d10", 0)[0], records, ClipSettings(2, 8, 1, 32),
                              DistContext(0, 1, torch.device("cpu")), scale={**IMAGENET, "frames": "residual"})
    for level, rows in wanted.items():
        assert np.array_equal(stored[level], rows)
