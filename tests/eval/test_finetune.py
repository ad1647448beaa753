"""Finetuning and the end-to-end probe as a user starts them: run directories, resuming, processes, splits, mistakes."""
from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from eval import finetune, linear_probe
from eval.features.backbone import load_backbone
from tests.classifier_runs import HEAD, LABELS, arguments, assert_same, card_of, checked, load, log_of, write_csv

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def test_run_directory(straight, colors):
    names = {".lock", "checkpoints", "config.json", "confusion_high.png", "log.jsonl", "per_class_high.csv",
             "probabilities_high.npz", "result.json", "tensorboard"}
    assert {path.name for path in straight.iterdir()} == names
    assert [path.name for path in (straight / "checkpoints").iterdir()] == ["epoch_0003.pt"]
    config = json.loads((straight / "config.json").read_text())
    assert config["flags"]["dropout"] == 0.9 and config["processes"] == 1

    lines = [json.loads(line) for line in (straight / "log.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(1, 10))
    for epoch, factor in zip(epochs, (1, 0.1, 0.01)):
        assert epoch["lr_heads"] == pytest.approx(1e-3 * factor)
        assert epoch["lr_backbone"] == pytest.approx(1e-4 * factor)
    assert {"total", "accuracy_high", "samples_per_s", "data_wait"} <= epochs[0].keys()

    card = card_of(straight)
    assert card["num_test_videos"] == 7 and card["num_classes"] == 3 and card["epochs_done"] == 3
    assert card["settings"]["trained_part"] == "all" and card["settings"]["weight_decay"] == 1e-3
    assert set(card["metrics"]["high"]) == {"top1", "mean_class"}
    with open(straight / "per_class_high.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["class"], row["videos"]) for row in table] == [("0", "3"), ("1", "2"), ("5", "2")]
    right = sum(float(row["top1"]) * int(row["videos"]) for row in table)
    assert right / 7 == pytest.approx(card["metrics"]["high"]["top1"])


def test_stopped_and_resumed_is_the_straight_run_bit_for_bit(straight, colors, tmp_path, capsys):
    out = tmp_path / "run"
    assert finetune.main(arguments(colors, out, "--stop_after", "1")) == 0
    assert "stopped after epoch 1 of 3" in capsys.readouterr().out and not (out / "result.json").exists()
    # What is not finished is not tested as if it were.
    unfinished = out / "checkpoints/epoch_0001.pt"
    assert finetune.main(checked(colors, tmp_path / "test", unfinished)) == 2
    assert f"--test_only {unfinished}: is after epoch 1 of 3" in capsys.readouterr().err
    assert finetune.main(arguments(colors, out, "--resume", "--epochs", "1")) == 0
    assert card_of(out)["settings"]["epochs"] == card_of(out)["epochs_done"] == 1
    assert "warning: --lr_decay 1,2 is not before the end, --epochs 1" in capsys.readouterr().err
    torch.manual_seed(99)  # what the process drew meanwhile must not matter
    assert finetune.main(arguments(colors, out, "--resume", "--workers", "1")) == 0
    ours, theirs = load(out / "checkpoints/epoch_0003.pt"), load(straight / "checkpoints/epoch_0003.pt")
    for part in ("model", "optimizer", "progress", "random", "videos", "weights", "epochs_done"):
        assert_same(ours[part], theirs[part], part)
    assert log_of(out) == log_of(straight) and card_of(out)["metrics"] == card_of(straight)["metrics"]
    # A finished run that is resumed is tested once more, but with other clips only where no result is lost by it.
    (out / "result.json").unlink()
    assert finetune.main(arguments(colors, out, "--resume")) == 0
    assert card_of(out)["metrics"] == card_of(straight)["metrics"]
    windows = arguments(colors, out, "--resume", "--clips", "windows", "--crops", "5")
    assert finetune.main(windows) == 2
    assert f"--out {out}: holds the result of another test" in capsys.readouterr().err
    (out / "result.json").rename(out / "ten_clips.json")
    assert finetune.main(windows) == 0
    assert card_of(out)["settings"]["crops"] == 5 and log_of(out) == log_of(straight)


def test_only_the_head_learns_colors_to_100_per_cent(colors, tmp_path):
    assert finetune.main(arguments(colors, tmp_path, *HEAD, "--epochs", "8", "--lr_decay", "none")) == 0
    assert card_of(tmp_path)["metrics"]["high"] == {"top1": 1.0, "mean_class": 1.0}
    trained = load(tmp_path / "checkpoints/epoch_0008.pt")["model"]
    for name, value in load_backbone("random", "r3d10", 0)[0].state_dict().items():
        assert torch.equal(trained[f"backbone.{name}"], value), name


@pytest.mark.parametrize("command, flags", [(finetune, HEAD), (linear_probe, ("--end_to_end", "--levels", "low,concat"))])
def test_labels_that_say_nothing_give_chance(colors, tmp_path, command, flags):
    """The csv lists every test video with each of the labels: what is predicted is right for one in three."""
    rows = list(csv.reader((colors / "test.csv").read_text().splitlines()))
    blind = [(f"{folder}_as_{label}", frames, label) for folder, frames, _ in rows for label in LABELS]
    for folder, _, label in blind:
        shutil.copytree(colors / folder.removesuffix(f"_as_{label}"), tmp_path / folder)
    shuffled = [(str(colors / folder), frames, LABELS[number % 3]) for number, (folder, frames, _) in
                enumerate(csv.reader((colors / "train.csv").read_text().splitlines()))]
    write_csv(tmp_path / "train.csv", shuffled)
    write_csv(tmp_path / "test.csv", blind)
    assert command.main(arguments(tmp_path, tmp_path / "run", *flags, "--epochs", "1")) == 0
    for metrics in card_of(tmp_path / "run")["metrics"].values():
        assert metrics["top1"] == pytest.approx(1 / 3)


def test_two_processes_give_the_test_of_one(colors, tmp_path, dist_url):
    """Seven videos: two processes have four and three, and none of them twice."""
    flags = arguments(colors, tmp_path / "two", "--epochs", "1", "--crops", "5")
    result = subprocess.run(
        [sys.executable, str(ROOT / "eval/finetune.py"), *flags, "--multiprocessing-distributed", "--nproc", "2",
         "--dist-url", dist_url], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True,
        timeout=240)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "2 process(es)" in result.stdout and result.stdout.count("epoch 1/1") == 1
    assert result.stdout.count("| random | r3d10 | high |") == 1
    checkpoint = tmp_path / "two/checkpoints/epoch_0001.pt"
    assert len(load(checkpoint)["random"]) == 2
    assert finetune.main(checked(colors, tmp_path / "one", checkpoint, "--crops", "5", "--batch", "7")) == 0
    for part in ("metrics", "per_class", "num_test_videos", "tested_checkpoint_sha256"):
        assert card_of(tmp_path / "one")[part] == card_of(tmp_path / "two")[part], part
    assert [row["videos"] for row in card_of(tmp_path / "two")["per_class"]["high"]] == [3, 2, 2]
    one, two = (np.load(tmp_path / name / "probabilities_high.npz") for name in ("one", "two"))
    with one, two:
        assert np.array_equal(one["videos"], two["videos"]) and one["classes"].tolist() == [0, 0, 0, 1, 1, 2, 2]
        np.testing.assert_allclose(one["probabilities"], two["probabilities"], rtol=0, atol=1e-5)
        assert one["probabilities"].std(axis=0).min() > 1e-4, "or nothing was shown: the videos must differ"


def test_splits_are_trained_one_by_one_and_averaged(colors, tmp_path):
    rows = [(str(colors / folder), frames, label) for role in ("train", "test") for folder, frames, label in
            csv.reader((colors / f"{role}.csv").read_text().splitlines())]
    for name, rest in (("a", 0), ("b", 1)):
        write_csv(tmp_path / f"test_{name}.csv", rows[rest::2])
        write_csv(tmp_path / f"train_{name}.csv", rows[1 - rest::2])
    flags = arguments(tmp_path, tmp_path / "run", *HEAD, "--epochs", "1", "--splits", "a,b",
                      "--train_csv", str(tmp_path / "train_{split}.csv"),
                      "--test_csv", str(tmp_path / "test_{split}.csv"))
    assert finetune.main(flags) == 0
    card = card_of(tmp_path / "run")
    each = [card["per_split"][name]["metrics"]["high"]["top1"] for name in ("a", "b")]
    assert card["metrics"]["high"]["top1"] == pytest.approx(np.mean(each))
    assert card["metrics_std"]["high"]["top1"] == pytest.approx(np.std(each, ddof=1))
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"split_a", "split_b", "result.json"}
    assert (tmp_path / "run/split_b/per_class_high.csv").exists()
    assert finetune.main([*flags, "--splits", "a,b,c", "--out", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists(), "the third split's mistake is reported before the first is trained on"


def test_held_out_videos_are_logged_and_not_trained_on(colors, tmp_path):
    assert finetune.main(arguments(colors, tmp_path, *HEAD, "--epochs", "1", "--val_holdout", "0.25")) == 0
    [line] = [line for line in log_of(tmp_path) if line["kind"] == "validation"]
    assert 0 <= line["top1_high"] <= 1 and line["step"] == 2
    card = card_of(tmp_path)
    assert card["num_train_videos"] == 9 and card["holdout"]["num_videos_held_out"] == 3
    assert card["trained_on"] == card["device"] and card["skipped_held_out_videos"] == []
    # --test_only reports the training of its checkpoint.
    assert finetune.main(checked(colors, tmp_path / "again", tmp_path / "checkpoints/epoch_0001.pt")) == 0
    again = card_of(tmp_path / "again")
    for part in ("num_train_videos", "holdout", "settings", "metrics", "trained_on"):
        assert again[part] == card[part], part
    assert card["settings"]["backbone_lr"] is None, "--train head has none"


def test_shots_of_each_seed_are_trained_on_before_the_hold_out_and_tested_again(colors, tmp_path, capsys):
    flags = [*HEAD, "--epochs", "1", "--train_batch", "3", "--shots", "3", "--val_holdout", "0.3"]
    assert finetune.main(arguments(colors, tmp_path / "run", *flags, "--shots_seeds", "0,4")) == 0
    card = card_of(tmp_path / "run")
    assert card["settings"]["shots"] == 3 and card["settings"]["shots_seeds"] == [0, 4] and "metrics_std" in card
    for of_seed in card["per_split"].values():
        assert (of_seed["num_train_videos"], of_seed["holdout"]["num_videos_held_out"]) == (6, 3)
    checkpoint = tmp_path / "run/split_seed_4/checkpoints/epoch_0001.pt"
    assert finetune.main(checked(colors, tmp_path / "other", checkpoint)) == 2
    assert "another data set, split or --shots?" in capsys.readouterr().err
    assert finetune.main(checked(colors, tmp_path / "again", checkpoint, "--shots", "3", "--shots_seeds", "4")) == 0
    assert card_of(tmp_path / "again")["metrics"] == card["per_split"]["seed_4"]["metrics"]
    assert finetune.main(arguments(colors, tmp_path / "run", *flags, "--shots_seeds", "4,0", "--resume")) == 0
    assert card_of(tmp_path / "run")["per_split"] == card["per_split"]


def test_unreadable_videos_stop_or_are_counted(colors, tmp_path, capsys):
    for role in ("train", "test"):
        (colors / f"bad_{role}.csv").write_text((colors / f"{role}.csv").read_text() + f"gone_{role},9,1\n")
    flags = arguments(colors, tmp_path, *HEAD, "--epochs", "1", "--train_csv", str(colors / "bad_train.csv"),
                      "--test_csv", str(colors / "bad_test.csv"), "--train_batch", "13")
    assert finetune.main(flags) == 2
    assert str(colors / "gone_train") in capsys.readouterr().err.splitlines()[-1]
    assert finetune.main([*flags, "--skip_bad"]) == 0
    card = card_of(tmp_path)
    assert card["num_test_videos"] == 7 and card["num_train_videos"] == 12
    [train], [test] = card["skipped_train_videos"], card["skipped_test_videos"]
    assert "gone_train" in train and "gone_test" in test


def test_held_out_videos_that_cannot_be_read_are_in_the_card(colors, tmp_path):
    rows = [f"gone_{label}_{i},9,{label}\n" for label in LABELS for i in range(20)]
    (colors / "many_gone.csv").write_text((colors / "train.csv").read_text() + "".join(rows))
    flags = arguments(colors, tmp_path / "run", *HEAD, "--epochs", "1", "--val_holdout", "0.4", "--skip_bad",
                      "--train_csv", str(colors / "many_gone.csv"))
    assert finetune.main(flags) == 0
    card = card_of(tmp_path / "run")
    assert len(card["skipped_held_out_videos"]) > 10 and "gone_" in card["skipped_held_out_videos"][0]
    assert len(card["skipped_held_out_videos"]) + len(card["skipped_train_videos"]) <= 60
    assert card["num_train_videos"] + len(card["skipped_train_videos"]) + card["holdout"]["num_videos_held_out"] == 72
    # --test_only reports them too.
    tested = checked(colors, tmp_path / "again", card["tested_checkpoint"], "--train_csv", str(colors / "many_gone.csv"))
    assert finetune.main(tested) == 0
    assert card_of(tmp_path / "again")["skipped_held_out_videos"] == card["skipped_held_out_videos"]


@pytest.mark.parametrize("command, flags", [(finetune, HEAD), (linear_probe, ("--end_to_end",))])
def test_a_class_of_which_no_training_video_can_be_read_is_refused(colors, tmp_path, capsys, command, flags):
    rows = (colors / "train.csv").read_text().replace("train_5_", "gone_5_")
    (colors / "lost_class.csv").write_text(rows)
    assert command.main(arguments(colors, tmp_path, *flags, "--epochs", "1", "--skip_bad", "--train_csv",
                                  str(colors / "lost_class.csv"))) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "lost_class.csv: none of its training videos of the class of" in line and "gone_5_" in line
    assert not list(tmp_path.glob("**/*.pt")) and not (tmp_path / "result.json").exists()


def test_end_to_end_probe_trains_heads_of_all_levels_on_a_backbone_left_alone(colors, tmp_path):
    flags = arguments(colors, tmp_path, "--end_to_end", "--levels", "low,concat", "--epochs", "4", "--lr_decay", "3")
    assert linear_probe.main(flags) == 0
    card = card_of(tmp_path)
    assert card["metrics"] == {level: {"top1": 1.0, "mean_class": 1.0} for level in ("low", "concat")}
    assert card["settings"]["lr"] == 0.1 and card["settings"]["weight_decay"] == 1e-3
    assert [card["settings"][name] for name in ("optimizer", "momentum", "dropout")] == ["SGD", 0.9, None]
    state = load(tmp_path / "checkpoints/epoch_0004.pt")
    assert [group["momentum"] for group in state["optimizer"]["param_groups"]] == [0.9]
    for name, value in load_backbone("random", "r3d10", 0)[0].state_dict().items():
        assert torch.equal(state["model"][f"backbone.{name}"], value), name


def test_mistakes_are_one_line(colors, straight, tmp_path, capsys):
    def write(name: str, text: str) -> str:
        (colors / name).write_text(text)
        return str(colors / name)

    train, test = ((colors / f"{role}.csv").read_text() for role in ("train", "test"))
    newest = str(straight / "checkpoints/epoch_0003.pt")
    two_classes = write("two.csv", "".join(line for line in train.splitlines(True) if "_5_" not in line))
    two_test = write("two_test.csv", "test_0_0,4,0\n")
    other_split = write("other.csv", train.replace("train_0_0,4,0\n", ""))
    cases = [
        (["--test_csv", write("strange.csv", "test_0_0,1,0\ntest_1_0,1,77\n")], "label 77"),
        (["--test_csv", write("mixed.csv", "test_0_0,1,0\ntest_1_0,1\n")], "mixed.csv:2: 2 column(s)"),
        (["--train_batch", "13"], "12 usable video(s) do not fill one batch of 13"),
        (["--train_batch", "1"], "--train_batch 1"), (["--epochs", "0"], "--epochs 0"), (["--lr", "0"], "--lr 0"),
        (["--backbone_lr", "-1"], "--backbone_lr -1"), (["--dropout", "1"], "--dropout 1"), (["--wd", "-1"], "--wd -1"),
        (["--clips", "none"], "--clips none"), (["--val_holdout", "1"], "--val_holdout 1"), (["--seq", "4"], "--seq 4"),
        (["--train", "scratch", "--weights", newest], "--train scratch"),
        (["--weights", str(colors / "test.csv")], "test.csv: not a whole"),
        (["--train", "scratch", "--backbone_lr", "0.1"], "--backbone_lr 0.1: is for --train all"),
        (["--train", "head", "--backbone_lr", "0.1"], "--backbone_lr 0.1: is for --train all"),
        (["--out", str(straight)], "add --resume"),
        (["--out", str(straight), "--resume", "--crops", "5"], "holds the result of another test"),
        (["--out", str(straight), "--resume", "--test_csv", write("same.csv", test + "\n")], "holds the result of another"),
        (["--out", str(straight), "--resume", "--wd", "0.1"], "--wd 0.1: "),
        (["--out", str(straight), "--resume", "--lr_decay", "2"], "--lr_decay (2,): "),
        (["--out", str(straight), "--resume", "--seed", "1"], "--seed 1: "),
        (["--out", str(straight), "--resume", "--epochs", "2"], "--epochs 2: "),
        (["--out", str(straight), "--resume", "--weights", newest], f"started from other weights (random, not {newest})"),
        (["--out", str(straight), "--resume", "--train_csv", other_split], "another data set, split or --shots?"),
    ]
    tests = [
        (["--resume"], "--test_only"), (["--weights", newest], f"--weights {newest}: is for training"),
        (["--net", "r3d10"], "--net r3d10: is for training"), (["--lr", "0.1"], "--lr 0.1: is for training"),
        (["--train_csv", two_classes, "--test_csv", two_test], "has 2 classes, "),
        (["--train_csv", other_split], "another data set, split or --shots?"),
        (["--test_only", str(colors / "train.csv")], "train.csv: not a whole checkpoint"),
        (["--out", str(straight)], f"--out {straight}: holds a result already (result.json); name another for --test_only"),
    ]
    for given, message in ([(arguments(colors, tmp_path / "out", *more), message) for more, message in cases]
                           + [(checked(colors, tmp_path / "out", newest, *more), message) for more, message in tests]):
        assert finetune.main(given) == 2, given
        [line] = [line for line in capsys.readouterr().err.splitlines()
                  if not line.startswith("warning: --lr_decay") and "wrong number of frames (second column)" not in line]
        assert message in line and line.startswith("python -m eval.finetune: error: "), line
    with pytest.raises(SystemExit) as ended:
        finetune.main(arguments(colors, tmp_path / "out", "--lr_decay", "3,2"))
    [line] = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and "--lr_decay" in line and "increasing" in line
    probe = checked(colors, tmp_path / "out", newest, "--end_to_end")
    assert linear_probe.main(probe) == 2 and "its task is finetune, not linear_probe_end_to_end" in capsys.readouterr().err
