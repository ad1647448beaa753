"""Warnings: each for the log that it is planted in, none for a healthy one."""
from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from dataset.records import VideoRecord
from eval.features.extract import ClipSettings
from models.graph import graph_contrast
from models.losses import instance_contrast, motion_contrast, swapped_prediction, timestamp_retrieval
from tests.visualization.report.planted_run import FLAGS, write_run
from visualization.report.measure import Measurement, NetworkState
from visualization.report.run import RunDirectory, chance_losses
from visualization.report.warnings import find_warnings, list_checks

N, V, T, K = 6, 3, 48, 10
LEVELS = ("low", "mid", "high")


def warn(folder, measured=None, **planted):
    return find_warnings(RunDirectory(write_run(folder, **planted)), measured)


def measure_states(*states: tuple[float, float, float], num_videos: int = 100) -> Measurement:
    """States of (epochs, rank, spread), alike at all levels of 128 channels."""
    return Measurement([VideoRecord("v", 1)] * num_videos, [], [
        NetworkState(f"epoch {epochs:g}", epochs, dict.fromkeys(LEVELS, rank), dict.fromkeys(LEVELS, spread),
              dict.fromkeys(LEVELS, 128)) for epochs, rank, spread in states],
        np.zeros((num_videos, 2)), ClipSettings())


def test_chance_is_the_loss_of_embeddings_that_are_all_alike():
    flags = {"num_clips": V, "clip_frames": T, "num_prototypes": K, "graph_reduction": "row"}
    chances = chance_losses(flags, N)
    alike = torch.ones(N, V, 4)
    expected = {
        "instance_high": instance_contrast(alike, alike, 0)[0],
        "motion_mid": motion_contrast(alike, alike, 0, alike)[0],
        "prototype": swapped_prediction(torch.zeros(N, V, K), torch.full((N, V, K), 1 / K))[0],
        "graph_mid": graph_contrast(torch.eye(N), alike[:, 0], alike[:, 1]),
        **{f"timestamp_{level}": timestamp_retrieval(torch.ones(N, V + 1, 4, T // part))[0]
           for level, part in (("low", 2), ("mid", 4), ("high", 8))}}
    for name, loss in expected.items():
        assert chances[name].loss == pytest.approx(float(loss), abs=1e-5), name
    element = chance_losses({**flags, "graph_reduction": "element"}, N)["graph_low"]
    loss = graph_contrast(torch.eye(N), alike[:, 0], alike[:, 1], "element")
    assert element.loss == pytest.approx(float(loss), abs=1e-6)
    two = chance_losses({**flags, "num_clips": 2}, 64)["instance_high"]
    assert two.loss == pytest.approx(math.log(1 + 2 * 63))


def test_a_healthy_run_has_none(tmp_path):
    measured = measure_states((0, 90, 0.3), (6, 40, 0.6), (12, 38, 0.6))
    assert warn(tmp_path / "run", measured) == []
    checked = list_checks(RunDirectory(tmp_path / "run"), measured)
    assert "instance_high" in checked[0] and any("100 videos at 3 states" in line for line in checked)
    assert any("not computed" in line for line in list_checks(RunDirectory(tmp_path / "run"), None))


@pytest.mark.parametrize(("planted", "title", "seen"), [
    ({"changes": {"instance_high": math.log(127) - 0.05}}, "instance_high is stuck", "ln 127 = 4.84"),
    ({"changes": {"motion_low": math.log(129) + 0.3}}, "motion_low is stuck", "5.160"),
    ({"changes": {"timestamp_mid": math.log(4)}}, "timestamp_mid is stuck at ln 4", "1.386"),
    ({"changes": {"prototype": 0.99 * math.log(200)}}, "swapped prediction is stuck at ln K", "ln 200 = 5.30"),
    ({"changes": {"graph_mid": math.log(64)}}, "graph_mid is stuck at ln N", "4.159"),
    ({"changes": {"prototypes_in_use": 7.0}}, "few prototypes", "7.0 of the 64"),
    ({"changes": {"assignment_entropy": 5.25}}, "assignments are uniform", "ln K = 5.298"),
    ({"changes": {"graph_edges_per_row": 1.01}}, "only diagonal edges", "1.010 edges"),
    ({"changes": {"data_wait": 0.45}}, "waits for data", "45%"),
    ({"events": [{"kind": "skipped_step", "not_finite": "motion_mid = nan"}] * 2}, "Non-finite", "2 step(s)"),
    ({"events": [{"kind": "bad_video", "path": "a/b", "reason": "gone"}]}, "Unreadable videos", "1 of 640"),
])
def test_each_is_found_where_it_is_planted_and_nothing_else(tmp_path, planted, title, seen):
    [found] = warn(tmp_path / "run", **planted)
    assert title in found.title and seen in found.seen
    assert found.means and found.remedy


def resumed_at(epoch: int, batch: int, then: int) -> dict:
    """Configuration of a run that went on with 8 processes after so many epochs; before, it had `then` videos a step."""
    earlier = {"start_epoch": 0, "processes": 1, "flags": {**FLAGS, "batch_per_gpu": then}}
    return {"config": {"start_epoch": epoch, "processes": 8, "earlier_starts": [earlier]},
            "flags": {"batch_per_gpu": batch // 8}}


@pytest.mark.parametrize(("first", "chance", "expected"), [(11, "ln 255", ["of 128 videos"]),
                                                           (12, "ln 63", [])])
def test_epochs_are_judged_by_the_batch_that_they_had(tmp_path, first, chance, expected):
    """Before epoch `first` (from 0) there were 32 videos in a batch; it may not be over yet."""
    few = {"prototypes_in_use": lambda epoch: 60.0 if epoch >= first else 20.0}
    healthy = {**few, "instance_high": lambda epoch: 3.0 if epoch >= first else 1.5}
    assert warn(tmp_path / "healthy", changes=healthy, **resumed_at(first, 128, then=32)) == []
    stuck = {**few, "instance_high": lambda epoch: math.log(255 if epoch >= first else 63)}
    [found] = warn(tmp_path / "stuck", changes=stuck, **resumed_at(first, 128, then=32))
    assert found.title.startswith("Collapse: instance_high") and chance in found.seen
    lines = [line for line in list_checks(RunDirectory(tmp_path / "stuck"), None) if line.startswith("global batch")]
    assert len(lines) == len(expected) and all(part in line for part, line in zip(expected, lines))


def test_a_start_that_repeats_epochs_decides_their_batch(tmp_path):
    earlier = [{"start_epoch": 0, "processes": 1, "flags": FLAGS}, {"start_epoch": 8, "processes": 4, "flags": FLAGS}]
    run = RunDirectory(write_run(tmp_path / "run", config={"earlier_starts": earlier, "start_epoch": 5, "processes": 2}))
    assert run.global_batch == 64 and [line["epoch"] for line in run.comparable] == list(range(5, 12))
    assert run.batch_at(4) == 32 and run.batch_at(9) == 64


def test_the_first_epochs_are_no_false_alarm(tmp_path):
    early = {"prototypes_in_use": lambda epoch: 1.0 if epoch < 2 else 40.0, "data_wait": lambda epoch: 0.0 if epoch else 0.9}
    for epochs in (0, 1, 2, 3):
        run = write_run(tmp_path / f"run{epochs}", epochs=epochs, changes=early)
        if not epochs:
            (run / "log.jsonl").write_text(json.dumps(
                {"kind": "step", "epoch": 0, "step": 1, "prototypes_in_use": 1.0, "data_wait": 0.9}) + "\n")
        assert find_warnings(RunDirectory(run), None) == []
    assert "not judged" in list_checks(RunDirectory(tmp_path / "run1"), None)[-2]


def test_values_that_are_not_finite_are_not_judged(tmp_path):
    nan = dict.fromkeys(("instance_high", "graph_edges_per_row"), math.nan)
    assert warn(tmp_path / "run", changes=nan) == []
    [waiting] = [line for line in list_checks(RunDirectory(tmp_path / "run"), None) if line.startswith("not judged")]
    assert waiting.endswith("values: instance_high, graph_edges_per_row")


def test_videos_that_the_monitor_leaves_out_are_reported(tmp_path):
    looks = [{"kind": "monitor", "epoch": epoch, "step": 60, "monitor_R@1": 0.25, **skipped}
             for epoch, skipped in ((4, {}), (9, {"monitor_skipped": 7}))]
    [found] = warn(tmp_path / "run", events=looks)
    assert "monitor leaves out" in found.title and "7 labelled video(s)" in found.seen and "epoch 10" in found.seen
    assert warn(tmp_path / "well", events=looks[:1]) == []


def test_stuck_motion_names_the_reversal(tmp_path):
    [found] = warn(tmp_path / "run", changes={"motion_mid": math.log(129)})
    assert "mid level" in found.means and "reversals" in found.means


def test_only_the_last_epochs_count_and_few_are_not_judged(tmp_path):
    stuck_then_learned = {"instance_high": lambda epoch: math.log(127) * (1 if epoch < 8 else 0.6)}
    assert warn(tmp_path / "late", changes=stuck_then_learned) == []
    learned_then_lost = {"instance_high": lambda epoch: math.log(127) * (0.6 if epoch < 8 else 1)}
    assert len(warn(tmp_path / "lost", changes=learned_then_lost)) == 1
    assert warn(tmp_path / "early", epochs=4, changes={"instance_high": 5.0, "assignment_entropy": 5.3}) == []
    assert warn(tmp_path / "none", epochs=0) == []


def test_the_bound_of_prototypes_is_the_smaller_of_k_and_batch(tmp_path):
    few = {"changes": {"prototypes_in_use": 3.0, "prototype": 1.0, "assignment_entropy": 0.5}}
    assert len(warn(tmp_path / "many", **few)) == 1
    assert warn(tmp_path / "six", **few, flags={"num_prototypes": 6}) == []


def test_a_stopped_run_is_named_by_its_dump(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "not_finite").mkdir()
    (run / "not_finite" / "epoch_0003_step_000001.json").write_text("{}")
    [found] = find_warnings(RunDirectory(run), None)
    assert "Non-finite" in found.title


@pytest.mark.parametrize(("states", "title", "seen"), [
    ([(0, 90, 0.3), (12, 2.5, 0.6)], "rank of the {} level is low", "2.5, of at most 99"),
    ([(0, 90, 0.3), (6, 50, 0.6), (12, 20, 0.6)], "rank of the {} level is falling", "20.0 at epoch 12, 50.0"),
    ([(0, 90, 0.3), (12, 40, 0.001)], "features are constant", "{} 0.0010"),
])
def test_features(tmp_path, states, title, seen):
    found = warn(tmp_path / "run", measure_states(*states))
    assert all(finding.collapse for finding in found)
    for level in LEVELS:
        assert any(title.format(level) in finding.title and seen.format(level) in finding.seen
                   for finding in found), level
    assert len(found) in (1, 3)


def test_a_random_start_of_higher_rank_and_few_videos_are_no_warning(tmp_path):
    assert warn(tmp_path / "start", measure_states((0, 90, 0.3), (12, 20, 0.6))) == []
    assert warn(tmp_path / "few", measure_states((0, 4, 0.3), (12, 1.2, 0.6), num_videos=6)) == []


def test_collapse_comes_first(tmp_path):
    found = warn(tmp_path / "run", changes={"data_wait": 0.5, "graph_edges_per_row": 1.0},
                 events=[{"kind": "bad_video", "path": "a", "reason": "b"}])
    assert [finding.collapse for finding in found] == [True, False, False]
