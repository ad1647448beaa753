"""A training step (forward, objective, backward, Adam) of each backbone, in bfloat16 and with checkpointing.

    python -m benchmarks.step [--quick]

Videos of two clips and the overview, 16 frames at 112 px, already in memory. Held memory is what the forward pass
leaves for the backward, for one more video; peak memory is what both take beyond model and clips, in a process of its
own.
"""
from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from benchmarks.measure import HeldMemory, milliseconds, quick_flag, ratio, table, time_in_turns
from models.multilevel import BACKBONES, ModelOutput, MultiLevelModel
from models.objective import Objective

CLIPS, CLIP_FRAMES, IMG_DIM = 2, 16, 112
WAYS = {"float32": (False, False), "bf16": (True, False), "recomputed": (False, True), "both": (True, True)}
TIMED = ("float32", "bf16", "recomputed")


class Step:
    """A model, and the step that train.py takes with it."""

    def __init__(self, net: str, videos: int, device: str = "cpu", img_dim: int = IMG_DIM) -> None:
        torch.manual_seed(0)
        self.model = MultiLevelModel(net).to(device).train()
        self.train_model: nn.Module = self.model  # or a compiled one
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-3, weight_decay=1e-5, fused=True)
        self.objective = Objective(graph_start_epoch=0)
        self.views = torch.randn(videos, CLIPS + 1, 3, CLIP_FRAMES, img_dim, img_dim, device=device)

    def use_channels_last(self) -> Step:
        """This one, with the channels of clips and backbone innermost in memory."""
        self.model.backbone.to(memory_format=torch.channels_last_3d)
        self.views = self.views.movedim(2, -1).contiguous().movedim(-1, 2)
        return self

    def forward(self, way: str) -> ModelOutput:
        """Returns the model's output, computed in one of the WAYS."""
        bfloat16, self.model.backbone.checkpoint_activations = WAYS[way]
        self.model.prototype_head.normalize_()
        with torch.autocast(self.views.device.type, torch.bfloat16, enabled=bfloat16):
            return self.train_model(self.views)

    def gradients(self, way: str) -> None:
        """Sets every parameter's gradient."""
        loss = self.objective(self.forward(way), 0, lambda rows: rows, 0)
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()

    def take(self, way: str) -> None:
        """One step."""
        self.gradients(way)
        self.optimizer.step()

    def held_mib(self, way: str) -> float:
        """Returns the MiB that a forward pass leaves for the backward, for one more video; outputs are a small part."""
        views, held = self.views, []
        for tried in (views, torch.cat([views, views[:1]])):
            self.views = tried
            with HeldMemory() as memory:
                output = self.forward(way)
            held.append(memory.held_bytes() / 2**20)
            del output
        self.views = views
        return held[1] - held[0]


def peak_mib(net: str, videos: int, way: str) -> float:
    """Returns the peak memory of a way's forward and backward pass, from a process of its own."""
    code = ("import torch; from benchmarks.measure import raised_mib; from benchmarks.step import Step; "
            f"torch.set_num_threads(1); step = Step({net!r}, {videos}); "
            f"print(raised_mib(lambda: step.gradients({way!r})))")
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    quick = quick_flag(__doc__)
    torch.set_num_threads(1)
    rows, memory = [], []
    for net in ["r3d10"] if quick else [net for net in BACKBONES if net != "resnet18"]:
        videos, turns = (2, 3) if net == "r3d18" and not quick else (1, 1)
        step, channels_last = Step(net, videos), Step(net, videos).use_channels_last()
        seconds = time_in_turns({**{way: lambda way=way: step.take(way) for way in TIMED},
                                 "channels last": lambda: channels_last.take("bf16")}, turns)
        rows.append([net, videos,
                     *(milliseconds(seconds[way]) for way in ("float32", "bf16", "channels last", "recomputed")),
                     *(f"{ratio(seconds['float32'], seconds[way]):.2f}x" for way in ("bf16", "channels last")),
                     f"{ratio(seconds['recomputed'], seconds['float32']):.2f}x"])
        memory.append([net, *(f"{step.held_mib(way):.0f}" for way in TIMED)])
    print(table(["`--net`", "videos", "float32 ms", "bf16 ms", "bf16, channels last ms", "checkpointing ms", "bf16 gain",
                 "with channels last", "checkpointing's cost"], rows))
    print("\n" + table(["MiB held for the backward, each further video", "float32", "bf16", "checkpointing"], memory))
    net, videos = ("r3d10", 2) if quick else ("r3d18", 4)
    peaks = [f"{peak_mib(net, videos, way):.0f} MiB ({name})"
             for way, name in (("float32", "float32"), ("bf16", "bf16"), ("recomputed", "checkpointing"))]
    print(f"\nPeak of a forward and backward pass of {net} with {videos} videos: " + ", ".join(peaks) + ".")


if __name__ == "__main__":
    main()
