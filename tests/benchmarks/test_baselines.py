"""The baselines compute the same as ours, so that the figures compare like with like."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.input import gray_levels, our_sample, our_videos
from benchmarks.input_peers import plain_sample, torchvision_sample
from benchmarks.objective import GatheredVideos
from benchmarks.step import BenchmarkStep
from benchmarks.videos import video_frames, write_frame_folder


def test_the_plain_pipeline_and_torchvision_give_our_views(tmp_path: Path) -> None:
    """Frames are stored at the size before cropping, so that only decoders, resizing and color can differ."""
    path = write_frame_folder(tmp_path / "video", video_frames(80, (200, 150)))
    for number in range(2):
        plain = plain_sample(path, number)
        assert (gray_levels(torchvision_sample(path, number)) - gray_levels(plain)).abs().mean() < 1
        for color_on_device, bound in ((False, 1), (True, 0.3)):  # the latter mostly from resizing
            ours = our_sample(our_videos(path, color_on_device), number)
            assert plain.shape == ours.shape == (3, 3, 16, 112, 112)
            assert (gray_levels(ours) - gray_levels(plain)).abs().mean() < bound


def test_the_loop_over_anchors_gives_our_total() -> None:
    batch = GatheredVideos(4, 20, 10, 30)
    torch.testing.assert_close(batch.ours(), batch.loops())
    step = BenchmarkStep("r3d10", 4, img_dim=32)
    output = step.forward("float32")
    torch.testing.assert_close(gpu.loop_over_anchors(output).total, step.objective(output, 0, lambda rows: rows, 0).total)


@pytest.mark.parametrize("mode", [gpu.OFFICIAL, gpu.PUBLISHED, gpu.PLAIN_STEM])
def test_a_step_is_timed_and_profiled_in_each_mode(mode: gpu.GpuMode) -> None:
    """The code that measures a GPU, on the CPU."""
    seconds, _ = gpu.time_step(mode, "r3d10", 2, "cpu", 2, 32)
    assert len(seconds) == 2 and min(seconds) > 0
    times = gpu.kernel_times(mode, "r3d10", 2, "cpu", 32)
    assert "conv" in times[0][0] and times[0][1] == max(time for _, time in times)
    assert 0 < sum(time for _, time in times) < 10 * max(seconds)
    assert not torch.backends.cudnn.benchmark  # as it was


def test_operations_are_those_of_forward_and_backward() -> None:
    """Of r3d10 at 32 px by hand, convolutions of the backbone alone: the heads and motion excitation add under 5 %."""
    stem = 16 * 16 * 16 * 64 * 3 * 7**3  # positions, output and input channels, kernel
    layers = sum(t * size**2 * (c * c * 27 + c * before * (27 + (c > 64)))
                 for t, size, c, before in ((16, 8, 64, 64), (8, 4, 128, 64), (4, 2, 256, 128), (2, 1, 512, 256)))
    views, passes = 3, 3  # forward, and backward by input and weights; the clips themselves need no gradient
    by_hand = 2 * views * (passes * layers + (passes - 1) * stem)
    assert by_hand < gpu.step_operations("r3d10", 32) < 1.05 * by_hand


def test_a_step_changes_the_weights() -> None:
    step = BenchmarkStep("r3d10", 2, img_dim=32)
    before = [parameter.clone() for parameter in step.model.backbone.parameters()]
    step.run("both")
    assert all(not torch.equal(a, b) for a, b in zip(before, step.model.backbone.parameters()))
    assert step.held_mib("checkpointing") < 0.7 * step.held_mib("float32")
