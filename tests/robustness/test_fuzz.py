"""Broken inputs are read or refused in one line: a few from tests/robustness/fuzz_inputs.py, which has the big numbers."""
from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.robustness.fuzz_inputs import fuzz, outcome
from tests.robustness.fuzz_kinds import Kind, kinds
from utils.errors import InputError

SEED = 20


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    import models.multilevel
    backbones = dict(models.multilevel.BACKBONES)
    yield kinds(folder), folder
    models.multilevel.BACKBONES.update(backbones)


@pytest.mark.parametrize(
    "name, number", [("csv", 100), ("list", 50), ("checkpoint", 100), ("foreign", 50), ("image", 100), ("video", 50),
                     ("shard", 200)])
def test_broken_inputs(every, name, number):
    by_name, folder = every
    outcomes = fuzz(by_name[name], name, SEED, list(range(number)), folder)
    assert len(outcomes) == number
    assert not {n: what for n, what in outcomes.items() if what not in ("read", "refused")}
    assert {"read", "refused"} == set(outcomes.values())


@pytest.mark.parametrize("name", ["csv", "list", "checkpoint", "foreign", "image", "video", "shard"])
def test_valid_inputs_are_read(every, name):
    by_name, folder = every
    for inputs, expected in ((by_name[name].valid, "read"), (by_name[name].refused, "refused")):
        for file_name, data in inputs.items():
            (folder / file_name).write_bytes(data)
            assert outcome(by_name[name], folder / file_name) == expected, file_name


def test_what_is_not_handled_is_found(tmp_path, monkeypatch):
    """An exception, two lines, an end of the interpreter and a hang: each is told, and what comes after is tried too."""
    import tests.robustness.fuzz_inputs
    monkeypatch.setattr(tests.robustness.fuzz_inputs, "LIMIT_S", 1)

    def read(path: Path) -> None:
        match path.read_bytes():
            case b"0":
                raise KeyError("gone")
            case b"1":
                raise InputError("two\nlines")
            case b"2":
                os.kill(os.getpid(), signal.SIGKILL)
            case b"3":
                while True:
                    pass
            case b"4":
                raise InputError("one line")

    kind = Kind({"a": b""}, lambda data, rng: data, read)
    monkeypatch.setattr(tests.robustness.fuzz_inputs, "broken_input",
                        lambda kind, name, seed, number: ("a", str(number).encode()))
    told = fuzz(kind, "a", 0, list(range(6)), tmp_path)
    assert told[0].startswith("KeyError") and told[1].startswith("not one line")
    assert told[2] == "the interpreter ended with -9" and told[3] == "hang"
    assert told[4] == "refused" and told[5] == "read"
