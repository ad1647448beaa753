"""Convert weights of other code bases to a checkpoint of this project; every key has to match.

    python scripts/convert_checkpoint.py official    mfo_k400.pth        mfo.pt       --net r3d18
    python scripts/convert_checkpoint.py 3d-resnets  r3d50_K_200ep.pth   r3d50.pt     --net r3d50
    python scripts/convert_checkpoint.py torchvision r2plus1d_18.pth     r2plus1d.pt  --net r2plus1d18

"official" (old spelling: "reference") reads a checkpoint of the official MFO code and gives a whole model, whose embedding
width and number of prototypes follow from the shapes. "3d-resnets" (3D-ResNets-PyTorch) and "torchvision" give a backbone.
Classifiers are left out. A missing, unexpected or misshaped key is an error that names it, and nothing is written.

3D-ResNets pool over time in their stem, the official code does not: their weights, `--net r3d50`, become the backbone
r3d50_time_pool, and every command that reads them builds that one. What earlier versions converted to r3d50, and
classifiers trained from it, are refused; a .safetensors file exported from it cannot be recognized: convert again, and
export again.

A backbone is stored with the mean and std that its clips must be scaled by, and evaluations apply them: those of
torchvision's weights; for 3d-resnets --mean and --std, by default ImageNet's. `--mean kinetics`, `--mean 0.5` and `--mean
imagenet` set both, to those of 3D-ResNets' trainings of that name. The official code uses ImageNet's, as pretraining does.

The output is a dict: "format" "mfo", "kind" "model" or "backbone", "net", "model" (state dict; a backbone's keys have no
prefix), "input" ("mean" and "std" of a backbone) or "embedding_dim" and "num_prototypes" (of a model), and "source"
("name" and "sha256" of the input file).
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it starts from any folder

import torch

from dataset.transforms import IMAGENET, read_input
from models.convert import convert, unwrap
from models.multilevel import MultiLevelModel, build_backbone
from utils.checkpoint import FORMAT, canonical, read_checkpoint, write_checkpoint
from utils.cli import NETS, TIME_POOL, OneLineParser
from utils.errors import InputError, exit_status_of
from utils.files import file_sha256

# Source -> (backbones, the mean and std that these were trained with; None: a whole model of the official code).
SOURCES = {
    "official": (("r3d18",), None),
    "3d-resnets": (("r3d18", "r3d34", "r3d50"), IMAGENET),
    "torchvision": (("r2plus1d18", "s3d"),  # `transforms()` of R2Plus1D_18_Weights and S3D_Weights
                    {**IMAGENET, "mean": [0.43216, 0.394666, 0.37645], "std": [0.22803, 0.22145, 0.216989]}),
}
SCALES = {  # by the names of mean.py of 3D-ResNets-PyTorch, and its --no_std_norm's counterpart
    "kinetics": ([0.4345, 0.4051, 0.3775], [0.2768, 0.2713, 0.2737]), "0.5": ([0.5] * 3, [0.5] * 3),
    "imagenet": (IMAGENET["mean"], IMAGENET["std"])}
PROTOTYPES = "prototype.weight"  # of the official code, [K, D]


def convert_checkpoint(flags: argparse.Namespace) -> int:
    """Returns the exit status 0 after writing; InputError for weights that do not fill the architecture."""
    source, net = flags.source, canonical(flags.net).removesuffix(TIME_POOL)
    nets, scale = SOURCES[source]
    if net not in nets or flags.net.endswith(TIME_POOL) and source != "3d-resnets":
        raise InputError(f"--net {flags.net}: {source} weights are read for {', '.join(nets)}")
    if source == "3d-resnets":
        net += TIME_POOL
    named = bool(flags.mean or flags.std)
    if named:
        mean, std = read_scale(flags.mean, flags.std)
        if scale is None or not (mean and std):
            raise InputError("--mean, --std: both are for a backbone; the official model takes ImageNet's")
        scale = read_input({"input": {"mean": mean, "std": std}}, "--mean, --std")
    checkpoint = read_checkpoint(flags.input)
    try:
        state = unwrap(checkpoint)
        with torch.device("meta"):  # only names and shapes of the target are needed
            if scale is None:
                prototypes = state.get(PROTOTYPES, state.get(f"module.{PROTOTYPES}"))
                if prototypes is None:
                    raise ValueError(f"1 missing: {PROTOTYPES}")
                if prototypes.ndim != 2 or 0 in prototypes.shape:
                    raise ValueError(f"1 of another shape: {PROTOTYPES} {tuple(prototypes.shape)} instead of (K, D)")
                kind, details = "model", dict(zip(("num_prototypes", "embedding_dim"), prototypes.shape))
                target = MultiLevelModel(net, **details)
            else:
                kind, details, target = "backbone", {"input": scale}, build_backbone(net)
        converted = convert(state, source, target)
    except ValueError as error:
        raise InputError(f"{flags.input}: no {source} weights of {net}: {error}") from error
    write_checkpoint({"format": FORMAT, "kind": kind, "net": net, "model": converted, **details,
                      "source": {"name": flags.input.name, "sha256": file_sha256(flags.input)}}, flags.output)
    print(f"{flags.output}: {kind} of {net}, {len(converted)} entries")
    if scale:
        print("clips will be scaled by mean {mean} and std {std}".format(**scale))
    if source == "3d-resnets" and not named:
        print("these are ImageNet's, as those of the weights are not known; --mean kinetics, --mean 0.5, or three numbers "
              "each for --mean and --std set others")
    return 0


def read_scale(mean: Sequence[str] | None, std: Sequence[str] | None) -> tuple[list[float] | None, list[float] | None]:
    """Returns the values of --mean and --std, three numbers each or None; a name of SCALES as --mean stands for both."""
    if mean and len(mean) == 1 and mean[0] in SCALES and std in (None, mean):
        return SCALES[mean[0]]
    values = []
    for flag, texts in (("--mean", mean), ("--std", std)):
        try:
            values.append(texts and [float(text) for text in texts])
        except ValueError:
            values.append([])
        if texts and len(values[-1]) != 3:
            raise InputError(f"{flag} {' '.join(texts)}: must be three numbers, or --mean alone one of {', '.join(SCALES)}")
    return values[0], values[1]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = OneLineParser(prog="convert_checkpoint.py", description=__doc__)
    parser.add_argument("source", choices=tuple(SOURCES), help="code base of the weights",
                        type=lambda name: "official" if name == "reference" else name)
    parser.add_argument("input", metavar="IN", type=Path, help="checkpoint to read")
    parser.add_argument("output", metavar="OUT", type=Path, help="checkpoint to write; an existing file is replaced")
    parser.add_argument("--net", choices=NETS, required=True, help="backbone; resnet18 is r3d18")
    for name in ("mean", "std"):
        parser.add_argument(f"--{name}", nargs="+", metavar="VALUE",
                            help=f"{name} of red, green and blue, in [0, 1], that the backbone was trained with"
                            + (f"; or {', '.join(SCALES)}, for mean and std" if name == "mean" else ""))
    flags = parser.parse_args(arguments)
    return exit_status_of(lambda: convert_checkpoint(flags), parser.prog)


if __name__ == "__main__":
    sys.exit(main())
