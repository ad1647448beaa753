"""The recipes of benchmarks.evidence, and the commands of a run."""
from __future__ import annotations

from typing import Any, NamedTuple

from dataset.synthetic.actions import CLASSES

# The budget: flags of train.py, which every recipe shares, and of the evaluations.
BASE = {"--net": "r3d10", "--img_dim": 32, "--train_batch": 30, "--cluster": 60, "--epoch": 14, "--split": 7,
        "--lr_decay": 12, "--queue": 300, "--queue_start": 5, "--amp": "bf16", "--workers": 0, "--save_every": 1000}
SCALED = ("--epoch", "--split", "--lr_decay", "--queue_start")  # with the number of steps
EVALUATION = {"--clips": 4, "--amp": "bf16"}
ORDER = {"--clips": 2, "--epoch": 200, "--lr": 0.01, "--lr_decay": 150}
PER_CLASS, MOST_PER_CLASS, TEST_PER_CLASS = 30, 60, 10  # videos: usual training set, largest one, test set
SHOTS, SHOTS_SEEDS = (3, 10), "0,1,2"  # labelled videos of a class, besides PER_CLASS
SMOKE_BASE = {"--img_dim": 32, "--train_batch": 15, "--cluster": 10, "--epoch": 2, "--split": 1, "--lr_decay": 1,
              "--queue": 30, "--queue_start": 1}
SMOKE_SHARE = 5  # of the videos of each class, one in so many
LEVELS = ("low", "mid", "high")


class Recipe(NamedTuple):
    """What distinguishes a run from the others, seed aside."""

    flags: str               # of train.py besides BASE; of the evaluations for random weights
    trained: bool = True
    times: int = 1           # the usual number of steps
    per_class: int = PER_CLASS
    few_shot: bool = False   # also probe with SHOTS
    num_seeds: int = 3


CLIP_COLOR = "--color_draws clip"
MOTION = f"{CLIP_COLOR} --input residual"
SWAP = f"{MOTION} --swap_background 0.5"
RECIPES = {  # in the order in which they run, all of seed 0 first
    "random_rgb": Recipe("--input rgb", trained=False),
    "random_residual": Recipe("--input residual", trained=False, few_shot=True),
    "published": Recipe(""),
    "clip_color": Recipe(CLIP_COLOR),
    "motion": Recipe(MOTION, few_shot=True),
    "motion_swap": Recipe(SWAP),
    "motion_x3": Recipe(MOTION, times=3),
    "no_graph": Recipe(f"{MOTION} --loss_weights graph=0", num_seeds=2),
    "no_prototype": Recipe(f"{MOTION} --loss_weights prototype=0", num_seeds=2),
    "no_reversed": Recipe(f"{MOTION} --reversed_negatives off", num_seeds=2),
    "no_timestamp": Recipe(f"{MOTION} --loss_weights timestamp=0", num_seeds=2),
    "no_low_mid": Recipe(f"{MOTION} --loss_weights low=0,mid=0", num_seeds=2),
    "videos_105": Recipe(MOTION, per_class=7, few_shot=True, num_seeds=2),
    "videos_225": Recipe(MOTION, per_class=15, few_shot=True, num_seeds=2),
    "videos_900": Recipe(MOTION, per_class=60, few_shot=True, num_seeds=2),
    "motion_swap_x3": Recipe(SWAP, times=3),
}

def num_videos(per_class: int, smoke: bool) -> int:
    """Returns the videos of a class that stand for `per_class`."""
    return max(1, per_class // SMOKE_SHARE) if smoke else per_class


def flag_words(flags: dict[str, Any]) -> list[str]:
    """Returns {"--flag": value} as words of a command line."""
    return [str(word) for pair in flags.items() for word in pair]


def training_flags(recipe: Recipe, smoke: bool) -> dict[str, Any]:
    """Returns BASE with the schedule stretched to the recipe's number of steps, whatever the number of videos."""
    base = BASE | (SMOKE_BASE if smoke else {})
    usual, own = (num_videos(per_class, smoke) * len(CLASSES) // base["--train_batch"]  # steps of an epoch
                  for per_class in (PER_CLASS, recipe.per_class))
    return base | {name: round(base[name] * recipe.times * usual / own) for name in SCALED}


def run_commands(name: str, seed: int, smoke: bool = False) -> dict[str, list[str]]:
    """Returns step -> words after `python`; DATA is the folder of the videos, RUN that of the run."""
    recipe, shared = RECIPES[name], {"--seed": seed, "--workers": 0}
    base = training_flags(recipe, smoke)
    commands, weights = {}, ["--weights", "random", "--net", base["--net"], *recipe.flags.split()]
    if recipe.trained:
        base = {"--csv_file": f"DATA/first_{num_videos(recipe.per_class, smoke)}.csv", "--out": "RUN/train"} | base
        commands["train"] = ["train.py", *flag_words(base | {"--seed": seed}), "--channels_last", *recipe.flags.split(),
                             "--resume"]
        weights = ["--weights", f"RUN/train/checkpoints/epoch_{base['--epoch']:04d}.pt"]
    clips = {**shared, "--img_dim": base["--img_dim"], "--feature_dir": "RUN/features"}
    videos = {"--train_csv": f"DATA/first_{num_videos(PER_CLASS, smoke)}.csv", "--test_csv": "DATA/test.csv"}
    features = [*weights, *flag_words(videos | clips | EVALUATION), "--levels", ",".join((*LEVELS, "concat"))]
    commands["probe"] = ["-m", "eval.linear_probe", *features, "--out", "RUN/probe"]
    commands["retrieval"] = ["-m", "eval.retrieval", *features, "--out", "RUN/retrieval"]
    videos = {"--train_csv": "DATA/arrow_train.csv", "--test_csv": "DATA/arrow_test.csv"}
    for level in LEVELS:
        commands[f"order_{level}"] = ["-m", "visualization.main_temporal", *weights, *flag_words(videos | clips | ORDER),
                                      "--level", level, "--out", f"RUN/order_{level}", "--resume"]
    for shots in SHOTS if recipe.few_shot else ():
        drawn = {"--shots": 2 if smoke else shots, "--shots_seeds": SHOTS_SEEDS, "--out": f"RUN/shots_{shots}"}
        commands[f"shots_{shots}"] = ["-m", "eval.linear_probe", *features, *flag_words(drawn)]
    return commands


def command_lines(name: str, seed: int, smoke: bool) -> list[str]:
    """Returns the commands of a run as they are recorded."""
    return [" ".join(["python", *words]) for words in run_commands(name, seed, smoke).values()]
