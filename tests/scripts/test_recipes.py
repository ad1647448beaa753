"""Recipes of the published runs: every flag is one that its command takes."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("retrieval", "probe", "end_to_end", "finetune")
RECIPES = ["pretrain_kinetics400.sh", "pretrain_ucf101.sh", "pretrain_motion.sh",
           *(f"downstream.sh hmdb51 {task}" for task in TASKS)]
PUBLISHED = {
    "pretrain_kinetics400": "train.py --train_batch 64 --workers 8 --cluster 1000 --epoch 100 --lr_decay 70 --thres 0.05 "
                            "--csv_file kinetics.csv --multiprocessing-distributed --split 20",
    "pretrain_ucf101": "train.py --train_batch 64 --workers 8 --cluster 200 --epoch 300 --lr_decay 200 -thres 0.05 "
                       "--csv_file ucf_pretrain.csv --multiprocessing-distributed --split 50",
}


def dry_run(root: Path, recipe: str, **environment: str) -> subprocess.CompletedProcess:
    name, *arguments = recipe.split()
    return subprocess.run(["bash", str(root / "scripts/recipes" / name), *arguments], capture_output=True, text=True,
                          env={**os.environ, "PYTHON": sys.executable, "DRY_RUN": "1", **environment})


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_flag_of_a_recipe_is_valid(recipe):
    lists = {"CSV": "my videos.csv"} if "motion" in recipe else {}
    result = dry_run(ROOT, recipe, CHECKPOINT="runs/a b/epoch_0100.pt", **lists)
    commands = re.findall(r"^\+ python (.*)$", result.stdout, re.MULTILINE)
    assert result.returncode == 0 and len(commands) == result.stdout.count("the flags are valid") >= 1, result.stderr
    if "motion" in recipe:
        assert "--input residual --color_draws clip --swap_background 0.5" in commands[0]
        assert "--csv_file my videos.csv" in commands[0]
    elif "pretrain" in recipe:
        assert commands == [PUBLISHED[recipe.removesuffix(".sh")]]
    else:
        assert all("--weights runs/a b/epoch_0100.pt" in command
                   and "csv/hmdb51/train_{split}.csv" in command and "--splits 1,2,3" in command for command in commands)


@pytest.mark.parametrize("recipe", ["pretrain_ucf101.sh", "downstream.sh ucf101 finetune"])
def test_a_wrong_flag_is_refused(recipe, tmp_path):
    shutil.copytree(ROOT / "scripts/recipes", tmp_path / "scripts/recipes")
    for part in ("train.py", "dataset", "eval", "models", "utils"):
        (tmp_path / part).symlink_to(ROOT / part)
    script = tmp_path / "scripts/recipes" / recipe.split()[0]
    script.write_text(script.read_text().replace(" --multiprocessing-distributed", " --multiprocessing_distributed"))
    result = dry_run(tmp_path, recipe, CHECKPOINT="a.pt")
    assert result.returncode == 2 and "--multiprocessing_distributed" in result.stderr.splitlines()[-1]


def test_a_missing_or_wrong_argument_is_one_line():
    for recipe, checkpoint, named in (("downstream.sh ucf101 probe", "", "CHECKPOINT"),
                                      ("downstream.sh ucf101", "a", "finetune"),
                                      ("downstream.sh ucf101 cam", "a", "cam: must be"),
                                      ("pretrain_motion.sh", "a", "CSV")):
        result = dry_run(ROOT, recipe, CHECKPOINT=checkpoint)
        assert result.returncode != 0 and named in result.stderr and result.stderr.count("\n") == 1
