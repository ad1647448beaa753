"""Temporal order: what the maps mean, the frozen backbone, and runs with their resumption."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from eval.features import load_backbone
from models.levels import LevelFeatures
from utils.checkpoint import read_checkpoint
from utils.errors import InputError
from utils.runlog import file_sha256
from visualization.main_temporal import main, order_evidence, order_maps, returncam, train
from visualization.order_flags import check_flags, order_parser
from visualization.order_head import new_head, order_accuracy
from visualization.order_videos import PairBatches, both_orders, order_targets

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


class Identity(nn.Module):
    """A backbone whose map at every level is the clip itself, or a mean over blocks of it."""

    def __init__(self, block: tuple[int, int, int] = (1, 1, 1)) -> None:
        super().__init__()
        self.pool = nn.AvgPool3d(block)
        self.norm = nn.BatchNorm3d(3)

    def forward(self, clips: torch.Tensor) -> LevelFeatures:
        return LevelFeatures(*[self.norm(self.pool(clips))] * 3)


def random_head(channels: int, seed: int = 0) -> nn.Linear:
    head = nn.Linear(channels, 2, bias=False)
    nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(seed))
    return head


# What the maps mean.

@pytest.mark.parametrize(("net", "level"), [("r3d10", "high"), ("r3d10", "low"), ("s3d", "mid")])
def test_the_mean_of_a_map_is_the_logit(net, level):
    backbone, _ = load_backbone("random", net, seed=1)
    clips = torch.randn(2, 3, 8, 64, 48, generator=torch.Generator().manual_seed(0))
    head = random_head(backbone.channels[level])
    with torch.no_grad():
        features = getattr(backbone.eval()(clips), level).mean(dim=(2, 3, 4))
        head.weight /= head(features).abs().max()  # logits of up to 1
        logits = head(features)
    maps = order_maps(backbone.train(), head, clips, level)
    assert not backbone.training, "maps are those of a backbone that is tested, not trained"
    torch.testing.assert_close(maps.mean(dim=(2, 3, 4)), logits, rtol=0, atol=1e-5)
    assert maps.shape[:2] == (2, 2) and maps.std() > 0


def interpolated(row: np.ndarray, size: int) -> np.ndarray:
    """`row` at `size` evenly spread places, by the formula: place (i + 1/2) n / size - 1/2, ends held."""
    places = (np.arange(size) + 0.5) * len(row) / size - 0.5
    return np.interp(places, np.arange(len(row)), row)


def test_each_clip_shows_its_own_channel_enlarged():
    clips = torch.randn(4, 3, 6, 8, 10, generator=torch.Generator().manual_seed(0))
    backbone, head = Identity((3, 2, 5)), random_head(3)
    maps = order_maps(backbone, head, clips)
    cams = returncam(backbone, head, clips)
    assert cams.shape == (4, 6, 8, 10)
    for row, (own, cam) in enumerate(zip(maps, cams)):
        expected = own[row % 2].numpy()
        for axis, size in enumerate((6, 8, 10)):
            expected = np.apply_along_axis(interpolated, axis, expected, size)
        np.testing.assert_allclose(cam.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("block", "kept"), [((4, 8, 8), True), ((2, 5, 5), True), ((3, 11, 13), False)])
def test_enlarging_keeps_the_logit_by_whole_factors_and_no_others(block, kept):
    # A block that does not divide the clip leaves a map of floor(size / block), so no whole factor.
    clips = torch.randn(2, 3, 8, 40, 40, generator=torch.Generator().manual_seed(0)).cumsum(dim=4).double()
    backbone, head = Identity(block).double(), random_head(3).double()
    logits = order_maps(backbone, head, clips).mean(dim=(2, 3, 4))[torch.arange(2), torch.arange(2)]
    means = returncam(backbone, head, clips).mean(dim=(1, 2, 3))
    assert torch.allclose(means, logits, rtol=0, atol=1e-9) == kept
    assert torch.allclose(means, logits, rtol=0.1), "approximately kept, all the same"


def test_a_lone_clip_is_refused():
    with pytest.raises(InputError, match="3 clip"):
        returncam(Identity(), random_head(3), torch.zeros(3, 3, 8, 8, 8))


def test_rows_are_natural_and_reversed_in_turn():
    clips = torch.arange(2 * 3 * 4).view(2, 1, 3, 4, 1)
    rows = both_orders(clips)
    assert torch.equal(rows[0::2], clips) and torch.equal(rows[1::2], clips.flip(2))
    assert torch.equal(both_orders(clips.movedim(2, 1), time_dim=1), rows.movedim(2, 1))
    assert order_targets(4, CPU).tolist() == [0, 1, 0, 1]


def test_evidence_is_in_natural_time_and_without_what_both_orders_share():
    clips = torch.randn(3, 3, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    head = new_head(3)
    with torch.no_grad():
        head.weight[0], head.weight[1] = torch.tensor([1., -2., 3.]), torch.tensor([-1., 2., -3.])
    maps = returncam(Identity(), head, both_orders(clips))
    evidence = order_evidence(maps)
    for clip in range(3):
        for frame in range(8):
            expected = (maps[2 * clip, frame] + maps[2 * clip + 1, 7 - frame]) / 2
            torch.testing.assert_close(evidence[clip, frame], expected)
    # This backbone sees each frame alone, so nothing it sees depends on the order.
    assert maps.abs().max() > 1 and evidence.abs().max() < 1e-5


def test_accuracy_is_that_of_loops():
    features = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    features[7] = features[6]  # a pair that cannot be told apart: half right either way
    head = random_head(4)
    logits = (features @ head.weight.T).tolist()
    right = sum((a > b) == (row % 2 == 0) for row, (a, b) in enumerate(logits))
    margins = [a - b for a, b in logits]
    won = sum(1.0 if x > y else 0.5 if x == y else 0.0 for x, y in zip(margins[0::2], margins[1::2]))
    expected = {"accuracy": right / 20, "pair_accuracy": won / 10}
    assert order_accuracy(head, features) == pytest.approx(expected)


def test_every_pair_comes_once_an_epoch_in_another_order_each_time():
    batches = PairBatches(10, 4, seed=3)
    epochs = []
    for epoch in (0, 1, 0):
        batches.epoch = epoch
        drawn = list(batches)
        assert [len(batch) for batch in drawn] == [4, 4, 2] and len(batches) == 3
        assert {e for batch in drawn for e, _ in batch} == {epoch}
        epochs.append([pair for batch in drawn for _, pair in batch])
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] == epochs[2] != epochs[1]


# Runs.

@pytest.fixture
def lists(tmp_path, write_coded_video) -> list[str]:
    """Flags that name a training and a test csv of small videos, two of them shorter than a clip."""
    for role, counts in (("train", (24, 12, 30, 5)), ("test", (20, 16, 7))):
        rows = [f"{role}{i},{n}" for i, n in enumerate(counts)]
        for i, n in enumerate(counts):
            write_coded_video(tmp_path / f"{role}{i}", n)
        (tmp_path / f"{role}.csv").write_text("\n".join(rows) + "\n")
    return ["--train_csv", str(tmp_path / "train.csv"), "--test_csv", str(tmp_path / "test.csv")]


SMALL = ["--weights", "random", "--net", "r3d10", "--gpu", "none", "--workers", "0", "--batch", "4",
         "--train_batch", "2"]
CLIPS = ["--seq", "8", "--img_dim", "32"]


def log_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("way", [["--clips", "2"], ["--augment"]])
def test_training_changes_no_bit_of_the_backbone(way, lists, tmp_path):
    out = tmp_path / "run"
    flags = order_parser().parse_args([*SMALL, *CLIPS, *lists, *way, "--epoch", "2", "--out", str(out)])
    check_flags(flags)
    backbone, weights = load_backbone("random", "r3d10", seed=0)
    backbone.requires_grad_(False)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert any(name.endswith("running_mean") for name in before)
    head = train(backbone, weights, flags, CPU)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert head.weight.abs().max() > 0 and head.bias is None
    torch.testing.assert_close(head.weight[0], -head.weight[1], rtol=0, atol=1e-6)
    assert [line["epoch"] for line in log_of(out)] == [0, 1]
    assert all({"loss", "accuracy", "lr"} <= line.keys() for line in log_of(out))
    card = json.loads((out / "result.json").read_text())
    assert card["task"] == "temporal_order" and set(card["metrics"]["high"]) == {"accuracy", "pair_accuracy"}
    assert (card["num_train_videos"], card["num_train_videos_shorter_than_clip"]) == (3, 1)
    assert (card["num_test_videos"], card["num_test_videos_shorter_than_clip"]) == (2, 1)
    assert json.loads((out / "config.json").read_text())["flags"]["img_dim"] == 32


def test_a_resumed_run_ends_bit_for_bit_as_one_that_was_not_stopped(lists, tmp_path, capsys):
    common = [*SMALL, *CLIPS, *lists, "--feature_dir", str(tmp_path / "features"), "--lr_decay", "2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*common, "--epoch", "4", "--out", str(whole)]) == 0
    assert "computed" in capsys.readouterr().out
    assert main([*common, "--epoch", "3", "--out", str(parts)]) == 0
    assert "computed" not in capsys.readouterr().out, "features are kept"
    assert main([*common, "--epoch", "4", "--out", str(parts)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*common, "--epoch", "4", "--out", str(parts), "--resume"]) == 0
    final = [read_checkpoint(out / "checkpoints" / "epoch_0004.pt") for out in (whole, parts)]
    assert torch.equal(final[0]["weight"], final[1]["weight"])
    assert log_of(whole) == log_of(parts)
    assert [line["lr"] for line in log_of(whole)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])


def test_a_trained_head_is_tested_and_shown_again(lists, tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*SMALL, *CLIPS, *lists, "--epoch", "1", "--out", str(out), "--level", "mid"]) == 0
    metrics = json.loads((out / "result.json").read_text())["metrics"]
    test_csv = lists[2:]
    # The clips' length and size are known from the head.
    assert main([*SMALL, *test_csv, "--mode", "eval", "--out", str(out)]) == 0
    card = json.loads((out / "result_eval.json").read_text())
    assert card["metrics"] == metrics and set(metrics) == {"mid"} and card["settings"]["img_dim"] == 32
    own = json.loads((out / "result.json").read_text())
    assert card["settings"] == own["settings"] and own["command"] != [] and own["settings"]["lr"] == 1e-3
    assert card["head_sha256"] == own["head_sha256"] == file_sha256(out / "checkpoints" / "epoch_0001.pt")
    assert main([*SMALL, *test_csv, "--mode", "visualize", "--out", str(out), "--num_videos", "1"]) == 0
    names = sorted(path.relative_to(out / "cam").as_posix() for path in (out / "cam").rglob("*.*"))
    pictures = [f"{order}/0000_test0/image_{i:05d}.jpg" for order in ("natural", "reversed")
                for i in range(1, 9)]
    assert names == ["0000_test0.mp4", *pictures]
    # A head belongs to its backbone and level.
    for wrong, named in ((["--seed", "1"], "random_seed"), (["--level", "low"], "level mid")):
        capsys.readouterr()
        assert main([*SMALL, *test_csv, *wrong, "--mode", "eval", "--out", str(out)]) == 2
        assert named in capsys.readouterr().err


def test_a_head_goes_on_and_is_tested_with_the_videos_and_settings_that_it_began_with(lists, tmp_path, capsys):
    out, other = tmp_path / "run", tmp_path / "other.csv"
    assert main([*SMALL, *CLIPS, *lists, "--epoch", "1", "--out", str(out)]) == 0
    before = (out / "result.json").read_text()
    lines = (tmp_path / "train.csv").read_text().splitlines()
    other.write_text("\n".join([*lines[1:], "test0,20"]) + "\n")
    (tmp_path / "rest.csv").write_text("test1,16\n")
    tested_on_training = ["--test_csv", str(tmp_path / "train.csv"), "--train_csv", str(tmp_path / "rest.csv")]
    resume = [*CLIPS, *lists, "--resume", "--epoch", "2"]
    for wrong, named in (
        (["--mode", "eval", *tested_on_training], "rest.csv: lists other videos than "),
        ([*resume, "--train_csv", str(other), "--test_csv", str(tmp_path / "rest.csv")], "lists other videos than "),
        ([*resume, "--lr", "0.1"], "--lr 0.1: "), ([*resume, "--augment"], "--augment True: "),
        ([*resume, "--seq", "9"], "--seq 9: "), ([*resume, "--train_batch", "3"], "--train_batch 3: "),
    ):
        capsys.readouterr()
        assert main([*SMALL, "--out", str(out), *wrong]) == 2, wrong
        assert named in capsys.readouterr().err, wrong
    assert (out / "result.json").read_text() == before
    assert main([*SMALL, "--out", str(out), *resume]) == 0
    assert main([*SMALL, "--out", str(out), *resume, "--epoch", "1"]) == 2
    assert "--epoch 1: " in capsys.readouterr().err


def test_several_processes_are_refused_with_one_line(lists, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, num_lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert main([*SMALL, *CLIPS, *lists, "--out", str(tmp_path / "run")]) == 2
        assert capsys.readouterr().err.count("WORLD_SIZE 2: ") == num_lines


def test_maps_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="not finite"):
        returncam(Identity(), random_head(3), torch.full((2, 3, 8, 8, 8), float("nan")))


def test_mistakes_are_one_line(lists, tmp_path, capsys):
    train_csv, test_csv = lists[1], lists[3]
    for wrong, named in (
        (["--mode", "eval", *lists], "no trained head"),
        (["--test_csv", test_csv], "--train_csv"),
        (["--train_csv", train_csv, "--test_csv", train_csv], "held-out"),
        ([*lists, "--seq", "64"], "none of its 4 video(s) has the 64 frames"),
        ([*lists, "--gpu", "0,1"], "--gpu 0,1"),
        ([*lists, "--lr", "nan"], "--lr"),
        ([*lists, "--img_dim", "16"], "--img_dim 16"),
        ([*lists, "--weights", str(tmp_path / "none.pt")], "none.pt"),
        ([*lists, "--mode", "visualize", "--pos", "a", "--neg", "a"], "--neg a"),
    ):
        assert main([*SMALL, "--out", str(tmp_path / "run"), *wrong]) == 2, wrong
        error = capsys.readouterr().err
        assert named in error and error.count("\n") == 1, (wrong, error)
    assert not (tmp_path / "run").exists(), "a mistake leaves nothing behind"


def test_the_file_starts_as_a_script(tmp_path):
    result = subprocess.run([sys.executable, "visualization/main_temporal.py", "--weights", "none.pt",
                             "--train_csv", "a.csv", "--test_csv", "b.csv", "--gpu", "none"],
                            cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "none.pt" in result.stderr
