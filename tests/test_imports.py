"""Imports run one way: utils <- dataset, models <- eval <- train, visualization <- scripts."""
from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ABOVE = {"train", "eval", "visualization", "scripts", "tests"}
FORBIDDEN = {
    "utils": {"dataset", "models", *ABOVE},
    "dataset": {"models", *ABOVE},
    "models": {"dataset", "utils", "torch.distributed", *ABOVE},
    "eval": ABOVE - {"eval"},
    "visualization": ABOVE - {"eval", "visualization"},
}


def imported(path: Path) -> set[str]:
    """Every module that the file imports, anywhere in it, and every dotted name of torch.distributed that it uses."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch."):
            names.add(ast.unparse(node))
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_run_one_way(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            broken = [wrong for wrong in FORBIDDEN[package] if name == wrong or name.startswith(f"{wrong}.")]
            assert not broken, f"{path.relative_to(ROOT)} imports {name}"


def test_the_check_sees_each_form(tmp_path):
    for line in ("import torch.distributed as dist", "from torch import distributed",
                 "from torch.distributed import all_gather", "import torch\ntorch.distributed.barrier()"):
        (tmp_path / "x.py").write_text(line)
        assert any(name.startswith("torch.distributed") for name in imported(tmp_path / "x.py")), line


def test_pretraining_loads_few_files_and_no_evaluation():
    """At most 30 files of this project, train.py among them; the monitor's are loaded only where it is used."""
    script = "import sys, train; print(*(m.__file__ for m in list(sys.modules.values()) if getattr(m, '__file__', None)))"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = [path for path in map(Path, loaded.split()) if path.is_relative_to(ROOT) and ".venv" not in path.parts
             and path.stat().st_size]
    assert len(files) <= 30 and not [path for path in files if path.is_relative_to(ROOT / "eval")], files
