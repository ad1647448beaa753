"""Export the backbone of a checkpoint for use in other code.

    python scripts/export_backbone.py runs/k400/checkpoints/epoch_0100.pt exported/k400

writes `exported/k400.safetensors`: the weights, with the configuration as metadata (architecture, channels of each level,
epochs of pretraining, SHA-256 of the checkpoint, mean and std of the input). For a finetuned checkpoint the epochs are those
of the pretraining that it started from. `--weights` of every command reads this file. For an architecture of torchvision
(r2plus1d18: r2plus1d_18, s3d: s3d) it also writes `exported/k400_torchvision.pt`, a state dict without classifier:

    model = torchvision.models.video.r2plus1d_18()
    model.load_state_dict(torch.load("exported/k400_torchvision.pt"), strict=False)    # only fc.* is missing
"""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it starts from any folder

from eval.features.backbone import load_backbone
from eval.result_card import make_out_dir
from utils.checkpoint import FORMAT, write_checkpoint, write_safetensors
from utils.cli import OneLineParser
from utils.errors import InputError, exit_status_of


def export_backbone(weights: str, prefix: Path) -> int:
    """Returns the exit status 0 after writing the files; InputError for weights of other projects, or a full disk."""
    if weights == "random":
        raise InputError("random: name a checkpoint")
    if prefix.name in ("", ".."):
        raise InputError(f"{prefix}: is a folder; name the files in it, such as {prefix / 'backbone'}")
    backbone, info = load_backbone(weights, None, seed=0)
    state = {name: value.contiguous() for name, value in backbone.state_dict().items()}
    configuration = {"format": FORMAT, "kind": "backbone", "net": info["net"], "channels": backbone.channels,
                     "epochs_done": info["pretrained_epochs"], "checkpoint_sha256": info["checkpoint_sha256"],
                     "input": {"shape": "[M, 3, T, H, W]", **info["input"]}}
    make_out_dir(prefix.parent, "OUT")
    files = [prefix.with_name(f"{prefix.name}.safetensors")]
    write_safetensors(state, configuration, files[0])
    if info["net"] in ("r2plus1d18", "s3d"):
        files.append(prefix.with_name(f"{prefix.name}_torchvision.pt"))
        write_checkpoint(state, files[1])
    else:
        print("no torchvision model has this architecture: no state dict for it")
    for path in files:
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OneLineParser(prog="export_backbone.py", description=__doc__)
    parser.add_argument("weights", metavar="CHECKPOINT", help="checkpoint of this project")
    parser.add_argument("prefix", metavar="OUT", type=Path, help="files to write, without their endings")
    flags = parser.parse_args(arguments)
    return exit_status_of(lambda: export_backbone(flags.weights, flags.prefix), parser.prog)


if __name__ == "__main__":
    sys.exit(main())
