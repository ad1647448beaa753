"""Test clips in another order: what a backbone that sees only the direction of time makes of them."""
from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import eval.features.csv_features as csv_features
from eval import compare, finetune, linear_probe, retrieval
from eval.features.backbone import IMAGENET
from models.levels import LevelFeatures
from tests.classifier_runs import arguments, card_of, checked


class Brightening(nn.Module):
    """A backbone that sees whether a clip gets brighter: its second half minus its first, and minus that."""

    channels = {"low": 2, "mid": 2, "high": 2}

    def forward(self, clips: torch.Tensor) -> LevelFeatures:
        half = clips.shape[2] // 2
        change = (clips[:, :, half:] - clips[:, :, :half]).mean(dim=(1, 2, 3, 4))
        maps = torch.stack([change, -change], dim=1)[:, :, None, None, None]
        return LevelFeatures(maps, maps, maps)


@pytest.fixture
def ramps(tmp_path, monkeypatch):
    """Videos that get brighter (class 0) or darker (1): a*.csv and b*.csv are training and test set in turn."""
    monkeypatch.setattr(csv_features, "load_backbone", lambda weights, net, seed, frames: (Brightening(), {
        "weights": weights, "net": net, "checkpoint_sha256": None, "pretrained_epochs": None, "input": IMAGENET}))
    for half in "ab":
        for label in (0, 1):
            for number in range(4):
                folder = tmp_path / f"{half}_{label}_{number}"
                folder.mkdir()
                for index, value in enumerate(np.linspace(40, 200, 16)[::1 - 2 * label]):
                    cv2.imwrite(str(folder / f"image_{index + 1:05d}.jpg"), np.full((48, 64, 3), value + number, np.uint8))
    rows = {half: "".join(f"{half}_{label}_{n},16,{label}\n" for label in (0, 1) for n in range(4)) for half in "ab"}
    for split, (train, test) in {"1": "ab", "2": "ba"}.items():
        (tmp_path / f"train_{split}.csv").write_text(rows[train])
        (tmp_path / f"test_{split}.csv").write_text(rows[test])
    return tmp_path


def run(command, root, name: str, *more: str) -> dict:
    assert command.main(arguments_of_features(root, name, *more)) == 0
    return json.loads((root / name / "result.json").read_text())


def arguments_of_features(root, name: str, *more: str) -> list[str]:
    return ["--weights", "random", "--net", "r3d10", "--train_csv", str(root / "train_{split}.csv"), "--test_csv",
            str(root / "test_{split}.csv"), "--splits", "1,2", "--img_dim", "32", "--seq", "8", "--clips", "2", "--workers",
            "0", "--levels", "high", "--feature_dir", str(root / "store"), "--out", str(root / name), *more]


def test_reversed_test_clips_are_taken_for_the_other_class(ramps, capsys, monkeypatch):
    """Each video is in training and test sets, where its features must not be confused."""
    extracted, extract = [], csv_features.extract_features
    monkeypatch.setattr(csv_features, "extract_features", lambda backbone, records, *more, **named: (
        extracted.append(len(records)) or extract(backbone, records, *more, **named)))
    cards = {order: run(retrieval, ramps, order, "--clip_order", order) for order in ("natural", "reversed", "frozen")}
    assert extracted == [8, 8] * 3, "training features are those stored for the natural order"
    assert [card["metrics"]["high"]["R@1"] for card in cards.values()] == [1, 0, 0.5]
    assert [card["settings"].get("clip_order") for card in cards.values()] == [None, "reversed", "frozen"]
    assert "order_seed" not in cards["reversed"]["settings"] and "| clip_order |" in capsys.readouterr().out
    assert len(list((ramps / "store").iterdir())) == 8
    again = run(retrieval, ramps, "again", "--clip_order", "reversed")
    assert again["per_split"]["2"]["features_reused"] and extracted[6:] == []
    probe = ["--lr", "0.1", "--wd", "1e-3", "--holdout", "0.3", "--epochs", "20"]
    assert run(linear_probe, ramps, "probe", *probe)["metrics"]["high"]["top1"] == 1
    assert run(linear_probe, ramps, "probe", *probe, "--clip_order", "reversed")["metrics"]["high"]["top1"] == 0
    capsys.readouterr()
    assert compare.main([str(ramps / name) for name in ("reversed", "natural", "frozen")]) == 0
    out = capsys.readouterr().out
    for row in ("| natural | 100.0 ± 0.0 |", "| reversed | 0.0 ± 0.0 (-100.0) |", "| frozen | 50.0 ± 0.0 (-50.0) |"):
        assert row in out
    assert "differs: " not in out
    run(retrieval, ramps, "others", "--clip_order", "reversed", "--centering", "each")
    capsys.readouterr()
    assert compare.main([str(ramps / name) for name in ("others", "natural")]) == 0
    assert "| reversed | 0.0 ± 0.0 |" in capsys.readouterr().out, "other settings: no difference"


def test_shuffled_features_are_stored_by_their_seed(ramps):
    for seed in "01":
        card = run(retrieval, ramps, seed, "--clip_order", "shuffled", "--seed", seed, "--splits", "1")
        assert not card["per_split"]["1"]["features_reused"] and card["settings"]["clip_order"] == "shuffled"
    stored = [np.load(path)["high"] for path in (ramps / "store").glob("test_*")]
    assert len(stored) == 2 and not np.array_equal(*stored)


def test_a_finetuned_model_is_tested_on_another_order(straight, colors, tmp_path, capsys):
    checkpoint = straight / "checkpoints/epoch_0003.pt"
    for order in ("natural", "frozen"):
        assert finetune.main(checked(colors, tmp_path / order, checkpoint, "--clip_order", order)) == 0
        assert card_of(tmp_path / order)["settings"].get("clip_order", "natural") == order
    first, natural, frozen = (np.load(folder / "probabilities_high.npz")["probabilities"] for folder in (
        straight, tmp_path / "natural", tmp_path / "frozen"))
    assert np.array_equal(natural, first)
    assert not np.array_equal(natural, frozen)
    assert finetune.main(arguments(colors, straight, "--resume", "--clip_order", "frozen")) == 2
    assert "holds the result of another test" in capsys.readouterr().err
