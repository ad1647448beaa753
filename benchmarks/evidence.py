"""What pretraining learns: recipes, ablations and amounts of data on synthetic videos, for docs/evidence.md.

    python -m benchmarks.evidence WORK                                   every run that docs/evidence.jsonl lacks
    python -m benchmarks.evidence WORK --only motion,no_graph --seeds 0  some of them
    python -m benchmarks.evidence WORK --smoke                           all commands at a tiny size, results in WORK
    python -m benchmarks.evidence --write                                only puts the tables into docs/evidence.md

A run is a series of public commands, in WORK/NAME_seedS, each in one process with one thread. An interrupted run resumes: at
the newest checkpoint, or after the last evaluation that has its result. A finished run is one line of the results (commands,
seed, commit, what was measured), and its folder is deleted. A run is done if a line has its name, seed and commands; to
change the budget is therefore to run everything again, and lines with other commands are left out of the tables.
"""
from __future__ import annotations

import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.evidence_plan import (LEVELS, MOST_PER_CLASS, PER_CLASS, RECIPES, SHOTS, SHOTS_SEEDS, TEST_PER_CLASS,
                                      command_lines, num_videos, run_commands, training_flags)
from benchmarks.measure import insert_between_markers
from dataset.synthetic.actions import ARROW_OF_TIME, CLASSES
from eval.result_card import CARD, markdown_rows
from utils.cli import OneLineParser, check_values
from utils.errors import InputError, exit_status_of
from utils.figures import save_figure

ROOT = Path(__file__).resolve().parents[1]
RESULTS, DOCUMENT, README = ROOT / "docs" / "evidence.jsonl", ROOT / "docs" / "evidence.md", ROOT / "README.md"
SHOWN = {"random_rgb": "random, RGB", "published": "published recipe", "random_residual": "random, residual frames",
         "motion": "motion recipe", "motion_x3": "motion recipe, 42 epochs",
         "motion_swap_x3": "the same with swapped backgrounds"}  # in the README and the figure
MAIN = [name for name, recipe in RECIPES.items() if recipe.num_seeds == 3]
ABLATIONS = ["motion", *(name for name in RECIPES if name.startswith("no_"))]
DATA_SIZES = {0: "random_residual", 105: "videos_105", 225: "videos_225", 450: "motion", 900: "videos_900"}


def write_videos(folder: Path, smoke: bool) -> None:
    """Writes the synthetic videos and lists of the first videos of each class, which a smaller data set has too."""
    train, test = num_videos(MOST_PER_CLASS, smoke), num_videos(TEST_PER_CLASS, smoke)
    command = ["-m", "dataset.synthetic", str(folder), "--train_per_class", str(train), "--test_per_class", str(test)]
    if subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
        raise InputError(f"{folder}: the videos could not be written")
    head, *lines = (folder / "train.csv").read_text().splitlines()

    def write(name: str, wanted: Callable[[int, int], bool]) -> None:
        """Keeps the lines whose (label, number within the class) are `wanted`; a class has as many lines as the others."""
        each = len(lines) // len(CLASSES)
        kept = [line for index, line in enumerate(lines) if wanted(*divmod(index, each))]
        (folder / f"{name}.csv").write_text("\n".join([head, *kept]) + "\n")

    first = num_videos(PER_CLASS, smoke)
    for count in {num_videos(recipe.per_class, smoke) for recipe in RECIPES.values()}:
        write(f"first_{count}", lambda label, number: number < count)
    write("arrow_train", lambda label, number: CLASSES[label] in ARROW_OF_TIME and number < first)


def read_results(path: Path, smoke: bool = False) -> dict[tuple[str, int], dict[str, Any]]:
    """Returns (name, seed) -> line of the results, for the lines whose commands are those of today."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {(line["name"], line["seed"]): line for line in lines
            if line["name"] in RECIPES and line["commands"] == command_lines(line["name"], line["seed"], smoke)}


def git_commit() -> str:
    """Returns the commit of this checkout, "-dirty" with uncommitted changes other than those of results and page."""
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *(f":!{path}" for path in (RESULTS, DOCUMENT)))
    return git("rev-parse", "HEAD") + ("-dirty" if changed else "")


def rounded(values: Any) -> Any:
    """Returns nested values with numbers to four digits after the point."""
    if isinstance(values, dict):
        return {key: rounded(value) for key, value in values.items()}
    return round(values, 4) if isinstance(values, float) else values


class Runner:
    """Starts the commands of runs in WORK, several runs at a time, and records what they measured."""

    def __init__(self, work: Path, results: Path, smoke: bool) -> None:
        self.work, self.results, self.smoke = work, results, smoke
        self.lock, self.processes, self.failed = threading.Lock(), set(), []

    def call(self, words: Sequence[str], folder: Path, log: Path) -> int:
        """Returns the exit status of `python words`, with DATA and RUN replaced and its output appended to `log`."""
        paths = {"DATA/": f"{self.work / 'videos'}/", "RUN/": f"{folder}/"}
        for name, path in paths.items():
            words = [path + word.removeprefix(name) if word.startswith(name) else word for word in words]
        with open(log, "a") as output:
            process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
                                       env={**os.environ, "OMP_NUM_THREADS": "1"})
            self.processes.add(process)
            return process.wait()

    def run(self, name: str, seed: int) -> None:
        """Does what is left of a run; a command that fails is reported, and its run left as it is."""
        folder, begin, commit = self.work / f"{name}_seed{seed}", time.monotonic(), git_commit()
        commands, lines = run_commands(name, seed, self.smoke), command_lines(name, seed, self.smoke)
        plan = folder / "commands.json"
        if folder.exists() and not (plan.exists() and json.loads(plan.read_text()) == lines):
            shutil.rmtree(folder)  # begun with another budget
        folder.mkdir(parents=True, exist_ok=True)
        plan.write_text(json.dumps(lines))
        for step, words in commands.items():
            log = folder / f"{step}.txt"
            if not (folder / step / CARD).exists() and (status := self.call(words, folder, log)):
                self.failed.append(f"{name}, seed {seed}: {step} ended with exit status {status}; see {log}")
                print(self.failed[-1], flush=True)
                return
        cards = {step: json.loads((folder / step / CARD).read_text()) for step in commands if step != "train"}
        line = {"name": name, "seed": seed, "commit": commit, "minutes": round((time.monotonic() - begin) / 60, 1),
                "finished": time.strftime("%Y-%m-%d %H:%M"), "commands": lines,
                "device": cards["probe"]["device"], "test_videos": cards["probe"]["num_test_videos"],
                "measured": {step: rounded(card["metrics"]) for step, card in cards.items()}}
        if RECIPES[name].trained:
            epochs = [entry for entry in map(json.loads, (folder / "train/log.jsonl").read_text().splitlines())
                      if entry["kind"] == "epoch"]
            line["last_epoch"] = rounded(epochs[-1])
        with self.lock, open(self.results, "a") as file:
            file.write(json.dumps(line) + "\n")
        shutil.rmtree(folder)
        print(f"{name}, seed {seed}: {line['minutes']} min, probe {line['measured']['probe']['concat']['top1']:.3f}",
              flush=True)

    def run_all(self, runs: Iterable[tuple[str, int]], jobs: int) -> None:
        """Does the runs in their order, `jobs` at a time; on a signal, ends what runs (train.py after a checkpoint)."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        pool = ThreadPoolExecutor(jobs)
        try:
            for future in [pool.submit(self.run, *run) for run in runs]:
                future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in self.processes:
                process.terminate()


def cell(values: Sequence[float]) -> str:
    """Returns mean ± sample standard deviation in per cent, the mean alone of one value, "-" of none."""
    if not values:
        return "-"
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}"


def measured_rows(names: Iterable[str], results: dict[tuple[str, int], dict], columns: Sequence[tuple[str, str, str]],
                  ) -> list[list[str]]:
    """Returns rows of name, number of seeds and a cell for each of `columns`: (step, level, metric)."""
    rows = []
    for name in names:
        found = [line["measured"] for (run, _), line in sorted(results.items()) if run == name]
        rows.append([name, str(len(found)), *(cell([measured[step][level][metric] for measured in found])
                                              for step, level, metric in columns)])
    return rows


def tables_of(names: Sequence[str], results: dict[tuple[str, int], dict]) -> str:
    """Returns three tables with a row for each name: linear probe, retrieval, temporal order."""
    levels = (*LEVELS, "concat")
    measures = {"linear probe, top-1": [("probe", level, "top1") for level in levels],
                "retrieval, R@1": [("retrieval", level, "R@1") for level in levels],
                "temporal order, accuracy": [(f"order_{level}", level, "accuracy") for level in LEVELS]}
    return "\n\n".join(markdown_rows([[title, "seeds", *(level for _, level, _ in columns)],
                                      *measured_rows(names, results, columns)]) for title, columns in measures.items())


def data_table(results: dict[tuple[str, int], dict]) -> str:
    """Returns the table of unlabelled against labelled videos: linear probe at levels high and concat."""
    columns = [(step, level, "top1") for level in ("high", "concat")
               for step in (*(f"shots_{shots}" for shots in SHOTS), "probe")]
    shots = [*SHOTS, PER_CLASS] * 2
    rows = measured_rows(DATA_SIZES.values(), results, columns)
    return markdown_rows([["unlabelled videos", "seeds", *(f"{level}, {count} labels a class" for (_, level, _), count
                                                           in zip(columns, shots))],
                          *([str(count), *row[1:]] for count, row in zip(DATA_SIZES, rows))])


def setup_text(results: dict[tuple[str, int], dict]) -> str:
    """Returns what is generated about the runs: commands, their flags, chance and standard error."""
    train, test = PER_CLASS * len(CLASSES), TEST_PER_CLASS * len(CLASSES)
    arrow = TEST_PER_CLASS * len(ARROW_OF_TIME)
    error = {num: f"{100 * math.sqrt(0.25 / num):.1f}" for num in (test, arrow)}
    rows = []
    for name, recipe in RECIPES.items():
        schedule = training_flags(recipe, smoke=False)
        size = [str(schedule["--epoch"]), str(recipe.per_class * len(CLASSES))] if recipe.trained else ["-", "-"]
        rows.append([name, f"`{recipe.flags}`" if recipe.flags else "-", *size,
                     ", ".join(str(seed) for run, seed in sorted(results) if run == name) or "-"])
    commands = "\n".join(f"    {line}" for line in command_lines("motion", 0, smoke=False))
    return (f"{len(results)} runs; `python -m benchmarks.evidence WORK` does those that are missing. The commands of "
            f"`motion`, seed 0 (DATA: the synthetic videos, RUN: the run's folder):\n\n{commands}\n\n"
            f"{markdown_rows([['run', 'flags besides', 'epochs', 'unlabelled videos', 'seeds'], *rows])}\n\n"
            f"Values are per cent, mean ± sample standard deviation over the seeds. Probe and retrieval: {train} training "
            f"and {test} test videos of {len(CLASSES)} classes; chance is {100 / len(CLASSES):.1f}, and one standard error "
            f"of a value near 50 is {error[test]}. Temporal order: the {len(ARROW_OF_TIME)} classes that differ when "
            f"played backwards, {arrow} test videos; chance is 50, one standard error up to {error[arrow]}. Fewer labels: "
            f"the mean over {len(SHOTS_SEEDS.split(','))} draws of the labelled videos.")


def draw_probes(results: dict[tuple[str, int], dict]) -> Figure:
    """Returns a bar chart of the linear probe by level, for random weights and the recipes; whiskers: one deviation."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes, width = figure.subplots(), 0.8 / len(SHOWN)
    for number, (name, label) in enumerate(SHOWN.items()):
        found = [line["measured"]["probe"] for (run, _), line in results.items() if run == name]
        values = [[100 * measured[level]["top1"] for measured in found] for level in LEVELS]
        if found:
            axes.bar([level + number * width for level in range(len(LEVELS))], [statistics.mean(each) for each in values],
                     width, yerr=[statistics.stdev(each) if len(each) > 1 else 0 for each in values], label=label)
    axes.axhline(100 / len(CLASSES), color="gray", linestyle=":", label="chance")
    axes.set_xticks([level + width * (len(SHOWN) - 1) / 2 for level in range(len(LEVELS))], LEVELS)
    axes.set_ylabel("linear probe, top-1 (%)")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def readme_table(results: dict[tuple[str, int], dict]) -> str:
    """Returns the summary: linear probe and R@1 by level, for random weights and the recipes."""
    columns = [(step, level, metric) for step, metric in (("probe", "top1"), ("retrieval", "R@1")) for level in LEVELS]
    rows = measured_rows(SHOWN, results, columns)
    return markdown_rows([["weights", "seeds", *(f"{'probe' if step == 'probe' else 'R@1'}, {level}"
                                                 for step, level, _ in columns)],
                          *([SHOWN[row[0]], *row[1:]] for row in rows)])


def write_document(document: Path, readme: Path, results: dict[tuple[str, int], dict]) -> None:
    """Puts the tables between their markers, and draws the figure."""
    save_figure(draw_probes(results), document.with_suffix(".svg"))
    readme.write_text(insert_between_markers(readme.read_text(), "evidence", readme_table(results)))
    parts = {"setup": setup_text(results), "recipes": tables_of(MAIN, results), "ablations": tables_of(ABLATIONS, results),
             "data": data_table(results)}
    text = document.read_text()
    for name, body in parts.items():
        text = insert_between_markers(text, name, body)
    document.write_text(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 when all runs asked for are recorded, 2 after a one-line error, 1 if a command failed."""
    parser = OneLineParser(prog="python -m benchmarks.evidence", description=__doc__)
    add = parser.add_argument
    add("work", nargs="?", type=Path, metavar="WORK", help="folder of videos and unfinished runs")
    add("--only", metavar="NAME,...", help=f"these recipes, of {', '.join(RECIPES)} (default: all)")
    add("--seeds", default="0,1,2", metavar="SEED,...", help="these seeds of each recipe that has them")
    add("--jobs", type=int, default=2, metavar="N", help="runs at a time, each with one thread")
    add("--smoke", action="store_true", help="a tiny size, to try all commands; results in WORK/evidence.jsonl")
    add("--write", action="store_true", help="put the tables into docs/evidence.md, after the runs if there are any")
    flags = parser.parse_args(arguments)

    def work() -> int:
        names = flags.only.split(",") if flags.only else list(RECIPES)
        check_values({"--jobs": (flags.jobs, 1)})
        if unknown := [name for name in names if name not in RECIPES]:
            raise InputError(f"--only {flags.only}: {unknown[0]} is none of {', '.join(RECIPES)}")
        if not set(flags.seeds.split(",")) <= {"0", "1", "2"}:
            raise InputError(f"--seeds {flags.seeds}: must be of 0,1,2")
        if not (flags.work or flags.write) or flags.smoke and (flags.write or not flags.work):
            raise InputError("name WORK, or give --write, which --smoke does not go with")
        failed = []
        if flags.work:
            folder, results = flags.work.resolve(), flags.work.resolve() / "evidence.jsonl" if flags.smoke else RESULTS
            folder.mkdir(parents=True, exist_ok=True)
            done = read_results(results, flags.smoke)
            runs = [(name, seed) for seed in map(int, flags.seeds.split(",")) for name, recipe in RECIPES.items()
                    if name in names and seed < recipe.num_seeds and (name, seed) not in done]
            print(f"{len(runs)} runs to do", flush=True)
            write_videos(folder / "videos", flags.smoke)
            runner = Runner(folder, results, flags.smoke)
            runner.run_all(runs, flags.jobs)
            failed = runner.failed
        if flags.write:
            write_document(DOCUMENT, README, read_results(RESULTS))
        return 1 if failed else 0

    return exit_status_of(work, parser.prog)


if __name__ == "__main__":
    sys.exit(main())
