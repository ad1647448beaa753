from __future__ import annotations

import itertools

import pytest
import torch

from benchmarks import measure
from benchmarks.measure import (HeldMemory, insert_between_markers, milliseconds, peak_mib, print_table, ratio,
                                time_in_turns)


def test_jobs_run_in_turns_and_the_first_turn_is_not_counted() -> None:
    calls: list[str] = []
    ticks = itertools.count()
    seconds = time_in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, lambda: next(ticks), 2)
    assert calls == ["a", "b"] * 4
    assert seconds == {"a": [0.5] * 3, "b": [0.5] * 3}


def test_ratio_is_the_median_over_turns() -> None:
    assert ratio([4, 10, 90], [2, 2, 3]) == 5
    assert milliseconds([0.5, 0.001234, 7]) == "500" and milliseconds([0.0012345]) == "1.23"


def test_a_timed_table_compares_with_the_baseline(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"slow": [0.2, 0.4], "fast": [0.1, 0.1]}
    monkeypatch.setattr(measure, "time_in_turns", lambda jobs, turns, units: seconds)
    assert measure.print_timed_table(["job", "ms", "speed"], {}, 2, "slow", lambda _name, _times, speed: [speed]) == seconds
    assert capsys.readouterr().out.splitlines()[2:] == ["| slow | 300 | 1.0 |", "| fast | 100 | 3.0 |", ""]


def test_temporary_memory_of_a_job_counts() -> None:
    assert 60 < peak_mib("size = 2**24", "torch.ones(size).sum()") < 100  # 64 MiB
    with HeldMemory() as memory:
        kept = torch.ones(1000) + 1
        torch.ones(5000) + kept[:1]
    assert memory.held_bytes() == 4000
    del kept
    assert memory.held_bytes() == 0


def test_a_table_goes_between_its_markers_and_nowhere_else(capsys: pytest.CaptureFixture) -> None:
    print_table(["p", "q"], [[1, "2x"]])
    document = "x\n<!-- a begin -->\nold\n<!-- a end -->\ny\n<!-- b begin -->\n<!-- b end -->\n"
    once = insert_between_markers(document, "a", capsys.readouterr().out)
    assert once == ("x\n<!-- a begin -->\n| p | q |\n| --- | ---: |\n| 1 | 2x |\n<!-- a end -->\ny\n"
                    "<!-- b begin -->\n<!-- b end -->\n")
    assert insert_between_markers(once, "a", "old") == document
    with pytest.raises(ValueError, match="c begin"):
        insert_between_markers(document, "c", "text")
