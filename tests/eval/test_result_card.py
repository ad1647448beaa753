"""The result card: one split or several, and the printed table."""
from __future__ import annotations

import errno
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch

from eval import finetune, linear_probe
from eval.result_card import SplitResult, build_card, markdown_table, write_card
from eval.splits import EvalSplit
from tests import classifier_runs

CPU = torch.device("cpu")
WEIGHTS = {"weights": "w.pt", "net": "r3d18", "checkpoint_sha256": "0", "pretrained_epochs": 3}


@pytest.fixture
def splits(tmp_path) -> list[EvalSplit]:
    for name in "123":
        for role in ("train", "test"):
            (tmp_path / f"{role}{name}.csv").write_text(f"{role} {name}")
    return [EvalSplit(name, str(tmp_path / f"train{name}.csv"), str(tmp_path / f"test{name}.csv")) for name in "123"]


def card_of(splits, *metrics) -> dict:
    results = [SplitResult(split, of_split, {"num_test_videos": 10 + number, "skipped_test_videos": []})
                for number, (split, of_split) in enumerate(zip(splits, metrics))]
    return build_card("retrieval", results, {"clips": 10}, WEIGHTS, CPU, 1.5)


def test_one_pair_of_csv_files_has_no_splits(splits, tmp_path):
    card = card_of([EvalSplit(None, splits[0].train_csv, splits[0].test_csv)], {"high": {"R@1": 0.25}})
    assert card["metrics"] == {"high": {"R@1": 0.25}} and card["num_test_videos"] == 10
    assert card["csv_files"].keys() == {"train", "test"} and card["settings"] == {"clips": 10}
    assert not {"metrics_std", "per_split", "std"} & card.keys()
    assert "| w.pt | r3d18 | high | 10 | 10 | 25.0 |" in markdown_table(card, ("clips",))
    write_card(tmp_path, card, ("clips",))
    assert json.loads((tmp_path / "result.json").read_text()) == card


def test_several_splits_give_mean_and_sample_standard_deviation(splits):
    values = [0.409, 0.415, 0.421]
    card = card_of(splits, *({"high": {"R@1": value, **({"R@50": 1.0} if value > 0.41 else {})}, "low": {"R@1": 0.1}}
                             for value in values))
    assert card["metrics"]["high"] == pytest.approx({"R@1": 0.415}), "a metric that a split lacks has no mean"
    assert card["metrics_std"]["high"]["R@1"] == pytest.approx(np.std(values, ddof=1))
    assert card["metrics_std"]["low"] == {"R@1": 0} and card["std"].startswith("sample (n - 1)")
    assert [card["per_split"][name]["metrics"]["high"]["R@1"] for name in "123"] == values
    assert [card["per_split"][name]["num_test_videos"] for name in "123"] == [10, 11, 12]
    assert card["num_test_videos"] == 33 and card["settings"] == {"clips": 10, "splits": ["1", "2", "3"]}
    for name in "123":
        for role in ("train", "test"):
            digest = hashlib.sha256(f"{role} {name}".encode()).hexdigest()
            assert card["csv_files"][f"{role} {name}"]["sha256"] == digest
    table = markdown_table(card, ("clips",))
    assert "| high | 10 | 33 | 41.5 ± 0.6 |" in table and "| low | 10 | 33 | 10.0 ± 0.0 |" in table


def test_one_named_split_has_no_deviation(splits):
    card = card_of(splits[1:2], {"high": {"R@1": 0.5}})
    assert card["metrics"] == {"high": {"R@1": 0.5}} and list(card["per_split"]) == ["2"]
    assert "metrics_std" not in card and "| 50.0 |" in markdown_table(card, ("clips",))


@pytest.mark.usefixtures("backbone_that_sees_the_class")
def test_a_figure_that_cannot_be_drawn_costs_no_result(color_set, colors, straight, tmp_path, monkeypatch, capsys):
    """The linear probe and finetuning, here a finished run that is tested again, write the card before any figure."""
    def fail(path, *_) -> None:
        assert (path.parent / "result.json").exists()
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("eval.metrics.draw_confusion", fail)
    probe = ["--weights", "random", "--net", "r3d10", "--train_csv", str(color_set / "train.csv"), "--test_csv",
             str(color_set / "test.csv"), "--img_dim", "32", "--seq", "8", "--clips", "1", "--workers", "0", "--epochs", "1",
             "--gpu", "none", "--out", str(tmp_path / "probe")]
    shutil.copytree(straight, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    for command, flags, out in ((linear_probe, probe, "probe"),
                                (finetune, classifier_runs.arguments(colors, tmp_path / "run", "--resume"), "run")):
        assert command.main(flags) == 2
        assert json.loads((tmp_path / out / "result.json").read_text())["metrics"]["high"]["top1"] >= 0
        assert capsys.readouterr().err.endswith("confusion_high.png: No space left on device\n")
