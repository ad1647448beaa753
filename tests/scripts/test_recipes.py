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
RECIPES = sorted((ROOT / "scripts/recipes").glob("*_*.sh"))
PUBLISHED = {
    "pretrain_kinetics400": "train.py --train_batch 64 --workers 8 --cluster 1000 --epoch 100 --lr_decay 70 --thres 0.05 "
                            "--csv_file kinetics.csv --multiprocessing-distributed --split 20",
    "pretrain_ucf101": "train.py --train_batch 64 --workers 8 --cluster 200 --epoch 300 --lr_decay 200 -thres 0.05 "
                       "--csv_file ucf_pretrain.csv --multiprocessing-distributed --split 50",
}


def dry_run(recipe: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(["bash", str(recipe)], capture_output=True, text=True,
                          env={**os.environ, "PYTHON": sys.executable, "DRY_RUN": "1", **environment})


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_flag_of_a_recipe_is_valid(recipe):
    result = dry_run(recipe, CHECKPOINT="runs/a b/epoch_0100.pt")
    commands = re.findall(r"^\+ python (.*)$", result.stdout, re.MULTILINE)
    assert result.returncode == 0 and len(commands) == result.stdout.count("the flags are valid") >= 1, result.stderr
    if recipe.stem in PUBLISHED:
        assert commands == [PUBLISHED[recipe.stem]]
    else:
        assert all("--weights runs/a b/epoch_0100.pt" in command and "--splits 1,2,3" in command for command in commands)


@pytest.mark.parametrize("name", ["pretrain_ucf101", "finetune_ucf101", "probe_hmdb51", "retrieval_hmdb51"])
def test_a_wrong_flag_is_refused(name, tmp_path):
    shutil.copytree(ROOT / "scripts/recipes", tmp_path / "scripts/recipes")
    for part in ("train.py", "dataset", "eval", "models", "utils"):
        (tmp_path / part).symlink_to(ROOT / part)
    recipe = tmp_path / "scripts/recipes" / f"{name}.sh"
    recipe.write_text(recipe.read_text().replace(" --multiprocessing-distributed", " --multiprocessing_distributed"))
    result = dry_run(recipe, CHECKPOINT="a.pt")
    assert result.returncode == 2 and "--multiprocessing_distributed" in result.stderr.splitlines()[-1]


def test_the_weights_must_be_given():
    environment = {name: value for name, value in os.environ.items() if name != "CHECKPOINT"}
    result = subprocess.run(["bash", str(ROOT / "scripts/recipes/finetune_ucf101.sh")], env=environment, capture_output=True,
                            text=True)
    assert result.returncode != 0 and "CHECKPOINT" in result.stderr and result.stderr.count("\n") == 1
