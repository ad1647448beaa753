"""Convert other people's weights to a checkpoint of ours, strict about every key.

    python scripts/convert_checkpoint.py official    mfo_k400.pth        mfo.pt       --net r3d18
    python scripts/convert_checkpoint.py 3d-resnets  r3d50_K_200ep.pth   r3d50.pt     --net r3d50
    python scripts/convert_checkpoint.py torchvision r2plus1d_18.pth     r2plus1d.pt  --net r2plus1d18

"official" (formerly "reference") is a checkpoint of the official code and gives the whole model, of the width and number
of prototypes that its shapes say; the two others give a backbone. The classifier of each is left out, as no backbone here
has one. A key that is missing, of another shape or not part of the model is an error that names it, and nothing is written.

Clips must be scaled as they were in the training of the weights. The authors' code scales by ImageNet's mean and std, as
this project does; torchvision's video weights want others, which the result keeps under "input" and the evaluations apply.
The mean and std of 3d-resnets weights are not known here: name them by --mean and --std, or ImageNet's are taken.

The result is a dict: "format" "mfo", "kind" "model" or "backbone", "net", "model" (a state dict; that of a backbone has
no prefix), for a backbone "input" (its "mean" and "std"), for a whole model "embedding_dim" and "num_prototypes", and
"source", the "name" and "sha256" of the file.
"""
# ruff: noqa: E402
from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it starts from any folder

import torch
from torch import Tensor

from eval.features.extract import IMAGENET, read_input
from models.multilevel import MultiLevelModel, build_backbone
from models.convert import convert, unwrap
from utils.checkpoint import FORMAT, canonical, read_checkpoint, write_checkpoint
from utils.errors import InputError, report
from utils.cli import NETS, OneLineParser

# The backbones that each source has weights of.
SOURCES = {
    "official": ("r3d18",),
    "3d-resnets": ("r3d18", "r3d34", "r3d50"),
    "torchvision": ("r2plus1d18", "s3d"),
}
# What `transforms()` of torchvision's video weights, such as R2Plus1D_18_Weights and S3D_Weights, say.
TORCHVISION = {"mean": [0.43216, 0.394666, 0.37645], "std": [0.22803, 0.22145, 0.216989]}
PROTOTYPES = "prototype.weight"  # of the reference, [K, D]


def convert_file(source: str, path: Path, net: str, scale: dict[str, list[float]] | None = None) -> dict[str, Any]:
    """Our checkpoint of the weights at `path`, which come from `source` and are those of `net`. InputError if not.

    `scale`: "mean" and "std" of a backbone's input, if they are not those that the source is known for.
    """
    net = canonical(net)
    if net not in SOURCES[source]:
        raise InputError(f"--net {net}: {source} weights are read for {', '.join(SOURCES[source])}")
    checkpoint = read_checkpoint(path)
    try:
        state = unwrap(checkpoint)
        with torch.device("meta"):  # names and shapes are all that is needed of the target
            if source == "official":
                sizes = head_sizes(state)
                converted = convert(state, source, MultiLevelModel(net, **sizes))
            else:
                sizes = {}
                converted = convert(state, source, build_backbone(net))
    except ValueError as error:
        raise InputError(f"{path}: no {source} weights of {net}: {error}") from error
    known = {"torchvision": TORCHVISION, "3d-resnets": IMAGENET}
    return {"format": FORMAT, "kind": "model" if source == "official" else "backbone", "net": net,
            "model": converted, **(sizes or {"input": scale or known[source]}),
            "source": {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}}


def head_sizes(state: dict[str, Tensor]) -> dict[str, int]:
    """Embedding width and number of prototypes of a reference checkpoint, by the shape [K, D] of its prototypes."""
    prototypes = state.get(PROTOTYPES, state.get(f"module.{PROTOTYPES}"))
    if prototypes is None:
        raise ValueError(f"1 missing: {PROTOTYPES}")
    if prototypes.ndim != 2 or 0 in prototypes.shape:
        raise ValueError(f"1 of another shape: {PROTOTYPES} {tuple(prototypes.shape)} instead of (K, D)")
    return {"embedding_dim": prototypes.shape[1], "num_prototypes": prototypes.shape[0]}


def read_scale(flags: argparse.Namespace) -> dict[str, list[float]] | None:
    """What --mean and --std say of a backbone's input, None without them; InputError for what cannot be."""
    if flags.mean is None and flags.std is None:
        return None
    if flags.mean is None or flags.std is None:
        raise InputError("--mean, --std: give both or none")
    if flags.source == "official":
        raise InputError("--mean, --std: are for a backbone; the authors' model is scaled by ImageNet's")
    return read_input({"input": {"mean": flags.mean, "std": flags.std}}, "--mean, --std")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 after one line on stderr about what cannot be converted."""
    parser = OneLineParser(prog="convert_checkpoint.py", description=__doc__)
    parser.add_argument("source", choices=tuple(SOURCES), help="where the weights come from",
                        type=lambda name: "official" if name == "reference" else name)
    parser.add_argument("input", metavar="IN", type=Path, help="checkpoint to read")
    parser.add_argument("output", metavar="OUT", type=Path, help="checkpoint to write; an older one is replaced")
    parser.add_argument("--net", choices=NETS, required=True, help="backbone; resnet18 is r3d18")
    for name in ("mean", "std"):
        parser.add_argument(f"--{name}", type=float, nargs=3, metavar=("R", "G", "B"),
                            help=f"{name} of each color, from 0 to 1, that clips were scaled by when a backbone was trained")
    flags = parser.parse_args(arguments)
    try:
        scale = read_scale(flags)
        checkpoint = convert_file(flags.source, flags.input, flags.net, scale)
        write_checkpoint(checkpoint, flags.output)
    except InputError as error:
        return report(error, parser.prog)
    print(f"{flags.output}: {checkpoint['kind']} of {checkpoint['net']}, {len(checkpoint['model'])} entries")
    if "input" in checkpoint:
        print("clips will be scaled by mean {mean} and std {std}".format(**checkpoint["input"]))
    if flags.source == "3d-resnets" and scale is None:
        print("these are ImageNet's, and those of the weights are not known: if they are others, name them by --mean and "
              "--std")
    return 0


if __name__ == "__main__":
    sys.exit(main())
