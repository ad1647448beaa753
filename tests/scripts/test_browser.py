"""tests/browser.sh: which browser it finds, and what test.sh does without one."""
from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return path


def run(script: Path, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    """Run with nothing on PATH but `folder` and copies of what the scripts need."""
    for name in ("bash", "dirname", "tr", "cat"):
        if not (folder / name).exists():
            (folder / name).symlink_to(shutil.which(name))
    environment = {"PATH": str(folder), "HOME": str(folder), **variables}
    return subprocess.run([str(folder / "bash"), str(script)], env=environment, capture_output=True, text=True)


def test_the_first_that_starts_is_used(tmp_path):
    program(tmp_path / "bin" / "id", "echo 1000")
    program(tmp_path / "bin" / "chromium-browser", "exit 1")  # a stub that only prints what to install
    chrome = program(tmp_path / "bin" / "google-chrome", "echo Chrome 1")
    done = run(ROOT / "tests/browser.sh", tmp_path / "bin")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(chrome), "")
    own = program(tmp_path / "own", "echo Chromium 2")
    assert run(ROOT / "tests/browser.sh", tmp_path / "bin", CHROMIUM=str(own)).stdout.strip() == str(own)


def test_no_browser_is_a_one_line_error(tmp_path):
    program(tmp_path / "bin" / "id", "echo 1000")
    done = run(ROOT / "tests/browser.sh", tmp_path / "bin")
    assert done.returncode == 1 and not done.stdout
    assert "no chromium" in done.stderr and done.stderr.count("\n") == 1
    done = run(ROOT / "tests/browser.sh", tmp_path / "bin", CHROMIUM="/nowhere")
    assert done.returncode == 1 and "no /nowhere" in done.stderr


def test_root_installs_one(tmp_path):
    bin_folder = tmp_path / "bin"
    program(bin_folder / "id", "echo 0")
    program(bin_folder / "apt-get", f"""echo "$@" >> {tmp_path}/calls
[ "$1" = install ] || exit 0
printf '#!/bin/bash\\necho Chromium 3\\n' > {bin_folder}/chromium
chmod +x {bin_folder}/chromium""")
    (bin_folder / "chmod").symlink_to(shutil.which("chmod"))
    done = run(ROOT / "tests/browser.sh", bin_folder)
    assert (done.returncode, done.stdout.strip()) == (0, str(bin_folder / "chromium"))
    update, install = (tmp_path / "calls").read_text().splitlines()
    assert update.startswith("update") and install.endswith("chromium")


def test_tests_run_without_a_browser_and_report_it(tmp_path):
    """test.sh in a copy of the repository whose Python only prints its arguments."""
    scripts = tmp_path / "repository" / "scripts"
    scripts.mkdir(parents=True)
    shutil.copy(ROOT / "scripts/test.sh", scripts)
    (tmp_path / "repository/tests").mkdir()
    shutil.copy(ROOT / "tests/browser.sh", tmp_path / "repository/tests")
    python = program(tmp_path / "python", 'echo "called: $*"')
    (scripts / "environment.sh").write_text(f"install_requirements() {{ PYTHON_BIN={python}; }}\n")
    program(tmp_path / "bin" / "id", "echo 1000")
    without = run(scripts / "test.sh", tmp_path / "bin")
    assert without.returncode == 0 and "called: -m pytest -n 2 --dist loadfile -m not browser" in without.stdout
    assert "no browser" in without.stdout
    program(tmp_path / "bin" / "chromium", "echo Chromium 1")
    assert run(scripts / "test.sh", tmp_path / "bin").stdout == "called: -m pytest -n 2 --dist loadfile\n"
