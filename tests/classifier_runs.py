"""Short runs of finetuning and of the end-to-end probe: their flags, and what they leave."""
from __future__ import annotations

import csv
import json
from pathlib import Path

import torch

COLORS = [(230, 20, 20), (20, 230, 20), (20, 20, 230)]
LABELS = [0, 1, 5]  # with a gap
HEAD = ("--train", "head", "--lr", "0.01", "--dropout", "0.1")


def write_csv(path: Path, rows: list[tuple]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


def arguments(root: Path, out: Path | str, *more: str) -> list[str]:
    return ["--weights", "random", "--net", "r3d10", "--train_csv", str(root / "train.csv"), "--test_csv",
            str(root / "test.csv"), "--img_dim", "32", "--seq", "8", "--clips", "2", "--workers", "0", "--batch", "4",
            "--train_batch", "4", "--epochs", "3", "--lr_decay", "1,2", "--log_every", "1", "--gpu", "none",
            "--out", str(out), *more]


def checked(root: Path, out: Path, checkpoint: Path | str, *more: str) -> list[str]:
    return ["--test_only", str(checkpoint), "--train_csv", str(root / "train.csv"), "--test_csv",
            str(root / "test.csv"), "--img_dim", "32", "--seq", "8", "--clips", "2", "--workers", "0", "--batch", "4",
            "--gpu", "none", "--out", str(out), *more]


def card_of(out: Path) -> dict:
    return json.loads((out / "result.json").read_text())


def log_of(out: Path) -> list[dict]:
    """Lines of the log without what depends on the clock."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: x for name, x in line.items() if name not in ("samples_per_s", "data_wait")} for line in lines]


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def assert_same(left: object, right: object, where: str = "") -> None:
    """The same structure with the same bits."""
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for number, (a, b) in enumerate(zip(left, right)):
            assert_same(a, b, f"{where}/{number}")
    else:
        assert torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right, where
