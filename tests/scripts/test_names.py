"""Names that a locale, a terminal or matplotlib takes for something else; and output that nobody reads to its end."""
from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from utils.figures import new_figure, save_figure

ROOT = Path(__file__).resolve().parents[2]
NAME = "Ünïcode_日本"
# Without UTF-8 mode and coercion, Python takes names of files for ASCII, as it takes them for Latin-1 under that locale.
ASCII = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}


def make_frames(folder: bytes) -> None:
    os.makedirs(folder)
    for number in range(1, 4):
        with open(folder + b"/image_%05d.jpg" % number, "wb") as file:
            file.write(b"x")


def run(*arguments: str, **settings: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, timeout=60, **settings)


@pytest.mark.parametrize("environment", [ASCII, {**os.environ, "PYTHONIOENCODING": "latin-1"}])
def test_names_are_utf8_in_every_locale(tmp_path, environment):
    for label in ("a", NAME):
        make_frames(os.fsencode(tmp_path / "videos" / label / f"v_{label}"))
    made = run("scripts/make_csv.py", "folder", str(tmp_path / "videos"), "--out", str(tmp_path / NAME), env=environment)
    assert made.returncode == 0 and not made.stderr, made.stderr
    assert f"{NAME}/v_{NAME},3" in (tmp_path / NAME / "pretrain.csv").read_text(encoding="utf-8")
    checked = run("scripts/check_data.py", str(tmp_path / NAME / "pretrain.csv"), env=environment)
    assert b"Traceback" not in checked.stderr and checked.returncode == 0, checked.stdout + checked.stderr


def test_a_name_that_is_not_utf8_is_one_line(tmp_path):
    make_frames(os.fsencode(tmp_path) + b"/videos/a/v_\xe9")
    made = run("scripts/make_csv.py", "folder", str(tmp_path / "videos"), "--out", str(tmp_path / "out"))
    assert made.returncode == 2 and made.stderr.count(b"\n") == 1 and b"v_\\udce9" in made.stderr, made.stderr


@pytest.mark.parametrize("arguments", [("scripts/make_csv.py", "--help"), ("train.py", "--help"),
                                       ("scripts/make_csv.py", "folder", "TREE", "--out", "OUT")])
def test_output_that_nobody_reads_ends_quietly(tmp_path, arguments):
    make_frames(os.fsencode(tmp_path / "videos/a/v"))
    paths = {"TREE": str(tmp_path / "videos"), "OUT": str(tmp_path / "out")}
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run([sys.executable, *(paths.get(text, text) for text in arguments)], cwd=ROOT, stdout=writer,
                            stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0 if "--help" in arguments else 141, b"")


def test_text_of_figures_is_drawn_as_it_is_written(tmp_path):
    warnings.simplefilter("error")  # about characters that the font lacks, too
    figure = new_figure(f"runs/\udce9 $\\frac$ {NAME}")
    axes = figure.subplots()
    axes.set_xticks([0, 1], ["cost $x^$", "$\\frac$"])
    save_figure(figure, tmp_path / "figure.svg")
    text = (tmp_path / "figure.svg").read_text()
    save_figure(figure, tmp_path / "figure.png")
    assert "cost $x^$" in text and "runs/\\udce9 $\\frac$" in text
