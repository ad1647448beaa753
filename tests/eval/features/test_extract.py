"""Clip-averaged features: values, independence of how they are computed, storage, and loading of weights."""
from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dataset.frames import read_frames
from dataset.records import VideoRecord
from dataset.sampling import uniform_clips, window_clips
from dataset.transforms import TestCrops, scale_clips
from dataset.transforms import IMAGENET
from eval.features.backbone import load_backbone
from eval.features.extract import ClipSettings, batch_views, extract_features
from eval.monitor import Monitor
from models.levels import LEVELS, LevelFeatures
from models.multilevel import MultiLevelModel, build_backbone
from utils.distributed import DistContext
from utils.errors import InputError, one_line

ROOT = Path(__file__).resolve().parents[3]
HERE = DistContext(0, 1, torch.device("cpu"))
SMALL = ClipSettings(clips=3, clip_frames=8, stride=2, img_dim=32)


class PixelMaps(nn.Module):
    """A backbone of plain arithmetic: maps that differ by level, with time and space left to be averaged."""

    channels = {"low": 3, "mid": 3, "high": 6}

    def forward(self, clips: torch.Tensor) -> LevelFeatures:
        ramp = torch.linspace(0, 1, clips.shape[2])[:, None, None]
        twice = clips[:, :, ::2].repeat(1, 1, 2, 1, 1)
        return LevelFeatures(clips, clips.square(), torch.cat([clips * ramp, twice], dim=1))


@pytest.fixture
def videos(tmp_path, write_coded_video) -> list[VideoRecord]:
    return [VideoRecord(write_coded_video(tmp_path / f"v{n}", n), n, label)
            for label, n in enumerate((21, 40, 3, 29))]


def by_hand(record: VideoRecord, clips: np.ndarray, crops: int, img_dim: int) -> dict[str, np.ndarray]:
    """Features of one video by loops over its clips and crops, one view at a time."""
    rows = {level: [] for level in LEVELS}
    for clip in clips:
        for view in TestCrops(img_dim, crops)(read_frames(record.path, clip, record.num_frames)):
            maps = PixelMaps()(scale_clips(torch.from_numpy(np.ascontiguousarray(view)))[None])
            for level, x in zip(LEVELS, maps):
                rows[level].append(x.double().mean(dim=(0, 2, 3, 4)).numpy())
    return {level: np.mean(rows[level], axis=0) for level in LEVELS}


@pytest.mark.parametrize(("clips", "crops"), [(3, 1), (1, 5), ("windows", 10)])
def test_a_row_is_the_mean_over_clips_crops_time_and_space_of_its_own_video(videos, clips, crops):
    settings = ClipSettings(clips=clips, clip_frames=8, stride=2, img_dim=32, crops=crops)
    features = extract_features(PixelMaps(), videos, settings, HERE, batch=4)
    for row, record in enumerate(videos):
        indices = (window_clips(record.num_frames, 8, 2) if clips == "windows" else
                   uniform_clips(record.num_frames, 8, 2, clips))
        for level, expected in by_hand(record, indices, crops, 32).items():
            assert features[level].shape == (4, PixelMaps.channels[level])
            assert features[level].dtype == np.float32
            np.testing.assert_allclose(features[level][row], expected, rtol=0, atol=1e-5)
    assert len(np.unique(features["low"][:, 0])) == 4, "or nothing was shown: the videos must differ"


def test_workers_and_neighbors_in_the_batch_change_not_a_bit_of_a_row(videos):
    backbone, _ = load_backbone("random", "r3d10", seed=0)
    # Three views a video: alone, its last one is a run of its own; among others it is not.
    expected = extract_features(backbone, videos, SMALL, HERE, batch=2)
    again = extract_features(backbone, videos, SMALL, HERE, batch=2, num_workers=2)
    other_order = extract_features(backbone, videos[::-1], SMALL, HERE, batch=2)
    for row, record in enumerate(videos):
        alone = extract_features(backbone, [record], SMALL, HERE, batch=2)
        for level in LEVELS:
            for other in (again[level][row], other_order[level][3 - row], alone[level][0]):
                assert np.array_equal(other, expected[level][row]), (row, level)


def test_batch_size_changes_no_more_than_the_rounding_of_float32(videos):
    backbone, _ = load_backbone("random", "r3d10", seed=0)
    expected = extract_features(backbone, videos, SMALL, HERE, batch=1)
    for batch in (2, 5, 16):
        features = extract_features(backbone, videos, SMALL, HERE, batch=batch)
        for level in LEVELS:
            np.testing.assert_allclose(features[level], expected[level], rtol=0,
                                       atol=1e-5 * expected[level].max())


@pytest.mark.parametrize("net, bound", [("r3d10", 0.01), ("s3d", 0.02)])
def test_bfloat16_changes_little_and_keeps_rows_apart(videos, net, bound):
    backbone, _ = load_backbone("random", net, seed=0)
    expected = extract_features(backbone, videos, SMALL, HERE, batch=2)
    features = extract_features(backbone, videos, SMALL, HERE, batch=2, amp="bf16")
    reverse = extract_features(backbone, videos[::-1], SMALL, HERE, batch=2, num_workers=1, amp="bf16")
    for level in LEVELS:
        error = np.linalg.norm(features[level] - expected[level]) / np.linalg.norm(expected[level])
        assert 1e-5 < error < bound, (level, error)  # each number has 8 bits
        rounded = torch.from_numpy(features[level]).bfloat16().float().numpy()
        assert not np.array_equal(rounded, features[level]), "the mean over a map must have more bits than the map"
        assert np.array_equal(reverse[level][::-1], features[level])


def test_the_backbone_is_left_as_it_was(videos):
    backbone, _ = load_backbone("random", "r3d10", seed=0)
    backbone.train().layer3.eval()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    modes = [module.training for module in backbone.modules()]
    extract_features(backbone, videos[:1], SMALL, HERE)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert [module.training for module in backbone.modules()] == modes and len(set(modes)) == 2


def test_two_processes_give_the_rows_of_one(videos, tmp_path):
    script = tmp_path / "two.py"
    rows = {role: [f"{video.path},{video.num_frames},{video.num_frames % 2}\n" for video in part]
            for role, part in (("train", videos[:2]), ("test", videos[2:]))}
    csv_files = {role: str(tmp_path / f"{role}.csv") for role in rows}
    for role, lines in rows.items():
        Path(csv_files[role]).write_text("".join(lines))
    script.write_text(f"""
import json, sys
sys.path[0] = {str(ROOT)!r}
import numpy as np, torch
import torch.distributed as dist
from dataset.records import VideoRecord
from eval.features.backbone import load_backbone
from eval.features.extract import ClipSettings, extract_features
from eval.monitor import Monitor
from utils.distributed import DistContext
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + {str(tmp_path / "meet")!r}, world_size=2, rank=rank)
records = [VideoRecord(*fields) for fields in {[(v.path, v.num_frames, v.label) for v in videos[:3]]!r}]
backbone, settings = load_backbone("random", "r3d10", 0)[0], ClipSettings(clips=3, clip_frames=8, stride=2, img_dim=32)
process = DistContext(rank, 2, torch.device("cpu"))
features = extract_features(backbone, records, settings, process, batch=4)
np.savez({str(tmp_path)!r} + f"/rank{{rank}}.npz", **features)
monitor = Monitor({csv_files["train"]!r}, {csv_files["test"]!r}, settings, process, batch=4)
open({str(tmp_path)!r} + f"/rank{{rank}}.json", "w").write(json.dumps(monitor(backbone)))
dist.destroy_process_group()
""")
    running = [subprocess.Popen([sys.executable, str(script), str(rank)]) for rank in range(2)]
    assert [context.wait(timeout=120) for context in running] == [0, 0]
    backbone, _ = load_backbone("random", "r3d10", 0)
    one = extract_features(backbone, videos[:3], SMALL, HERE, batch=4)
    with np.load(tmp_path / "rank0.npz") as stored:
        for level in LEVELS:
            assert np.array_equal(stored[level], one[level]), level
    with np.load(tmp_path / "rank1.npz") as stored:
        assert not stored.files, "240,000 videos of r3d50 are 3.4 GB"
    monitor = Monitor(csv_files["train"], csv_files["test"], SMALL, HERE, batch=4)
    for rank in range(2):
        assert json.loads((tmp_path / f"rank{rank}.json").read_text()) == monitor(backbone)


def test_batches_hold_every_view_once_in_order():
    videos = [(7, torch.arange(5)), (3, torch.arange(10, 11)), (9, torch.arange(20, 24))]
    for batch in range(1, 12):
        batches = list(batch_views(videos, batch))
        assert [len(views) for _, views in batches[:-1]] == [batch] * (len(batches) - 1)
        assert torch.cat([views for _, views in batches]).tolist() == [*range(5), 10, *range(20, 24)]
        owners = [owner for part, _ in batches for owner in part]
        assert owners == [7] * 5 + [3] + [9] * 4


def test_an_unreadable_video_stops_with_its_path_or_is_reported(videos):
    broken = Path(videos[1].path) / "image_00040.jpg"
    broken.write_bytes(b"not an image")
    for num_workers in (0, 1):
        with pytest.raises(InputError) as caught:
            extract_features(PixelMaps(), videos, SMALL, HERE, num_workers=num_workers)
        assert one_line(caught.value).startswith(str(broken))
    skipped: dict[int, str] = {}
    features = extract_features(PixelMaps(), videos, SMALL, HERE, skipped=skipped)
    assert list(skipped) == [1] and str(broken) in skipped[1]
    assert np.isnan(features["low"]).any(axis=1).tolist() == [False, True, False, False]
    alone = extract_features(PixelMaps(), videos[1:2], SMALL, HERE, skipped={})
    assert {level: rows.shape for level, rows in alone.items()} == {"low": (1, 3), "mid": (1, 3), "high": (1, 6)}
    assert np.isnan(alone["high"]).all()


def test_the_views_of_a_long_video_are_not_in_memory_together(tmp_path, write_coded_video):
    """Windows x 10 crops of 200 frames: 50 times the pixels of the frames that they are cut from."""
    record = VideoRecord(write_coded_video(tmp_path / "long", 200), 200, 0)
    settings = ClipSettings(clips="windows", clip_frames=8, img_dim=32, crops=10)
    num_views = len(settings.sampler()(200)) * 10
    assert num_views * 8 * 32 * 32 * 3 > 12_000_000
    extract_features(PixelMaps(), [VideoRecord(record.path, 8, 0)], settings, HERE, batch=2)
    tracemalloc.start()  # of numpy's arrays, which the views are cut as
    extract_features(PixelMaps(), [record], settings, HERE, batch=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000, peak


def test_features_that_are_not_finite_are_refused(videos):
    class Diverged(PixelMaps):
        def forward(self, clips: torch.Tensor) -> LevelFeatures:
            return super().forward(clips)._replace(mid=clips * float("nan"))

    with pytest.raises(InputError, match="not finite at level mid"):
        extract_features(Diverged(), videos[:1], SMALL, HERE)


def test_short_videos_are_counted(videos):
    assert [ClipSettings(clip_frames=8, stride=s).count_short(videos) for s in (1, 3, 4)] == [1, 2, 2]
    assert ClipSettings(clip_frames=8, stride=3).count_short([VideoRecord("v", 22)]) == 0


def save(path: Path, **checkpoint: object) -> str:
    torch.save({"format": "mfo", **checkpoint}, path)
    return str(path)


def test_a_model_and_its_backbone_load_alike_and_name_their_net(tmp_path):
    torch.manual_seed(3)
    model = MultiLevelModel("r3d10", num_prototypes=4)
    whole = save(tmp_path / "model.pt", kind="model", net="r3d10", model=model.state_dict(), epochs_done=2)
    bare = save(tmp_path / "backbone.pt", kind="backbone", net="r3d10", model=model.backbone.state_dict())
    for path, epochs in ((whole, 2), (bare, None)):
        backbone, info = load_backbone(path, None, seed=0)
        assert info == {"weights": path, "weights_kind": "model" if path == whole else "backbone", "net": "r3d10",
                        "pretrained_epochs": epochs, "input": IMAGENET,
                        "checkpoint_sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}
        for name, value in model.backbone.state_dict().items():
            assert torch.equal(backbone.state_dict()[name], value), name
    # A classifier's epochs are not pretraining's.
    state = {f"backbone.{name}": value for name, value in model.backbone.state_dict().items()}
    for started_from, epochs in (({"pretrained_epochs": 300}, 300), ({"pretrained_epochs": None}, None), (None, None)):
        finetuned = save(tmp_path / "classifier.pt", kind="classifier", net="r3d10", model=state, epochs_done=500,
                         weights=started_from)
        info = load_backbone(finetuned, None, seed=0)[1]
        assert (info["weights_kind"], info["pretrained_epochs"]) == ("classifier", epochs)
    with pytest.raises(InputError, match="--net r3d18: .*model.pt holds a r3d10"):
        load_backbone(whole, "r3d18", seed=0)


def test_random_weights_are_those_pretraining_starts_from():
    torch.manual_seed(5)
    start = MultiLevelModel("r3d10", num_prototypes=4).backbone.state_dict()
    state = torch.get_rng_state()
    backbone, info = load_backbone("random", "r3d10", seed=5)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state must not move"
    assert all(torch.equal(value, start[name]) for name, value in backbone.state_dict().items())
    assert info == {"weights": "random", "weights_kind": "random", "net": "r3d10", "checkpoint_sha256": None,
                    "pretrained_epochs": None, "input": IMAGENET}
    other, _ = load_backbone("random", "r3d10", seed=6)
    assert not torch.equal(other.stem[0].weight, backbone.stem[0].weight)


def test_weights_that_do_not_fill_the_backbone_are_refused_by_name(tmp_path):
    state = build_backbone("r3d10").state_dict()
    lacking = {name: value for name, value in state.items() if name != "layer2.0.conv1.0.weight"}
    cases = {
        "missing: layer2.0.conv1.0.weight": dict(kind="backbone", net="r3d10", model=lacking),
        "not part of the model: fc.weight": dict(
            kind="backbone", net="r3d10", model={**state, "fc.weight": torch.ones(3)}),
        "of another shape: stem.1.weight": dict(
            kind="backbone", net="r3d10", model={**state, "stem.1.weight": torch.ones(3)}),
        "missing: stem.0.weight": dict(kind="model", net="r3d10", model=state),
        "no checkpoint of this project": dict(kind="finetuned", net="r3d10", model=state),
        "net None": dict(kind="backbone", model=state),
        "backbone 'r3d11': choose among": dict(kind="backbone", net="r3d11", model=state),
        "holds no state dict": dict(kind="backbone", net="r3d10"),
    }
    for number, (message, checkpoint) in enumerate(cases.items()):
        path = save(tmp_path / f"{number}.pt", **checkpoint)
        with pytest.raises(InputError) as caught:
            load_backbone(path, None, seed=0)
        assert message in str(caught.value) and path in str(caught.value) and "\n" not in str(caught.value)
    for weights, net, message in (("random", None, "needs --net"), ("random", "r3d11", "choose among"),
                                  (str(tmp_path / "absent.pt"), None, "absent.pt")):
        with pytest.raises(InputError, match=message):
            load_backbone(weights, net, seed=0)


def test_the_checkpoint_says_what_its_weights_see(tmp_path, videos):
    state, residual = build_backbone("r3d10").state_dict(), {**IMAGENET, "frames": "residual"}
    path = save(tmp_path / "w.pt", kind="model", net="r3d10", input=residual,
                model={f"backbone.{name}": value for name, value in state.items()})
    backbone, info = load_backbone(path, None, seed=0)
    assert info["input"] == residual == load_backbone(path, None, 0, "residual")[1]["input"]
    assert info["input"] == load_backbone("random", "r3d10", 0, "residual")[1]["input"]
    with pytest.raises(InputError, match="--input rgb: the input of .*w.pt is residual"):
        load_backbone(path, None, 0, "rgb")
    seen, rgb = (extract_features(PixelMaps(), videos, SMALL, HERE, scale=scale)["low"] for scale in (residual, IMAGENET))
    assert not np.allclose(seen, rgb)


def test_clips_are_scaled_as_the_weights_expect(tmp_path, videos):
    """By the mean and std of the checkpoint, also of a classifier that was finetuned from such weights."""
    state = build_backbone("r3d10").state_dict()
    scale = {"mean": [0.4, 0.5, 0.3], "std": [0.2, 0.25, 0.3]}
    path = save(tmp_path / "theirs.pt", kind="backbone", net="r3d10", model=state, input=scale)
    classifier = save(tmp_path / "classifier.pt", kind="classifier", net="r3d10", weights={"input": scale},
                      model={f"backbone.{name}": value for name, value in state.items()})
    plain, info = load_backbone(save(tmp_path / "ours.pt", kind="backbone", net="r3d10", model=state), None, seed=0)
    assert info["input"] == IMAGENET
    pixels = torch.randint(0, 256, (2, 8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(scale[name]) for name in ("mean", "std"))
    with torch.inference_mode():
        wanted = plain.eval()(((pixels / 255 - mean) / std).movedim(-1, 1))
        for weights in (path, classifier):
            backbone, info = load_backbone(weights, None, seed=0)
            assert info["input"] == {**scale, "frames": "rgb"}
            found, other = backbone.eval()(scale_clips(pixels, **info["input"])), plain(scale_clips(pixels))
            for level in LEVELS:
                torch.testing.assert_close(getattr(found, level), getattr(wanted, level), rtol=1e-4, atol=1e-4)
                assert not torch.allclose(getattr(other, level), getattr(wanted, level), rtol=1e-2, atol=1e-2)
    own, imagenet = (extract_features(PixelMaps(), videos, SMALL, HERE, scale=scale) for scale in (info["input"], IMAGENET))
    pixels_of = [rows["low"] * std.numpy() + mean.numpy() for rows, (mean, std) in (
        (own, (mean, std)), (imagenet, (torch.tensor(IMAGENET[name]) for name in ("mean", "std"))))]
    np.testing.assert_allclose(*pixels_of, rtol=1e-4, atol=1e-5)
    half = [0.5] * 3
    for wrong in (3, {}, {"mean": half}, {"mean": half, "std": half, "frames": "flow"},
                  {"mean": half, "std": [0.0, 1.0, 1.0]}, {"mean": half, "std": [1.0]},
                  {"mean": ["0"] * 3, "std": half}, {"mean": [float("nan")] * 3, "std": half}):
        path = save(tmp_path / "wrong.pt", kind="backbone", net="r3d10", model=state, input=wrong)
        with pytest.raises(InputError, match="wrong.pt: its input is not"):
            load_backbone(path, None, seed=0)


def test_precision_is_full_float32_here_and_torchs_default_in_training(videos):
    def now() -> tuple[bool, bool, bool, str]:
        cudnn = torch.backends.cudnn
        return cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, torch.get_float32_matmul_precision()

    class Recorded(PixelMaps):
        def forward(self, clips: torch.Tensor) -> LevelFeatures:
            seen.add(now())
            return super().forward(clips)

    seen: set = set()
    extract_features(Recorded(), videos[:1], SMALL, HERE, batch=2, num_workers=0)
    assert seen == {(False, False, True, "highest")}
    import train  # noqa: F401
    assert now() == (True, False, False, "highest")
