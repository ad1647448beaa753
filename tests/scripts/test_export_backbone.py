"""The backbone outside: each file that is written gives the same outputs when it is loaded back."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torchvision.models.video import r2plus1d_18, s3d

from eval.features.backbone import load_backbone
from models.multilevel import MultiLevelModel
from scripts.export_backbone import main
from utils.checkpoint import FORMAT, read_checkpoint, write_checkpoint
from utils.errors import InputError
from utils.files import file_sha256

ROOT = Path(__file__).resolve().parents[2]


def export(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(ROOT / "scripts/export_backbone.py"), *map(str, arguments)],
                          capture_output=True, text=True)


def write_model(path: Path, net: str) -> torch.nn.Module:
    """A pretraining checkpoint whose batch norms have seen data; returns its backbone."""
    torch.manual_seed(0)
    model = MultiLevelModel(net, 8, 6)
    model.backbone(torch.randn(2, 3, 16, 32, 32))
    write_checkpoint({"format": FORMAT, "kind": "model", "net": net, "embedding_dim": 8, "num_prototypes": 6,
                      "model": model.state_dict(), "epochs_done": 7}, path)
    return model.backbone.eval()


@pytest.mark.parametrize("net, theirs", [("r3d10", None), ("r2plus1d18", r2plus1d_18), ("s3d", s3d)])
def test_each_file_loads_back_with_the_same_outputs(tmp_path, net, theirs):
    backbone = write_model(tmp_path / "model.pt", net)
    result = export(tmp_path / "model.pt", tmp_path / "new" / "k400")
    assert result.returncode == 0, result.stderr
    clips = torch.randn(1, 3, 16, 64, 64, generator=torch.Generator().manual_seed(1))
    file = tmp_path / "new/k400.safetensors"
    ours, info = load_backbone(str(file), None, 0)
    assert info["net"] == net and info["pretrained_epochs"] == 7
    with torch.inference_mode():
        wanted = backbone(clips)
        for level, found in zip(wanted, ours.eval()(clips)):
            assert torch.equal(level, found)
    with safe_open(file, "pt") as stored:
        configuration = json.loads(stored.metadata()["configuration"])
    assert configuration["channels"] == backbone.channels
    assert configuration["checkpoint_sha256"] == file_sha256(tmp_path / "model.pt")

    torchvision_file = tmp_path / "new/k400_torchvision.pt"
    assert torchvision_file.exists() == (theirs is not None)
    if theirs is None:
        assert "no torchvision model has this architecture" in result.stdout
        return
    model = theirs().eval()
    keys = model.load_state_dict(torch.load(torchvision_file, weights_only=True), strict=False)
    assert not keys.unexpected_keys and all(key.startswith(("fc.", "classifier.")) for key in keys.missing_keys)
    last = []
    (model.layer4 if net == "r2plus1d18" else model.features).register_forward_hook(lambda _m, _i, out: last.append(out))
    with torch.inference_mode():
        try:
            model(clips)
        except RuntimeError:
            assert net == "s3d" and last  # its classifier wants larger clips; its features are there
    torch.testing.assert_close(last[0], wanted.high)


def test_mistakes_are_one_line(tmp_path, capsys):
    (tmp_path / "junk.pt").write_bytes(b"junk")
    for arguments, named in (((tmp_path / "junk.pt", tmp_path / "x"), "junk.pt"), ((tmp_path / "no.pt", "x"), "no.pt"),
                             (("random", "x"), "random: name a checkpoint"), (("no.pt", "."), ".: is a folder")):
        assert main([*map(str, arguments)]) == 2
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1 and named in errors
    assert not list(tmp_path.glob("x*"))


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}"])
def test_a_broken_safetensors_file_is_one_line(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match="x.safetensors") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
