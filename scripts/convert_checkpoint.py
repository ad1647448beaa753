"""Convert other people's weights to a checkpoint of ours, strict about every key.

    python scripts/convert_checkpoint.py reference   mfo_k400.pth        mfo.pt       --net r3d18
    python scripts/convert_checkpoint.py 3d-resnets  r3d50_K_200ep.pth   r3d50.pt     --net r3d50
    python scripts/convert_checkpoint.py torchvision r2plus1d_18.pth     r2plus1d.pt  --net r2plus1d18

"reference" is a checkpoint of the authors' code and gives the whole model, of the width and number of prototypes that
its shapes say; the two others give a backbone. The classifier of each is left out, as none of ours has one. A key that
is missing, of another shape or not part of the model is an error that names it, and nothing is written.

The result is a dict: "format" "mfo", "kind" "model" or "backbone", "net", "model" (a state dict; that of a backbone has
no prefix), for a whole model "embedding_dim" and "num_prototypes", and "source", the "name" and "sha256" of the file.
"""
# ruff: noqa: E402
from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it starts from any folder

import torch
from torch import Tensor

from models.multilevel import MultiLevelModel, build_backbone
from models.weights import convert, unwrap
from utils.checkpoint import FORMAT, canonical, read_checkpoint, write_checkpoint
from utils.errors import InputError, report
from utils.flags import NETS, OneLineParser

# The backbones that each source has weights of.
SOURCES = {
    "reference": ("r3d18",),
    "3d-resnets": ("r3d18", "r3d34", "r3d50"),
    "torchvision": ("r2plus1d18", "s3d"),
}
PROTOTYPES = "prototype.weight"  # of the reference, [K, D]


def convert_file(source: str, path: Path, net: str) -> dict[str, Any]:
    """Our checkpoint of the weights at `path`, which come from `source` and are those of `net`. InputError if not."""
    net = canonical(net)
    if net not in SOURCES[source]:
        raise InputError(f"--net {net}: {source} weights are read for {', '.join(SOURCES[source])}")
    checkpoint = read_checkpoint(path)
    try:
        state = unwrap(checkpoint)
        with torch.device("meta"):  # names and shapes are all that is needed of the target
            if source == "reference":
                sizes = head_sizes(state)
                converted = convert(state, source, MultiLevelModel(net, **sizes))
            else:
                sizes = {}
                converted = convert(state, source, build_backbone(net))
    except ValueError as error:
        raise InputError(f"{path}: no {source} weights of {net}: {error}") from error
    return {"format": FORMAT, "kind": "model" if source == "reference" else "backbone", "net": net,
            "model": converted, **sizes,
            "source": {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}}


def head_sizes(state: dict[str, Tensor]) -> dict[str, int]:
    """Embedding width and number of prototypes of a reference checkpoint, by the shape [K, D] of its prototypes."""
    prototypes = state.get(PROTOTYPES, state.get(f"module.{PROTOTYPES}"))
    if prototypes is None:
        raise ValueError(f"1 missing: {PROTOTYPES}")
    if prototypes.ndim != 2 or 0 in prototypes.shape:
        raise ValueError(f"1 of another shape: {PROTOTYPES} {tuple(prototypes.shape)} instead of (K, D)")
    return {"embedding_dim": prototypes.shape[1], "num_prototypes": prototypes.shape[0]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 2 after one line on stderr about what cannot be converted."""
    parser = OneLineParser(prog="convert_checkpoint.py", description=__doc__)
    parser.add_argument("source", choices=tuple(SOURCES), help="whose names the weights have")
    parser.add_argument("input", metavar="IN", type=Path, help="checkpoint to read")
    parser.add_argument("output", metavar="OUT", type=Path, help="checkpoint to write; an older one is replaced")
    parser.add_argument("--net", choices=NETS, required=True, help="backbone; resnet18 is r3d18")
    flags = parser.parse_args(arguments)
    try:
        checkpoint = convert_file(flags.source, flags.input, flags.net)
        write_checkpoint(checkpoint, flags.output)
    except InputError as error:
        return report(error, parser.prog)
    print(f"{flags.output}: {checkpoint['kind']} of {checkpoint['net']}, {len(checkpoint['model'])} entries")
    return 0


if __name__ == "__main__":
    sys.exit(main())
