"""What goes wrong in a step: named, dumped, undone, and bounded."""
from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from utils.checkpoint import Progress
from utils.distributed import DistContext
from utils.errors import AgreedError, NonFiniteError
from utils.step_checks import StepUndo, sync_step_status, handle_not_finite, note_bad_videos, require_finite_weights
from utils.training_log import RunLog

HERE = DistContext(0, 1, torch.device("cpu"))
NAN = float("nan")


@pytest.fixture
def log(tmp_path):
    log = RunLog(tmp_path, True, 0)
    yield log
    log.close()


def lines(tmp_path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]


def test_one_process_agrees_with_itself():
    report = sync_step_status(False, {}, {}, ["a", "b"], HERE)
    assert (report.stop, report.bad_videos, report.not_finite) == (False, {}, [])
    report = sync_step_status(True, {"a": "broken"}, {"term": NAN}, ["a", "b"], HERE)
    assert report.stop and report.bad_videos == {"a": "broken"} and report.not_finite[0]["videos"] == ["a", "b"]


def test_an_unreadable_video_is_named_once_and_too_many_stop(log, tmp_path):
    progress = Progress()
    for path in ("a", "b", "a"):
        note_bad_videos(sync_step_status(False, {path: f"{path}: torn"}, {}, [], HERE), progress, 100, 0.02, log)
    assert [(line["kind"], line["path"]) for line in lines(tmp_path)] == [("bad_video", "a"), ("bad_video", "b")]
    with pytest.raises(AgreedError, match="3 of 100 videos cannot be read, more than --max_bad_fraction 0.02; .* c: torn"):
        note_bad_videos(sync_step_status(False, {"c": "c: torn"}, {}, [], HERE), progress, 100, 0.02, log)
    with pytest.raises(AgreedError, match="1 of 3"):
        note_bad_videos(sync_step_status(False, {"c": "c: torn"}, {}, [], HERE), Progress(), 3, 0.0, log)


def test_non_finite_values_stop_the_run_with_a_dump(log, tmp_path):
    report = sync_step_status(False, {}, {"prototype": NAN}, ["x/1", "x/2"], HERE)
    with pytest.raises(NonFiniteError, match="epoch 3, step 8: non-finite values: prototype = nan; nothing was updated or "
                       "saved, "):
        handle_not_finite(report, Progress(epoch=2, step=7), "stop", 10, tmp_path, log)
    [dump] = (tmp_path / "not_finite").iterdir()
    stored = json.loads(dump.read_text())
    assert stored["processes"] == [{"values": {"prototype": "nan"}, "videos": ["x/1", "x/2"]}] and stored["step"] == 8


def test_skipping_is_bounded(log, tmp_path):
    report = sync_step_status(False, {}, {"total": NAN}, ["x"], HERE)
    handle_not_finite(report, Progress(skipped_steps=1), "skip", 2, tmp_path, log)
    assert lines(tmp_path)[0]["kind"] == "skipped_step"
    with pytest.raises(NonFiniteError, match="--max_skips 2 are used up"):
        handle_not_finite(report, Progress(skipped_steps=2), "skip", 2, tmp_path, log)


@pytest.mark.parametrize("wrong", [NAN, float("inf")])
def test_a_non_finite_weight_is_named(wrong):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    require_finite_weights(model, Progress())
    with torch.no_grad():
        model[0].weight.fill_(1e30)  # large is not wrong
    require_finite_weights(model, Progress())
    with torch.no_grad():
        model[1].bias[1] = wrong
    with pytest.raises(NonFiniteError, match="1 non-finite weight.s., such as 1.bias"):
        require_finite_weights(model, Progress())


def test_a_skipped_step_leaves_statistics_and_queue_as_they_were():
    model, queue = nn.BatchNorm1d(2), SimpleNamespace(rows=torch.ones(3))
    undo = StepUndo(model, queue)
    model(torch.randn(8, 2))
    undo.save()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.full((8, 2), NAN))
    queue.rows = torch.full((3,), NAN)
    undo.restore()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert queue.rows.tolist() == [1, 1, 1]
