"""The structure of the code: imports run one way, folders and files stay small, and no two public names are alike."""
from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ABOVE = {"train", "eval", "visualization", "scripts", "tests", "benchmarks"}
FORBIDDEN = {
    "utils": {"dataset", "models", *ABOVE},
    "dataset": {"models", *ABOVE},
    "models": {"dataset", "utils", "torch.distributed", *ABOVE},
    "eval": ABOVE - {"eval"},
    "visualization": ABOVE - {"eval", "visualization"},
}
PRODUCT = ("dataset", "eval", "models", "scripts", "utils", "visualization")
MAX_FILES, MAX_LINES, MAX_OPENED = 14, 450, 30


def product_files() -> list[Path]:
    """Every Python file of the product."""
    return [ROOT / "train.py", *(path for folder in PRODUCT for path in sorted((ROOT / folder).rglob("*.py")))]


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


@pytest.mark.parametrize("line", ["import torch.distributed as dist", "from torch import distributed",
                                  "from torch.distributed import all_gather",
                                  "import torch\ntorch.distributed.barrier()"])
def test_every_form_of_import_is_detected(line, tmp_path):
    (tmp_path / "x.py").write_text(line)
    assert any(name.startswith("torch.distributed") for name in imported(tmp_path / "x.py"))


def test_train_imports_nothing_of_eval_but_the_monitor_and_initial_weights():
    assert {name for name in imported(ROOT / "train.py") if name.startswith("eval")} <= {
        "eval.monitor", "eval.monitor.ClipSettings", "eval.monitor.Monitor", "eval.features.backbone",
        "eval.features.backbone.load_initial_weights"}


def test_folders_and_files_stay_small():
    tracked = [ROOT / name for name in subprocess.run(
        ["git", "ls-files", *PRODUCT], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()]
    folders = defaultdict(list)
    for path in tracked:
        if path.exists():
            folders[path.parent].append(path.name)
    assert {folder: names for folder, names in folders.items() if len(names) > MAX_FILES} == {}
    lines = {path: len(path.read_text().splitlines()) for path in product_files()}
    assert {path: count for path, count in lines.items() if count > MAX_LINES} == {}


@pytest.mark.parametrize("module", ["train", "eval.linear_probe"])
def test_a_program_opens_few_files(module):
    """Counted in a fresh process: files of this repository that importing the program loads, empty ones aside."""
    program = (f"import sys; import {module}\n"
               "print(*{m.__file__ for m in list(sys.modules.values()) if getattr(m, '__file__', None)}, sep='\\n')")
    printed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    opened = [path for path in map(Path, printed.splitlines())
              if path.is_relative_to(ROOT) and ".venv" not in path.parts and path.stat().st_size]
    assert len(opened) <= MAX_OPENED, sorted(str(path.relative_to(ROOT)) for path in opened)
    if module == "train":
        assert not [path for path in opened if path.parent.name == "eval"]


def test_no_two_public_names_are_alike():
    places = defaultdict(list)
    for path in product_files():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") and node.name != "main":
                places[node.name].append(str(path.relative_to(ROOT)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
