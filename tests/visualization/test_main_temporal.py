"""Temporal order: the frozen backbone, runs and their resumption, wrong input."""
from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from eval.features.backbone import load_backbone
from models.multilevel import MultiLevelModel
from utils.checkpoint import FORMAT, read_checkpoint, write_checkpoint
from utils.files import file_sha256
from visualization import main_temporal
from visualization.main_temporal import main, train_order_head
from visualization.temporal_order import order_parser

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


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


@pytest.fixture
def trained(lists, tmp_path) -> Path:
    """Run directory of a head trained for one epoch."""
    assert main([*SMALL, *CLIPS, *lists, "--epoch", "1", "--level", "mid", "--out", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def log_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("way", [["--clips", "2"], ["--augment", "--input", "residual"]])
def test_training_changes_no_bit_of_the_backbone(way, lists, tmp_path):
    out = tmp_path / "run"
    flags = order_parser().parse_args([*SMALL, *CLIPS, *lists, "--epoch", "2", "--out", str(out), *way])
    backbone, weights = load_backbone("random", "r3d10", 0, flags.input_frames)
    backbone.requires_grad_(False)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert any(name.endswith("running_mean") for name in before)
    head = train_order_head(backbone, weights, flags, CPU)
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


def test_a_trained_head_is_tested_and_visualized(trained, lists, capsys):
    again = [*SMALL, *lists[2:], "--out", str(trained)]  # length and size of clips come from the head
    assert main([*again, "--mode", "eval"]) == 0
    own, card = (json.loads((trained / name).read_text()) for name in ("result.json", "result_eval.json"))
    assert card["metrics"] == own["metrics"] and set(own["metrics"]) == {"mid"}
    assert card["settings"] == own["settings"] and (own["settings"]["img_dim"], own["settings"]["lr"]) == (32, 1e-3)
    assert card["head_sha256"] == own["head_sha256"] == file_sha256(trained / "checkpoints" / "epoch_0001.pt")
    assert main([*again, "--mode", "visualize", "--num_videos", "1"]) == 0
    assert files_below(trained / "cam") == ["0000_test0.mp4", *(
        f"{order}/0000_test0/image_{i:05d}.jpg" for order in ("natural", "reversed") for i in range(1, 9))]
    # A head belongs to its backbone and level.
    for wrong, named in ((["--seed", "1"], "random_seed"), (["--level", "low"], "level mid")):
        capsys.readouterr()
        assert main([*again, *wrong, "--mode", "eval"]) == 2
        assert named in capsys.readouterr().err


def test_maps_of_one_timestamp_are_noted(lists, tmp_path, capsys):
    """Of 8 frames the high level has one timestamp, the mid level two."""
    for level, noted in (("high", True), ("mid", False)):
        flags = [*SMALL, *lists[2:], "--out", str(tmp_path / level)]
        assert main([*flags, *lists[:2], *CLIPS, "--level", level, "--epoch", "1"]) == 0
        capsys.readouterr()
        assert main([*flags, "--mode", "visualize", "--num_videos", "1"]) == 0
        assert ("level high has one timestamp in 8 frames" in capsys.readouterr().out) == noted


def test_a_head_resumes_and_is_tested_with_the_videos_and_settings_that_it_began_with(trained, lists, tmp_path, capsys):
    before = (trained / "result.json").read_text()
    other, rest = tmp_path / "other.csv", tmp_path / "rest.csv"
    other.write_text("\n".join([*(tmp_path / "train.csv").read_text().splitlines()[1:], "test0,20"]) + "\n")
    rest.write_text("test1,16\n")
    resume = [*SMALL, *CLIPS, *lists, "--out", str(trained), "--resume", "--epoch", "2"]
    for wrong, named in (
        ([*SMALL, "--out", str(trained), "--mode", "eval", "--test_csv", lists[1], "--train_csv", str(rest)],
         "rest.csv: lists other videos than "),
        ([*resume, "--train_csv", str(other), "--test_csv", str(rest)], "lists other videos than "),
        ([*resume, "--lr", "0.1"], "--lr 0.1: "), ([*resume, "--augment"], "--augment True: "),
        ([*resume, "--seq", "9"], "--seq 9: "), ([*resume, "--train_batch", "3"], "--train_batch 3: "),
    ):
        capsys.readouterr()
        assert main(wrong) == 2, wrong
        assert named in capsys.readouterr().err, wrong
    assert (trained / "result.json").read_text() == before
    assert main(resume) == 0
    assert main([*resume, "--epoch", "1"]) == 2
    assert "--epoch 1: " in capsys.readouterr().err


def test_videos_of_another_csv_are_removed(trained, lists, tmp_path, capsys):
    (tmp_path / "one.csv").write_text("test1,16\n")
    show = [*SMALL, "--mode", "visualize", "--out", str(trained)]
    capsys.readouterr()
    assert main([*show, *lists[2:]]) == 0
    assert "test: 2 videos of " in (said := capsys.readouterr().out) and "1 left out as shorter than a clip" in said
    assert sorted(path.name for path in (trained / "cam").glob("*.mp4")) == ["0000_test0.mp4", "0001_test1.mp4"]
    (trained / "cam" / "mine.mp4").touch()
    (trained / "cam" / "natural" / "0001_test1" / "mine.txt").touch()
    assert main([*show, "--test_csv", str(tmp_path / "one.csv"), "--pos", "forth", "--neg", "back"]) == 0
    assert "removed 2 earlier video(s)" in capsys.readouterr().out
    assert files_below(trained / "cam") == ["0000_test1.mp4", *(
        f"{order}/0000_test1/image_{i:05d}.jpg" for order in ("back", "forth") for i in range(1, 9)),
        "mine.mp4", "natural/0001_test1/mine.txt"]


def test_an_incomplete_head_is_a_one_line_error(trained, lists, capsys):
    path = trained / "checkpoints" / "epoch_0001.pt"
    state = torch.load(path)
    for named, content in (
        ("it lacks 'backbone'", {name: value for name, value in state.items() if name not in ("backbone", "weight")}),
        ("it lacks 'weight'", {name: value for name, value in state.items() if name != "weight"}),
        ("damaged, or no order_head checkpoint", {**state, "optimizer": {}}),
    ):
        torch.save(content, path)
        capsys.readouterr()
        assert main([*SMALL, *CLIPS, *lists, "--epoch", "2", "--out", str(trained), "--resume"]) == 2
        error = capsys.readouterr().err
        assert named in error and error.count("\n") == 1, error


@pytest.mark.parametrize(("end", "mode", "status", "expected"), [
    (KeyboardInterrupt(), "train", 130, "interrupted"),
    (RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed."), "train", 3, "--resume resumes"),
    (RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed."), "eval", 3, "DataLoader worker 12 ended"),
    (OSError(28, "No space left on device", "x.npz"), "train", 2, "x.npz: No space left on device"),
])
def test_what_ends_the_program_early_is_one_line(end, mode, status, expected, lists, monkeypatch, capsys):
    def fail(*_):
        raise end

    monkeypatch.setattr(main_temporal, "load_backbone", fail)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # a second Ctrl-C is ignored, but not in the tests to come
    assert main([*SMALL, *lists, "--mode", mode]) == status
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert ("--resume" in error) == ("--resume" in expected), "advice that the mode takes"


def test_several_processes_are_refused_with_one_line(lists, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, num_lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert main([*SMALL, *CLIPS, *lists, "--out", str(tmp_path / "run")]) == 2
        assert capsys.readouterr().err.count("WORLD_SIZE 2: ") == num_lines


def test_errors_are_one_line(lists, tmp_path, capsys):
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
        (["--test_csv", test_csv, "--mode", "visualize", "--pos", "a", "--neg", "a"], "--neg a"),
        (["--test_csv", test_csv, "--mode", "visualize", "--pos", "a", "--neg", "./a"], "--neg ./a"),
        (["--test_csv", test_csv, "--mode", "visualize", "--pos", str(tmp_path)], f"--pos {tmp_path}"),
        (["--test_csv", test_csv, "--mode", "visualize", "--pos", ".."], "--pos .."),
        ([*lists, "--mode", "visualize"], "--train_csv: without effect in --mode visualize"),
        (["--test_csv", test_csv, "--mode", "visualize", "--clips", "3"], "--clips: without effect"),
        (["--test_csv", test_csv, "--mode", "eval", "--augment"], "--augment: without effect in --mode eval"),
    ):
        assert main([*SMALL, "--out", str(tmp_path / "run"), *wrong]) == 2, wrong
        error = capsys.readouterr().err
        assert named in error and error.count("\n") == 1, (wrong, error)
    assert not (tmp_path / "run").exists(), "an error leaves nothing behind"


def test_the_notebook_lines_of_the_docstring_are_true(lists, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = MultiLevelModel("r3d10", 16, 5)
    write_checkpoint({"format": FORMAT, "kind": "model", "net": "r3d10", "embedding_dim": 16, "num_prototypes": 5,
                      "model": model.state_dict(), "input": {"mean": [0.5] * 3, "std": [0.25] * 3}}, tmp_path / "CHECKPOINT")
    monkeypatch.chdir(tmp_path)
    assert main([*SMALL[4:], "--weights", "CHECKPOINT", *CLIPS, *lists, "--epoch", "50", "--out", "runs/order"]) == 0
    lines = main_temporal.__doc__.partition("In a notebook:")[2].partition("\n\nShapes")[0]
    clips = torch.randint(0, 256, (3, 8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    values: dict = {"clips": clips}
    exec(textwrap.dedent(lines), values)
    assert values["maps"].shape == (6, 8, 32, 32) and values["evidence"].shape == (3, 8, 32, 32)
    float_clips = ((clips / 255 - 0.5) / 0.25).movedim(-1, 1)
    logits = values["head"](model.eval().backbone(float_clips).high.mean(dim=(2, 3, 4)))[:, 0]
    torch.testing.assert_close(values["maps"][::2].mean(dim=(1, 2, 3)), logits, rtol=0, atol=1e-5)


def test_the_file_starts_as_a_script(tmp_path):
    result = subprocess.run([sys.executable, "visualization/main_temporal.py", "--weights", "none.pt",
                             "--train_csv", "a.csv", "--test_csv", "b.csv", "--gpu", "none"],
                            cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "none.pt" in result.stderr
