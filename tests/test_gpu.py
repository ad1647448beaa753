"""On a GPU: the CPU's numbers, and commands as a user starts them. Skipped where torch sees no GPU.

In float64 the two differ by the order of sums alone. In float32 convolutions take TF32 (10 bits) unless that is
switched off, and bfloat16 has 8 bits, so that whole runs are compared by the loss of their first step.
"""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dataset.color import ColorDraws, apply_color_on_device, draw_channels, draw_jitter
from dataset.records import VideoRecord
from dataset.transforms import PRETRAIN_JITTER
from eval.features.backbone import load_backbone
from eval.features.extract import ClipSettings, extract_features
from models.levels import LEVELS
from models.multilevel import BACKBONES, MultiLevelModel
from models.objective import Objective
from tests.robustness.kill_and_resume import write_videos
from tests.models.test_numerics import ROUNDING, layer_errors
from utils.distributed import DistContext

ROOT = Path(__file__).resolve().parents[1]
DEVICE = "cuda"
ON_DEVICE = ("--gpu", "0")
GPUS = min(2, torch.cuda.device_count())
TRAINING = ("--net r3d10 --img_dim 32 --train_batch 4 --workers 1 --channel 8 --cluster 6 --queue 8 --queue_start 0 "
            "--split 0 --epoch 2 --lr_decay 1 --log_every 1").split()
LABELLED = "--weights random --net r3d10 --img_dim 32 --seq 8 --clips 2 --workers 1 --batch 4".split()

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """A csv of eight videos, and beside it train.csv and test.csv, of two classes."""
    csv = write_videos(tmp_path_factory.mktemp("videos"), num_videos=8)
    rows = csv.read_text().split()
    for name, chosen in (("train.csv", rows[:6]), ("test.csv", rows[6:])):
        (csv.parent / name).write_text("".join(f"{row},{number % 2}\n" for number, row in enumerate(chosen)))
    return csv


def run(cwd: Path, *arguments: str) -> str:
    """What the command prints; it must succeed."""
    result = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=500,
                            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])})
    assert result.returncode == 0, result.stderr[-3000:] + result.stdout[-1000:]
    return result.stdout


def train(cwd: Path, videos: Path, *flags: str, launcher: tuple[str, ...] = ()) -> str:
    return run(cwd, *launcher, str(ROOT / "train.py"), "--csv_file", str(videos), "--out", "run", *TRAINING, *flags)


def losses(cwd: Path) -> list[float]:
    """The total of each step."""
    lines = map(json.loads, (cwd / "run" / "log.jsonl").read_text().splitlines())
    return [line["total"] for line in lines if line["kind"] == "step"]


def test_color_is_that_of_the_cpu():
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.integers(0, 256, (2, 3, 16, 56, 56, 3), dtype=np.uint8))
    draws = ColorDraws(*(torch.from_numpy(x).reshape(2, 3, 16, *x.shape[1:]) for x in (
        draw_channels(96, rng), *draw_jitter(96, PRETRAIN_JITTER, rng))))
    expected, found = (apply_color_on_device(frames.to(device), draws).cpu().int() for device in ("cpu", DEVICE))
    different = (found - expected).abs() > 0
    assert found.shape == expected.shape and different.float().mean() < 1e-3
    assert (found - expected).abs().float().mean() < 1e-3


@pytest.mark.parametrize("net, compiled", [("r3d10", False), ("r2plus1d18", False), ("s3d", False), ("r3d10", True)])
def test_loss_and_gradients_in_float64_are_those_of_the_cpu(net, compiled):
    torch.manual_seed(0)
    model = MultiLevelModel(net, 8, 6).double()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    views, totals, gradients = torch.randn(3, 3, 3, 16, 32, 32, dtype=torch.float64), [], []
    for device in ("cpu", DEVICE):
        model.load_state_dict(state)
        model.to(device).zero_grad(set_to_none=True)
        objective = Objective(queue_rows=8, queue_start_epoch=0, graph_start_epoch=0)
        network = torch.compile(model) if compiled and gradients else model
        total = objective(network(views.to(device)), 0, lambda rows: rows, 0).total
        total.backward()
        totals.append(total.item())
        gradients.append({name: parameter.grad.cpu().clone() for name, parameter in model.named_parameters()})
    assert totals[1] == pytest.approx(totals[0], rel=1e-9)
    largest = max(gradient.norm() for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        assert (gradients[1][name] - gradient).norm() <= 1e-6 * gradient.norm() + 1e-9 * largest, name


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("net", [net for net in BACKBONES if net != "resnet18"])
def test_bfloat16_gradient_of_every_layer(net, channels_last):
    torch.manual_seed(0)
    model, views = MultiLevelModel(net, 32, 16).to(DEVICE), torch.randn(2, 3, 3, 16, 32, 32).to(DEVICE)
    if channels_last:
        model.backbone.to(memory_format=torch.channels_last_3d)
        views = views.movedim(2, -1).contiguous().movedim(-1, 2)
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        errors = layer_errors(model, views)
    assert not {name: error for name, error in errors.items() if not error < ROUNDING}
    assert len(errors) >= 0.95 * sum(1 for _ in model.parameters())


def test_nothing_in_the_objective_waits_for_the_gpu():
    torch.manual_seed(0)
    model, views = MultiLevelModel("r3d10", 8, 6).to(DEVICE), torch.randn(4, 3, 3, 16, 32, 32).to(DEVICE)
    objective = Objective(queue_rows=8, queue_start_epoch=0, graph_start_epoch=0)
    for _ in range(2):  # the first time there is more to do
        output = model(views)
        torch.cuda.set_sync_debug_mode("error")
        try:
            objective(output, 0, lambda rows: rows, 0).total.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("flags, tolerance", [
    ((), 0.02),
    (("--augment_on", "device"), 0.05),  # another rounding of colors
    (("--amp", "bf16", "--channels_last"), 0.05),
    (("--amp", "bf16", "--channels_last", "--compile"), 0.05),
    (("--checkpoint_activations", "--decode", "half"), 0.1),
])
def test_training_starts_like_that_on_the_cpu(videos, tmp_path, flags, tolerance):
    for name, where in (("cpu", ("--gpu", "none")), ("gpu", ON_DEVICE)):
        (tmp_path / name).mkdir()
        train(tmp_path / name, videos, *where, *(flags if name == "gpu" else ()))
    expected, found = losses(tmp_path / "cpu"), losses(tmp_path / "gpu")
    assert len(found) == len(expected) == 4 and np.isfinite(found).all()
    assert found[0] == pytest.approx(expected[0], rel=tolerance)


@pytest.mark.parametrize("launcher, flags", [
    ((), ("--multiprocessing-distributed", "--gpu", ",".join(map(str, range(GPUS))))),
    (("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(GPUS)), ()),
])
def test_processes_on_two_gpus_train_and_resume(videos, tmp_path, launcher, flags):
    """On one, where there is but one."""
    more = ("--save_steps", "1", *flags)
    assert "stopped" not in train(tmp_path, videos, *more, "--stop_after", "1", launcher=launcher)
    printed = train(tmp_path, videos, *more, "--resume", launcher=launcher)
    assert "resumed from" in printed and f"{GPUS} process(es)" in printed and "epoch 2/2" in printed
    checkpoint = torch.load(tmp_path / "run/checkpoints/epoch_0002.pt", weights_only=True, map_location="cpu")
    assert checkpoint["net"] == "r3d10" and np.isfinite(losses(tmp_path)).all()


def test_a_dry_run_tells_what_fits(videos, tmp_path):
    printed = train(tmp_path, videos, *ON_DEVICE, "--dry_run", "2")
    assert re.search(r"largest --train_batch that fits: \d+", printed) and "peak memory of the GPU: " in printed


def test_features_are_those_of_the_cpu(videos):
    records = [VideoRecord(str(videos.parent / name), 40, 0) for name in ("v0", "v1", "v2")]
    settings = ClipSettings(clips=3, clip_frames=8, img_dim=32)
    backbone, _ = load_backbone("random", "r3d10", seed=0)
    found = {(device, amp): extract_features(backbone, records, settings, DistContext(0, 1, torch.device(device)), batch=2,
                                             num_workers=1, amp=amp)
             for device, amp in (("cpu", "off"), (DEVICE, "off"), (DEVICE, "bf16"))}
    for level in LEVELS:
        expected = found["cpu", "off"][level]
        for amp, bound in (("off", 1e-5), ("bf16", 0.01)):
            assert np.linalg.norm(found[DEVICE, amp][level] - expected) < bound * np.linalg.norm(expected), (level, amp)


@pytest.mark.parametrize("command", [
    ["eval.retrieval", *LABELLED, "--amp", "bf16"],
    ["eval.linear_probe", *LABELLED, "--epochs", "2", "--holdout", "0.3"],
    ["eval.linear_probe", "--end_to_end", *LABELLED, "--epochs", "2", "--lr_decay", "1", "--train_batch", "2"],
    ["eval.finetune", *LABELLED, "--epochs", "2", "--lr_decay", "1", "--train_batch", "2", "--amp", "bf16",
     "--channels_last"],
    ["visualization.main_temporal", *LABELLED, "--epoch", "2", "--train_batch", "2"],
])
def test_commands_run(videos, tmp_path, command):
    run(tmp_path, "-m", *command, "--train_csv", str(videos.parent / "train.csv"), "--test_csv",
        str(videos.parent / "test.csv"), *ON_DEVICE, "--out", "out")
    card = json.loads((tmp_path / "out/result.json").read_text())
    assert card["metrics"] and "cpu" not in card["device"].lower()
