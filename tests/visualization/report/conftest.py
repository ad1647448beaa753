"""A run directory with everything that a report shows, and its report."""
from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models.multilevel import MultiLevelModel
from tests.visualization.report.planted_run import write_run
from utils.checkpoint import FORMAT, write_checkpoint
from visualization import main_temporal
from visualization.report.__main__ import main

SMALL = ["--workers", "0", "--gpu", "none", "--batch", "4"]


def write_model(run: Path, epochs: int, seed: int) -> None:
    """A checkpoint of random weights as train.py names it."""
    torch.manual_seed(seed)
    model = MultiLevelModel("r3d10", 16, 5)
    (run / "checkpoints").mkdir(exist_ok=True)
    write_checkpoint({"format": FORMAT, "kind": "model", "net": "r3d10", "embedding_dim": 16, "num_prototypes": 5,
                      "model": model.state_dict()}, run / "checkpoints" / f"epoch_{epochs:04d}.pt")


@pytest.fixture(scope="session")
def labelled_csv(videos_csv) -> tuple[Path, Path]:
    """(four training videos, four test videos) of two classes each; the same videos as in `videos_csv`."""
    paths = videos_csv.parent / "train.csv", videos_csv.parent / "test.csv"
    for path, numbers in zip(paths, (range(4), range(4, 8))):
        path.write_text("".join(f"v{number},40,{number % 2}\n" for number in numbers))
    (videos_csv.parent / "classes.txt").write_text("still & calm\nmoving\n")
    return paths


@pytest.fixture(scope="session")
def full_run(videos_csv, tmp_path_factory) -> Path:
    """A run directory with two checkpoints, a retrieval card, a skipped step and a hostile name."""
    run = write_run(tmp_path_factory.mktemp("runs") / "run", flags={
        "csv_file": str(videos_csv), "num_prototypes": 5}, changes={
        "prototype": 1.2, "prototypes_in_use": 3.0, "assignment_entropy": 1.0,
        "monitor_R@1": lambda epoch: 0.1 + epoch / 20}, events=[
        {"kind": "bad_video", "path": "a.mp4", "reason": "<script>fetch('http://example.com')</script>"}])
    for epochs, seed in ((4, 1), (12, 2)):
        write_model(run, epochs, seed)
    card = {"task": "retrieval", "metrics": {"high": {"R@1": 0.415}}, "weights": "<b>w</b>", "settings": {},
            "csv_files": {}}
    (run / "retrieval").mkdir()
    (run / "retrieval" / "result.json").write_text(json.dumps(card))
    tiles = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    assert cv2.imwrite(str(run / "retrieval" / "retrieval.png"), tiles)
    (run / "broken").mkdir()
    (run / "broken" / "result.json").write_text("{")
    return run


@pytest.fixture(scope="session")
def full_report(full_run, labelled_csv) -> Path:
    """The report of `full_run`, with videos of temporal-order maps."""
    train, test = labelled_csv
    order = ["--weights", str(full_run / "checkpoints/epoch_0012.pt"), "--test_csv", str(test), *SMALL, "--out",
             str(full_run / "temporal_order")]
    assert main_temporal.main([*order, "--train_csv", str(train), "--img_dim", "32", "--epoch", "2"]) == 0
    assert main_temporal.main([*order, "--mode", "visualize"]) == 0
    assert main([str(full_run), "--csv_file", str(train), *SMALL, "--max_cam_videos", "1"]) == 0
    return full_run / "report.html"
