"""The table of benchmarks/gpu.py on a machine without a GPU, and the script that runs all that needs one."""
from __future__ import annotations

import os
import subprocess
from pathlib import Path

import torch

from benchmarks import gpu

ROOT = Path(__file__).resolve().parents[2]


def test_a_row_that_fails_leaves_the_others(monkeypatch, capsys) -> None:
    def time_step(mode: gpu.GpuMode, net: str, videos: int, turns: int) -> tuple[list[float], float]:
        if mode == gpu.BFLOAT16:
            raise RuntimeError("cuDNN error\nmore")
        if mode == gpu.PUBLISHED and videos > 16:
            raise torch.OutOfMemoryError("full")
        return [0.5, 0.5], 3.0

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, value in (("card_rate", lambda: 1e12), ("time_step", time_step), ("step_operations", lambda net: 10**10),
                        ("kernel_times", lambda *_: [("conv", 0.75), ("add", 0.25)])):
        monkeypatch.setattr(gpu, name, value)
    gpu.main(quick=True, _=Path())
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| r3d18 | float32 | 16 | 500 | 32 | 1.00x | 3.0 | 0 | 32% |"
    assert "| 64 | 500 | 128 | 4.00x |" in lines[3]
    assert lines[4].startswith("| r3d18 | bf16, channels last | failed | cuDNN error |") and lines[4].count("|") == 10
    assert "| `conv` | 750 | 75.0% |" in lines


def test_a_part_that_fails_leaves_the_others(tmp_path) -> None:
    """With a stand-in for the interpreter that fails in the tests."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\ncase "$*" in *pytest*) exit 3;; esac\n')
    python.chmod(0o755)
    done = subprocess.run(["bash", ROOT / "benchmarks/gpu.sh", tmp_path / "out", "tests", "bench"], text=True,
                          capture_output=True, env={**os.environ, "PYTHON": str(python)})
    status = (tmp_path / "out/status.txt").read_text().splitlines()
    assert done.returncode == 1 and [line.split(" after")[0] for line in status] == [
        "tests: exit status 3", "bench: exit status 0"]
    assert (tmp_path / "out/bench.log").read_text() == "-m benchmarks.gpu\n"
