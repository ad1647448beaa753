"""Conversion of other people's checkpoints: every number arrives, and every wrong key is named."""
from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.video import R2Plus1D_18_Weights, S3D_Weights, r2plus1d_18, s3d

from eval.classifier.model import VideoClassifier
from eval.features.backbone import load_backbone
from models.multilevel import BACKBONES, MultiLevelModel, build_backbone
from models.r3d import PooledStem, ResNet3D
from scripts.convert_checkpoint import main
from scripts.export_backbone import export_backbone
from tests.official_checkpoint import official_state
from utils.errors import InputError
from visualization.report.measure import load_model

ROOT = Path(__file__).resolve().parents[2]
NARROW = 8  # channels of the stem


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def resnet_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our r3d names -> those of 3D-ResNets-PyTorch, trained under DataParallel, with its classifier."""
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"^stem\.0\.", "conv1.", key)
        key = re.sub(r"^stem\.1\.", "bn1.", key)
        key = re.sub(r"\.conv(\d)\.0\.", r".conv\1.", key)
        key = re.sub(r"\.conv(\d)\.1\.", r".bn\1.", key)
        renamed[f"module.{key}"] = value
    return renamed | {"module.fc.weight": torch.zeros(700, 512), "module.fc.bias": torch.zeros(700)}


class NarrowResNet(ResNet3D):
    """A ResNet3D of an eighth of its width."""

    def __init__(self, *settings, **stem) -> None:
        super().__init__(*settings, **stem)
        self.channels = {level: width // 8 for level, width in self.channels.items()}

    def _make_layer(self, block, conv, planes: int, *rest, **stride):
        if planes == 64:
            self.inplanes = NARROW
        return super()._make_layer(block, conv, planes // 8, *rest, **stride)


@pytest.fixture(autouse=True)
def narrow(monkeypatch) -> None:
    """Makes each R3D narrow: names, depths and blocks are the same, and everything is quicker."""
    def build_stem(stem) -> nn.Module:
        layers = stem()
        layers[0], layers[1] = nn.Conv3d(3, NARROW, 7, (1, 2, 2), 3, bias=False), nn.BatchNorm3d(NARROW)
        return layers

    for name, net in BACKBONES.items():
        if name.startswith("r3d"):
            stem = partial(build_stem, net.keywords.get("stem", PooledStem))
            monkeypatch.setitem(BACKBONES, name, partial(NarrowResNet, *net.args, stem=stem))


@pytest.fixture
def small_input() -> Tensor:
    return torch.randn(1, 3, 16, 32, 32, generator=torch.Generator().manual_seed(3))


def test_reference_becomes_a_whole_model(tmp_path, capsys):
    state = official_state(7, NARROW)
    torch.save(state, tmp_path / "theirs.pth")
    assert main(["reference", str(tmp_path / "theirs.pth"), str(tmp_path / "ours.pt"), "--net", "resnet18"]) == 0
    small = torch.randn(1, 3, 16, 32, 32, generator=torch.Generator().manual_seed(3))
    wanted = resnet_forward({name.removeprefix("backbone."): value.float() for name, value in state.items()}, small,
                            dict(kernel_size=(1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)))  # the official resnet.py
    assert_same_features(load_backbone(str(tmp_path / "ours.pt"), None, 0)[0], small, wanted)
    assert "192 entries" in capsys.readouterr().out
    ours = load(tmp_path / "ours.pt")
    content = (tmp_path / "theirs.pth").read_bytes()
    assert {name: ours[name] for name in ours if name != "model"} == {
        "format": "mfo", "kind": "model", "net": "r3d18", "embedding_dim": 128, "num_prototypes": 7,
        "source": {"name": "theirs.pth", "sha256": hashlib.sha256(content).hexdigest()}}
    MultiLevelModel("r3d18", 128, 7).double().load_state_dict(ours["model"])
    # Every tensor but the unused classifier arrives once, unchanged.
    for theirs, our in {
        "backbone.conv1.weight": "backbone.stem.0.weight", "backbone.bn1.bias": "backbone.stem.1.bias",
        "backbone.layer3.1.conv2.weight": "backbone.layer3.1.conv2.0.weight",
        "backbone.layer3.1.bn2.running_var": "backbone.layer3.1.conv2.1.running_var",
        "backbone.layer2.0.downsample.1.weight": "backbone.layer2.0.downsample.1.weight",
        "backbone.melow.0.conv2.weight": "excitation.low.shift.weight",
        "backbone.memid.0.bn3.bias": "excitation.mid.expand_norm.bias",
        "project.0.weight": "instance.high.0.weight", "project_mid.2.bias": "instance.mid.2.bias",
        "project_graph.0.weight": "graph_heads.high.0.weight", "project_low_graph.2.weight": "graph_heads.low.2.weight",
        "project_fine.2.weight": "timestamp.high.2.weight", "project_mid_fine.0.bias": "timestamp.mid.0.bias",
        "project_global.1.weight": "prototype_head.projection.1.weight",
        "prototype.weight": "prototype_head.prototypes.weight",
    }.items():
        assert torch.equal(state[theirs], ours["model"][our]), theirs
    kept = [value for name, value in state.items() if not name.startswith("backbone.fc.")]
    assert sorted(fingerprint(x) for x in kept) == sorted(fingerprint(x) for x in ours["model"].values())


def resnet_forward(state: dict[str, Tensor], clips: Tensor, pool: dict) -> list[Tensor]:
    """Maps after layer2, layer3 and layer4 of the ResNet of 3D-ResNets-PyTorch's resnet.py in eval mode, in its names.

    `pool`: of its stem's max-pool, in which the official code differs.
    """
    def norm(x: Tensor, name: str) -> Tensor:
        return F.batch_norm(x, *(state[f"{name}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")))

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv3d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = F.conv3d(clips, state["conv1.weight"], stride=(1, 2, 2), padding=3)
    x = F.max_pool3d(F.relu(norm(x, "bn1")), **pool)
    maps = []
    for layer in range(1, 5):
        for block in range(sum(f"layer{layer}.{number}.conv1.weight" in state for number in range(40))):
            name, stride, shortcut = f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1, x
            if f"{name}.downsample.0.weight" in state:
                shortcut = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            if f"{name}.conv3.weight" in state:  # Bottleneck, with the stride in its 3x3x3 convolution
                x = F.relu(norm(conv(x, f"{name}.conv1"), f"{name}.bn1"))
                x = F.relu(norm(conv(x, f"{name}.conv2", stride), f"{name}.bn2"))
                x = norm(conv(x, f"{name}.conv3"), f"{name}.bn3")
            else:
                x = F.relu(norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1"))
                x = norm(conv(x, f"{name}.conv2"), f"{name}.bn2")
            x = F.relu(x + shortcut)
        maps.append(x)
    return maps[1:]


def assert_same_features(backbone: torch.nn.Module, clips: Tensor, wanted: list[Tensor]) -> None:
    with torch.no_grad():
        for found, expected in zip(backbone.float().eval()(clips), wanted, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def fingerprint(tensor: Tensor) -> tuple:
    return tuple(tensor.shape), tensor.double().sum().item(), tensor.double().square().sum().item()


@pytest.mark.parametrize("net", ["r3d18", "r3d34", "r3d50"])
def test_3d_resnets_weights_become_a_backbone(tmp_path, capsys, net, small_input):
    ours = build_backbone(f"{net}_time_pool")
    generator = torch.Generator().manual_seed(1)
    for name, value in ours.state_dict().items():
        if value.dtype.is_floating_point and value.ndim == 1:
            value.uniform_(0.5, 1.5, generator=generator)
    theirs = {"epoch": 200, "arch": net, "state_dict": resnet_names(ours.state_dict())}
    torch.save(theirs, tmp_path / "in.pth")
    assert main(["3d-resnets", str(tmp_path / "in.pth"), str(tmp_path / "out.pt"), "--net", net]) == 0
    checkpoint = load(tmp_path / "out.pt")
    assert (checkpoint["format"], checkpoint["kind"], checkpoint["net"]) == ("mfo", "backbone", f"{net}_time_pool")
    assert "num_prototypes" not in checkpoint and "embedding_dim" not in checkpoint
    assert checkpoint["input"] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "frames": "rgb"}
    assert "those of the weights are not known" in capsys.readouterr().out
    assert checkpoint["model"].keys() == ours.state_dict().keys()
    assert all(torch.equal(checkpoint["model"][name], value) for name, value in ours.state_dict().items())
    state = {name.removeprefix("module."): value for name, value in theirs["state_dict"].items()}
    wanted = resnet_forward(state, small_input, dict(kernel_size=3, stride=2, padding=1))
    assert wanted[0].shape[2] == 4  # of 16 frames
    for named in (None, net, f"{net}_time_pool"):
        assert_same_features(load_backbone(str(tmp_path / "out.pt"), named, 0)[0], small_input, wanted)
    with pytest.raises(InputError, match=f"--net r3d10: .*out.pt holds a {net}_time_pool"):
        load_backbone(str(tmp_path / "out.pt"), "r3d10", 0)


def test_every_kind_of_checkpoint_keeps_the_stem(tmp_path, small_input, capsys):
    """The export, and a classifier and a pretrained model that started from 3D-ResNets weights; an old conversion not."""
    ours = build_backbone("r3d18_time_pool")
    state = {name.removeprefix("module."): value for name, value in resnet_names(ours.state_dict()).items()}
    wanted = resnet_forward(state, small_input, dict(kernel_size=3, stride=2, padding=1))
    torch.save(state, tmp_path / "in.pth")
    assert main(["3d-resnets", str(tmp_path / "in.pth"), str(tmp_path / "out.pt"), "--net", "r3d18"]) == 0
    assert export_backbone(str(tmp_path / "out.pt"), tmp_path / "exported") == 0
    backbone, weights = load_backbone(str(tmp_path / "out.pt"), None, 0)
    entries = {"format": "mfo", "net": weights["net"]}
    torch.save({**entries, "kind": "classifier", "weights": weights,
                "model": VideoClassifier(backbone, {}, True).state_dict()}, tmp_path / "classifier.pt")
    model = MultiLevelModel("r3d18_time_pool", 8, 6)
    model.backbone.load_state_dict(backbone.state_dict())
    torch.save({**entries, "kind": "model", "embedding_dim": 8, "num_prototypes": 6, "model": model.state_dict()},
               tmp_path / "model.pt")
    for name in ("exported.safetensors", "classifier.pt", "model.pt"):
        assert_same_features(load_backbone(str(tmp_path / name), None, 0)[0], small_input, wanted)
    assert_same_features(load_model(tmp_path / "model.pt").backbone, small_input, wanted)
    torch.save({**load(tmp_path / "out.pt"), "net": "r3d18"}, tmp_path / "old.pt")
    with pytest.raises(InputError, match="old.pt: .*convert them again$"):
        load_backbone(str(tmp_path / "old.pt"), None, 0)
    for weights, refused in ((str(tmp_path / "old.pt"), True), ("exported.safetensors", False)):
        torch.save({**load(tmp_path / "classifier.pt"), "net": "r3d18",
                    "weights": {"weights": weights, "weights_kind": "backbone"}}, tmp_path / "old_classifier.pt")
        with pytest.raises(InputError, match="convert them again, and train again") if refused else nullcontext():
            load_backbone(str(tmp_path / "old_classifier.pt"), None, 0)


def test_mean_and_std_of_the_input_are_kept(tmp_path, capsys):
    torch.save(resnet_names(build_backbone("r3d18").state_dict()), tmp_path / "in.pth")
    named = ["--mean", "0.4", "0.5", "0.6", "--std", "0.2", "0.2", "0.3"]
    convert = ["3d-resnets", str(tmp_path / "in.pth"), str(tmp_path / "out.pt"), "--net", "r3d18"]
    assert main([*convert, *named]) == 0
    assert load(tmp_path / "out.pt")["input"] == {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3], "frames": "rgb"}
    out = capsys.readouterr().out
    assert "mean [0.4, 0.5, 0.6] and std [0.2, 0.2, 0.3]" in out and "not known" not in out
    for flags, scale in ((["--mean", "kinetics"], ([0.4345, 0.4051, 0.3775], [0.2768, 0.2713, 0.2737])),
                         (["--mean", "0.5", "--std", "0.5"], ([0.5] * 3, [0.5] * 3))):
        assert main([*convert, *flags]) == 0
        assert load(tmp_path / "out.pt")["input"] == {"mean": scale[0], "std": scale[1], "frames": "rgb"}
    capsys.readouterr()
    for flags, message in ((named[:4], "both are for a backbone"), (["--mean", "k400"], "or --mean alone one of kinetics"),
                           (["--mean", "0.4", "0.5", "--std", "1", "1", "1"], "--mean 0.4 0.5: must be three numbers"),
                           (["--mean", "kinetics", "--std", "1", "1", "1"], "--mean kinetics: must be"),
                           ([*named[:4], "--std", "0", "1", "1"], "a std above 0"),
                           (["reference", *convert[1:], *named], "both are for a backbone")):
        assert main(flags if flags[0] == "reference" else [*convert, *flags]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("net, theirs, ends", [
    ("r2plus1d18", r2plus1d_18, {"low": "layer2", "mid": "layer3", "high": "layer4"}),
    ("s3d", s3d, {"low": "features.6", "mid": "features.12", "high": "features.15"}),
])
def test_torchvision_weights_give_torchvisions_features(tmp_path, small_input, net, theirs, ends):
    torch.manual_seed(0)
    network = theirs().train()
    network.requires_grad_(False)
    seen = {}
    for level, end in ends.items():
        network.get_submodule(end).register_forward_hook(
            lambda _module, _inputs, output, level=level: seen.__setitem__(level, output))
    # Move the running statistics away from their start. S3D's own pooling needs more frames: stop before it.
    features = network.features if net == "s3d" else network
    features(torch.randn(2, 3, 16, 32, 32))
    network.eval()
    features(small_input)
    torch.save(network.state_dict(), tmp_path / "in.pth")
    assert main(["torchvision", str(tmp_path / "in.pth"), str(tmp_path / "out.pt"), "--net", net]) == 0
    checkpoint = load(tmp_path / "out.pt")
    weights = {"r2plus1d18": R2Plus1D_18_Weights, "s3d": S3D_Weights}[net].KINETICS400_V1
    assert checkpoint["input"] == {"mean": weights.transforms().mean, "std": weights.transforms().std, "frames": "rgb"}
    ours = build_backbone(net).eval()
    ours.load_state_dict(checkpoint["model"])
    with torch.no_grad():
        maps = ours(small_input)
    for level, expected in seen.items():
        assert torch.equal(getattr(maps, level), expected), level


def run_and_expect_error(tmp_path: Path, capsys, source: str, net: str, *expected: str) -> None:
    """The conversion of in.pth fails with one line that holds `expected`, and leaves no file."""
    before = sorted(tmp_path.iterdir())
    assert main([source, str(tmp_path / "in.pth"), str(tmp_path / "out.pt"), "--net", net]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("convert_checkpoint.py: error: ") and captured.err.count("\n") == 1, captured.err
    assert all(text in captured.err for text in expected), captured.err
    assert sorted(tmp_path.iterdir()) == before


def drop(state):
    del state["backbone.layer2.0.conv1.weight"]


def add(state):
    state["backbone.layer9.weight"] = torch.zeros(2)


def reshape(state):
    state["project_mid.2.weight"] = state["project_mid.2.weight"][:, :5]


def drop_prototypes(state):
    del state["prototype.weight"]


def flatten_prototypes(state):
    state["prototype.weight"] = state["prototype.weight"].flatten()


@pytest.mark.parametrize("damage, expected", [
    (drop, ["1 missing: backbone.layer2.0.conv1.0.weight"]),
    (add, ["1 not part of the model: backbone.layer9.weight"]),
    (reshape, ["1 of another shape: instance.mid.2.weight (128, 5, 1) instead of (128, 32, 1)"]),
    (drop_prototypes, ["1 missing: prototype.weight"]),
    (flatten_prototypes, ["prototype.weight (384,) instead of (K, D)"]),
])
def test_wrong_reference_keys_are_named(tmp_path, capsys, damage, expected):
    state = {name: value.float() for name, value in official_state(3, NARROW).items()}
    damage(state)
    torch.save(state, tmp_path / "in.pth")
    run_and_expect_error(tmp_path, capsys, "reference", "r3d18", str(tmp_path / "in.pth"), *expected)


def test_weights_of_another_depth_are_refused(tmp_path, capsys):
    torch.save(resnet_names(build_backbone("r3d10").state_dict()), tmp_path / "in.pth")
    run_and_expect_error(tmp_path, capsys, "3d-resnets", "r3d18", "missing: layer1.1.conv1.0.weight")


@pytest.mark.parametrize("source, net, accepted", [
    ("reference", "s3d", "r3d18"), ("3d-resnets", "r3d10", "r3d18, r3d34, r3d50"),
    ("torchvision", "r3d18", "r2plus1d18, s3d"),
])
def test_net_without_weights_of_that_source(tmp_path, capsys, source, net, accepted):
    run_and_expect_error(tmp_path, capsys, source, net, f"--net {net}", accepted)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"state_dict": {}}, [torch.zeros(2)], torch.zeros(3)])
def test_file_without_weights(tmp_path, capsys, content):
    torch.save(content, tmp_path / "in.pth")
    run_and_expect_error(tmp_path, capsys, "3d-resnets", "r3d18", str(tmp_path / "in.pth"), "holds")


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04 cut off"])
def test_file_that_is_no_checkpoint(tmp_path, capsys, content):
    (tmp_path / "in.pth").write_bytes(content)
    run_and_expect_error(tmp_path, capsys, "reference", "r3d18", str(tmp_path / "in.pth"))


def test_missing_file_and_missing_folder(tmp_path, capsys):
    run_and_expect_error(tmp_path, capsys, "reference", "r3d18", "in.pth", "No such file")
    torch.save(official_state(3, NARROW), tmp_path / "in.pth")
    out = tmp_path / "absent" / "out.pt"
    assert main(["reference", str(tmp_path / "in.pth"), str(out), "--net", "r3d18"]) == 2
    assert str(out) in capsys.readouterr().err


class Crafted:
    """Unpickling this would create a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_crafted_pickle_runs_nothing(tmp_path, capsys):
    torch.save({"state_dict": Crafted(tmp_path / "ran")}, tmp_path / "in.pth")
    run_and_expect_error(tmp_path, capsys, "reference", "r3d18", str(tmp_path / "in.pth"))
    assert not (tmp_path / "ran").exists()


def test_starts_from_any_folder(tmp_path):
    (tmp_path / "in.pth").write_bytes(b"nothing")
    done = subprocess.run([sys.executable, ROOT / "scripts" / "convert_checkpoint.py", "torchvision", "in.pth", "out.pt",
                           "--net", "s3d"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("convert_checkpoint.py: error: in.pth: ") and done.stderr.count("\n") == 1
    assert done.stdout == ""
