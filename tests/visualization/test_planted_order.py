"""A planted region: evidence for the order of time lies where motion cannot be reversed."""
from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from dataset.records import VideoRecord
from dataset.transforms import scale_clips
from eval.features.backbone import load_backbone
from eval.features.extract import ClipSettings
from models.levels import LevelFeatures
from utils.checkpoint import read_checkpoint
from visualization.main_temporal import main, order_evidence, returncam
from visualization.temporal_order import both_orders, load_head, read_clips

SIDE, FRAMES = 73, 16  # of which test clips show the central 64 px


class StoredMaps(nn.Module):
    """A backbone that returns maps computed before."""

    def __init__(self, maps: LevelFeatures) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, clips: torch.Tensor) -> LevelFeatures:
        return self.maps


def random_head(seed: int) -> nn.Linear:
    """An untrained head for 128 channels."""
    head = nn.Linear(128, 2, bias=False)
    nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(seed))
    return head


def draw_planted(folder: Path, seed: list[int], quadrant: int) -> None:
    """A disc that grows and suddenly shrinks in one quadrant; in the opposite one a disc that swings.

    Played backwards, the swing is another swing; the growth is not another growth.
    """
    rng = np.random.default_rng(seed)
    scene = rng.uniform(60, 180, (8, 8)).astype(np.float32)
    scene = cv2.resize(scene, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    (grow_x, grow_y), (swing_x, swing_y) = ((20 + 32 * (q % 2), 20 + 32 * (q // 2))
                                            for q in (quadrant, 3 - quadrant))
    period, first, second = rng.uniform(7, 9), rng.uniform(), rng.uniform()
    folder.mkdir(parents=True)
    for index in range(FRAMES):
        frame = scene.copy()
        radius = 3 + 10 * ((index / period + first) % 1)
        x = swing_x + 8 * np.sin(2 * np.pi * (index / period + second))
        for center_x, center_y, size in ((grow_x, grow_y, radius), (x, swing_y, 7)):
            center = int(center_x * 16), int(center_y * 16)  # in sixteenths of a pixel
            cv2.circle(frame, center, int(size * 16), 255, -1, cv2.LINE_AA, 4)
        cv2.imwrite(str(folder / f"image_{index + 1:05d}.jpg"), np.clip(frame, 0, 255).astype(np.uint8))


def concentration(evidence: torch.Tensor, quadrant: int) -> tuple[float, float]:
    """(how many times as large |mean evidence| is inside the quadrant as outside it, its mean inside).

    `evidence` [B, T, H, W] is averaged over clips and frames first.
    """
    mean = evidence.mean(dim=(0, 1))
    half = len(mean) // 2
    inside = torch.zeros_like(mean, dtype=torch.bool)
    row, column = divmod(quadrant, 2)
    inside[row * half:(row + 1) * half, column * half:(column + 1) * half] = True
    return float(mean[inside].abs().mean() / mean[~inside].abs().mean()), float(mean[inside].mean())


def test_evidence_lies_where_motion_cannot_be_reversed(tmp_path):
    quadrant = 1
    for role, num in (("train", 24), ("test", 8)):
        for i in range(num):
            draw_planted(tmp_path / f"{role}{i}", [num, i], quadrant)
        (tmp_path / f"{role}.csv").write_text("".join(f"{role}{i},{FRAMES}\n" for i in range(num)))
    # Random features of the low level, whose positions see little more than a quadrant, suffice.
    out = tmp_path / "run"
    assert main(["--weights", "random", "--net", "r3d10", "--gpu", "none", "--workers", "0",
                 "--level", "low", "--img_dim", "64", "--batch", "8", "--train_batch", "24",
                 "--train_csv", str(tmp_path / "train.csv"), "--test_csv", str(tmp_path / "test.csv"),
                 "--lr", "0.01", "--epoch", "60", "--out", str(out)]) == 0
    backbone, _ = load_backbone("random", "r3d10", seed=0)
    head = load_head(read_checkpoint(out / "checkpoints" / "epoch_0060.pt"), torch.device("cpu"))
    settings = ClipSettings(clips=1, clip_frames=FRAMES, img_dim=64)
    clips = torch.cat([read_clips(VideoRecord(str(tmp_path / f"test{i}"), FRAMES, 0), settings)
                       for i in range(8)])
    rows = scale_clips(both_orders(clips))
    with torch.no_grad():
        seen = StoredMaps(backbone.eval()(rows))

    ratio, inside = concentration(order_evidence(returncam(seen, head, rows, "low")), quadrant)
    chance = [concentration(order_evidence(returncam(seen, random_head(seed), rows, "low")), quadrant)[0]
              for seed in range(5)]
    assert ratio > 3.5 and inside > 0, ratio
    assert max(chance) < 3 and np.mean(chance) < 2.2, chance
