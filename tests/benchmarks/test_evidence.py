"""The runs behind docs/evidence.md: their commands, restarts, and the tables of their results."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import evidence
from benchmarks.evidence_plan import PER_CLASS, RECIPES, command_lines, run_commands, training_flags
from dataset.synthetic.actions import CLASSES
from utils.pretraining_flags import parse_pretraining_flags


def test_commands_of_every_run_parse_and_all_budgets_are_equal() -> None:
    epochs = training_flags(RECIPES["published"], smoke=False)["--epoch"]
    for name, recipe in RECIPES.items():
        commands = run_commands(name, 1)
        if recipe.trained:
            flags = parse_pretraining_flags(commands["train"][1:])
            assert commands["probe"][commands["probe"].index("--weights") + 1].endswith(f"epoch_{flags.epochs:04d}.pt")
            steps = flags.epochs * (recipe.per_class * len(CLASSES) // flags.batch_per_gpu)
            assert steps == recipe.times * epochs * (PER_CLASS * len(CLASSES) // flags.batch_per_gpu)
            assert 0 < flags.graph_start_epoch < flags.lr_decay_epoch < flags.epochs
    assert len({*map(tuple, (command_lines(name, 0, False) for name in RECIPES))}) == len(RECIPES)


def write_card(words: list[str], folder: Path, _log: Path, value: float = 0.5) -> int:
    """Stands for the commands: writes the result that each of them would."""
    out = folder / words[words.index("--out") + 1].removeprefix("RUN/")
    out.mkdir()
    card = {"device": "cpu", "num_test_videos": 150, "metrics": {
        level: {"top1": value, "R@1": value, "accuracy": value} for level in (*evidence.LEVELS, "concat")}}
    (out / "result.json").write_text(json.dumps(card))
    return 0


def test_a_run_resumes_after_what_it_has_and_is_recorded_once(tmp_path, monkeypatch) -> None:
    results, started = tmp_path / "evidence.jsonl", []
    runner = evidence.Runner(tmp_path, results, smoke=False)
    monkeypatch.setattr(evidence, "git_commit", lambda: "abc")

    def fail_at_retrieval(words, folder, log):
        started.append(words[1])
        return 1 if words[1] == "eval.retrieval" and len(started) < 3 else write_card(words, folder, log)

    monkeypatch.setattr(runner, "call", fail_at_retrieval)
    runner.run("random_rgb", 1)
    assert len(runner.failed) == 1 and "retrieval ended with exit status 1" in runner.failed[0]
    assert started == ["eval.linear_probe", "eval.retrieval"] and not results.exists()
    runner.run("random_rgb", 1)
    assert started[2:] == ["eval.retrieval", *["visualization.main_temporal"] * 3]
    assert not (tmp_path / "random_rgb_seed1").exists()
    assert evidence.read_results(results).keys() == {("random_rgb", 1)}
    line = json.loads(results.read_text())
    results.write_text(json.dumps(line | {"commands": line["commands"][1:]}) + "\n")
    assert not evidence.read_results(results)  # other commands than those of today


def test_what_another_budget_left_is_not_resumed(tmp_path, monkeypatch) -> None:
    runner = evidence.Runner(tmp_path, tmp_path / "evidence.jsonl", smoke=False)
    folder = tmp_path / "random_rgb_seed0"
    folder.mkdir()
    write_card(["--out", "RUN/probe"], folder, folder)
    (folder / "commands.json").write_text("[]")
    monkeypatch.setattr(evidence, "git_commit", lambda: "abc")
    monkeypatch.setattr(runner, "call", lambda *_: 1)
    runner.run("random_rgb", 0)
    assert not (folder / "probe").exists()


def test_tables_show_mean_and_sample_standard_deviation(tmp_path) -> None:
    def line(value: float) -> dict:
        metrics = {level: {"top1": value, "R@1": value / 2, "accuracy": 0.5} for level in (*evidence.LEVELS, "concat")}
        return {"measured": {step: metrics for step in (*run_commands("motion", 0),)}}

    results = {("motion", 0): line(0.2), ("motion", 1): line(0.3), ("published", 0): line(0.125)}
    rows = [row.strip("| ").split(" | ") for row in evidence.tables_of(["published", "motion"], results).splitlines() if row]
    assert rows[2] == ["published", "1", *["12.5"] * 4] and rows[3] == ["motion", "2", *["25.0 ± 7.1"] * 4]
    assert rows[7] == ["motion", "2", *["12.5 ± 3.5"] * 4] and rows[11] == ["motion", "2", *["50.0 ± 0.0"] * 3]
    assert "| 450 | 2 | 25.0 ± 7.1 |" in evidence.data_table(results) and "| 900 | 0 | - |" in evidence.data_table(results)
    document = tmp_path / "evidence.md"
    document.write_text(evidence.DOCUMENT.read_text())
    readme = tmp_path / "README.md"
    readme.write_text(evidence.README.read_text())
    evidence.write_document(document, readme, results)
    assert document.with_suffix(".svg").exists() and "| motion recipe | " in readme.read_text()
    assert "| motion | 2 | 25.0 ± 7.1 |" in document.read_text()


def test_unknown_recipes_are_refused_in_one_line(capsys: pytest.CaptureFixture) -> None:
    assert evidence.main(["work", "--only", "motion,notion"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "notion is none of random_rgb" in error
