"""Which checkpoints of a classifier can be resumed or tested, and requests to stop."""
from __future__ import annotations

import csv
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset.records import VideoRecord
from eval import finetune
from eval.classifier import training as classifier_training
from eval.features.backbone import load_backbone
from eval.classifier.evaluate import digest_videos
from tests.classifier_runs import HEAD, arguments, card_of, checked, load, write_csv
from utils.errors import STOPPED


def link_videos(colors: Path, root: Path, copies: tuple[str, ...]) -> None:
    """Lists train.csv and test.csv of folders frames/train/v_0, ... and frames/test/v_0, ...: names that repeat.

    In `root` and then in each folder of `copies`.
    """
    for folder in (root, *(root / copy for copy in copies)):
        for role in ("train", "test"):
            (folder / f"frames/{role}").mkdir(parents=True)
            rows = []
            for number, (name, frames, label) in enumerate(
                    row for label in "015" for row in list(csv.reader((colors / "train.csv").read_text().splitlines()))
                    if row[2] == label and row[0][-1] in ("01" if role == "train" else "23")):
                (folder / f"frames/{role}/v_{number}").symlink_to(colors / name)
                rows.append((f"frames/{role}/v_{number}", min(int(frames), 4), label))
            write_csv(folder / f"{role}.csv", rows)


def test_training_and_test_videos_of_one_name_cannot_be_swapped_but_the_data_set_can_be_moved(colors, tmp_path, capsys):
    link_videos(colors, tmp_path, ("moved",))
    run = tmp_path / "run"
    assert finetune.main(arguments(tmp_path, run, *HEAD, "--epochs", "1")) == 0
    newest = run / "checkpoints/epoch_0001.pt"
    swapped = ["--train_csv", str(tmp_path / "test.csv"), "--test_csv", str(tmp_path / "train.csv")]
    for given in (checked(tmp_path, tmp_path / "out", newest, *swapped),
                  arguments(tmp_path, tmp_path / "out", *HEAD, "--resume", str(newest), *swapped)):
        capsys.readouterr()
        assert finetune.main(given) == 2
        assert "lists other videos or labels than" in capsys.readouterr().err
    assert finetune.main(checked(tmp_path / "moved", tmp_path / "out", newest)) == 0
    assert card_of(tmp_path / "out")["metrics"] == card_of(run)["metrics"]
    assert finetune.main(arguments(tmp_path / "moved", run, *HEAD, "--epochs", "2", "--resume")) == 0


def test_digest_depends_on_folders_and_not_on_where_they_lie():
    def videos(*paths: str) -> list[VideoRecord]:
        return [VideoRecord(path, 4, 0) for path in paths]

    train, test = videos("/a/train/x", "/a/train/y"), videos("/a/test/x", "/a/test/y")
    digest = digest_videos(train, test)
    assert digest == digest_videos(videos("/b/c/train/x", "/b/c/train/y"), videos("/b/c/test/z"))
    for other in (digest_videos(test, train), digest_videos(train[::-1], test), digest_videos(train[:1], test),
                  digest_videos([train[0], VideoRecord("/a/train/y", 4, 1)], test)):
        assert other != digest


def test_a_run_is_not_resumed_with_other_numbers_of_frames_but_may_be_tested(colors, straight, tmp_path, capsys):
    newest = straight / "checkpoints/epoch_0003.pt"
    rows = [(str(colors / name), frames, label) for name, frames, label in
            csv.reader((colors / "train.csv").read_text().splitlines())]
    rows[5] = (rows[5][0], int(rows[5][1]) - 1, rows[5][2])
    write_csv(tmp_path / "train.csv", rows)
    other = ["--train_csv", str(tmp_path / "train.csv")]
    assert finetune.main(arguments(colors, tmp_path / "out", "--resume", str(newest), *other)) == 2
    count, line = capsys.readouterr().err.splitlines()
    assert "wrong number of frames (second column) in 1 of 12 videos" in count
    assert "train.csv: has other numbers of frames than" in line
    assert finetune.main(checked(colors, tmp_path / "out", newest, *other)) == 0


def drop_weight(state):
    del state["model"]["backbone.stem.1.weight"]


def reshape_weight(state):
    state["model"]["heads.high.1.weight"] = torch.zeros(3, 5)


def drop_setting(state):
    del state["optimizer"]["param_groups"][0]["base_lr"]


def drop_flag(name):
    def damage(state):
        del state["flags"][name]

    damage.__name__ = f"no flag {name}"
    return damage


def change(name, value):
    def damage(state):
        state[name] = value

    damage.__name__ = f"{name}={value}"
    return damage


def drop(name):
    def damage(state):
        del state[name]

    damage.__name__ = f"no {name}"
    return damage


BOTH = [(drop_weight, "1 missing: backbone.stem.1.weight"),
        (reshape_weight, "1 of another shape: heads.high.1.weight (3, 5)"),
        (change("model", {}), "missing: backbone"),
        (change("model", [1]), "damaged, or no classifier"), (change("weights", {}), "it lacks '"),
        (change("epochs_done", "3"), "'str' and 'int'"), (change("levels", None), "its levels are None"),
        (drop("videos"), "it lacks 'videos'"), (change("kind", "model"), "kind 'model'")]
ON_TEST = [(change("flags", {}), "it lacks 'epochs'"), (change("progress", {}), "it lacks 'bad_videos'"),
           (drop_flag("dropout"), "it lacks 'dropout'"), (drop_flag("val_holdout"), "it lacks 'val_holdout'"),
           (drop_flag("img_dim"), "it lacks 'img_dim'"), (change("trained_on", torch.zeros(1)), "Tensor")]
ON_RESUME = [(change("flags", {}), "was trained with None"), (change("optimizer", {}), "it lacks 'param_groups'"),
             (drop_setting, "it lacks 'base_lr'"), (change("random", [{}]), "it lacks 'cpu'"),
             (change("random", []), "was trained by 0 process(es)")]


@pytest.mark.parametrize("damage, message", BOTH + ON_RESUME + ON_TEST, ids=lambda value: getattr(value, "__name__", ""))
def test_a_damaged_checkpoint_is_one_line(colors, straight, tmp_path, capsys, damage, message):
    state, path = load(straight / "checkpoints/epoch_0003.pt"), tmp_path / "damaged.pt"
    damage(state)
    torch.save(state, path)
    resume = arguments(colors, tmp_path / "resumed", "--resume", str(path), "--epochs", "4")
    test = checked(colors, tmp_path / "tested", path)
    for given in [resume] * ((damage, message) not in ON_TEST) + [test] * ((damage, message) not in ON_RESUME):
        assert finetune.main(given) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("python -m eval.finetune: error: ") and str(path) in line and message in line, line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_request_to_stop_after_the_last_step_counts(colors, tmp_path, monkeypatch, capsys, number):
    write = classifier_training.save_checkpoint
    monkeypatch.setattr(classifier_training, "save_checkpoint", lambda *given: (write(*given), os.kill(os.getpid(), number)))
    flags = arguments(colors, tmp_path, *HEAD, "--epochs", "1")
    assert finetune.main(flags) == STOPPED
    assert "stopped after epoch 1 of 1, before the test" in capsys.readouterr().out
    assert not (tmp_path / "result.json").exists()
    monkeypatch.undo()
    assert finetune.main([*flags, "--resume"]) == 0 and card_of(tmp_path)["epochs_done"] == 1


def test_the_scaling_of_imported_weights_is_kept_for_the_test(colors, tmp_path):
    scale = {"mean": [0.1, 0.9, 0.3], "std": [0.1, 0.5, 0.9]}
    torch.save({"format": "mfo", "kind": "backbone", "net": "r3d10", "input": scale,
                "model": load_backbone("random", "r3d10", 0)[0].state_dict()}, tmp_path / "theirs.pt")
    flags = arguments(colors, tmp_path / "run", *HEAD, "--epochs", "2", "--weights", str(tmp_path / "theirs.pt"))
    assert finetune.main(flags) == 0
    assert finetune.main(checked(colors, tmp_path / "again", tmp_path / "run/checkpoints/epoch_0002.pt")) == 0
    assert card_of(tmp_path / "again")["input"] == card_of(tmp_path / "run")["input"] == {**scale, "frames": "rgb"}
    trained, tested = (np.load(tmp_path / name / "probabilities_high.npz") for name in ("run", "again"))
    assert np.array_equal(trained["probabilities"], tested["probabilities"])
