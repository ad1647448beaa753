"""A training step (forward, objective, backward, Adam) of each backbone, in bfloat16 and with checkpointing.

Videos of two clips and the overview, 16 frames at 112 px, already in memory. Held memory is what the forward pass keeps
for the backward pass, per additional video; peak memory is what both take beyond model and clips, in a process of its own.
"""
from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from benchmarks.measure import HeldMemory, milliseconds, peak_mib, print_table, ratio, run_benchmark, time_in_turns
from models.multilevel import BACKBONES, ModelOutput, MultiLevelModel
from models.objective import Objective
from utils.distributed import gather_rows

CLIPS, CLIP_FRAMES, IMG_DIM = 2, 16, 112
# mode -> (in bfloat16, with checkpointing)
STEP_MODES = {"float32": (False, False), "bf16": (True, False), "checkpointing": (False, True), "both": (True, True)}
TIMED = ("float32", "bf16", "checkpointing")


class BenchmarkStep:
    """A model, random clips, and the training step of train.py. `mode`: one of STEP_MODES."""

    def __init__(self, net: str, videos: int, device: str = "cpu", channels_last: bool = False, num_clips: int = CLIPS,
                 clip_frames: int = CLIP_FRAMES, img_dim: int = IMG_DIM, rank: int = 0) -> None:
        torch.manual_seed(0)
        self.model = MultiLevelModel(net).to(device).train()
        self.train_model: nn.Module = self.model  # or a wrapped one
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-3, weight_decay=1e-5, fused=True)
        self.objective, self.rank = Objective(graph_start_epoch=0), rank
        self.views = torch.randn(videos, num_clips + 1, 3, clip_frames, img_dim, img_dim, device=device)
        if channels_last:
            self.model.backbone.to(memory_format=torch.channels_last_3d)
            self.views = self.views.movedim(2, -1).contiguous().movedim(-1, 2)

    def forward(self, mode: str) -> ModelOutput:
        """Returns the model's output."""
        bfloat16, self.model.backbone.checkpoint_activations = STEP_MODES[mode]
        self.model.prototype_head.normalize_()
        with torch.autocast(self.views.device.type, torch.bfloat16, enabled=bfloat16):
            return self.train_model(self.views)

    def backward(self, mode: str) -> None:
        """Sets every parameter's gradient."""
        loss = self.objective(self.forward(mode), 0, gather_rows, self.rank)
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()

    def run(self, mode: str) -> None:
        self.backward(mode)
        self.optimizer.step()

    def held_mib(self, mode: str) -> float:
        """Returns the MiB that a forward pass keeps for the backward, per additional video; outputs are a small part."""
        views, held = self.views, []
        for self.views in (views, torch.cat([views, views[:1]])):
            with HeldMemory() as memory:
                _output = self.forward(mode)
            held.append(memory.held_bytes() / 2**20)
        self.views = views
        return held[1] - held[0]


def main(quick: bool, _: Path) -> None:
    rows, memory = [], []
    for net in ["r3d10"] if quick else [net for net in BACKBONES if net != "resnet18"]:
        videos, turns = (2, 3) if net == "r3d18" and not quick else (1, 1)
        step, channels_last = BenchmarkStep(net, videos), BenchmarkStep(net, videos, channels_last=True)
        jobs = {mode: lambda mode=mode: step.run(mode) for mode in TIMED}
        float32, bf16, checkpointing, bf16_last = time_in_turns(
            {**jobs, "channels last": lambda: channels_last.run("bf16")}, turns).values()
        rows.append([net, videos, *map(milliseconds, (float32, bf16, bf16_last, checkpointing)), *(
            f"{ratio(*pair):.2f}x" for pair in ((float32, bf16), (float32, bf16_last), (checkpointing, float32)))])
        memory.append([net, *(f"{step.held_mib(mode):.0f}" for mode in TIMED)])
    print_table(["`--net`", "videos", "float32 ms", "bf16 ms", "bf16, channels last ms", "checkpointing ms", "bf16 gain",
                 "with channels last", "checkpointing's cost"], rows)
    print_table(["MiB held for the backward, per additional video", *TIMED], memory)
    net, videos = ("r3d10", 2) if quick else ("r3d18", 4)
    setup = f"from benchmarks.step import BenchmarkStep; step = BenchmarkStep({net!r}, {videos})"
    peaks = [f"{peak_mib(setup, f'step.backward({mode!r})'):.0f} MiB ({mode})" for mode in TIMED]
    print(f"Peak of a forward and backward pass of {net} with {videos} videos: {', '.join(peaks)}.")


if __name__ == "__main__":
    run_benchmark(main, __doc__)
