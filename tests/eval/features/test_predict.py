"""Class probabilities of whole videos, against explicit loops."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dataset.frames import read_frames
from dataset.records import VideoRecord
from dataset.sampling import uniform_clips, window_clips
from dataset.transforms import TestCrops, scale_clips
from eval.classifier.model import ProbeHead, VideoClassifier
from eval.features.backbone import load_backbone
from eval.features.extract import ClipSettings, predict
from utils.distributed import DistContext
from utils.errors import InputError

HERE = DistContext(0, 1, torch.device("cpu"))


class PixelClassifier(nn.Module):
    """Logits that depend on when and where the clip is bright."""

    def forward(self, clips: torch.Tensor) -> dict[str, torch.Tensor]:
        first, last, left = clips[:, :, 0], clips[:, :, -1], clips[..., : clips.shape[-1] // 2]
        logits = torch.stack([first.mean(dim=(1, 2, 3)), last.mean(dim=(1, 2, 3)), left.mean(dim=(1, 2, 3, 4))], dim=1)
        return {"low": 4 * logits, "high": -6 * logits}


@pytest.mark.parametrize(("clips", "crops"), [(3, 1), (1, 5), ("windows", 10)])
def test_probabilities_are_the_mean_over_clips_then_crops(coded_videos, clips, crops):
    settings = ClipSettings(clips=clips, clip_frames=8, stride=2, img_dim=32, crops=crops)
    found = predict(PixelClassifier(), coded_videos, settings, HERE, batch=4, num_workers=0)
    for row, record in enumerate(coded_videos):
        indices = (window_clips(record.num_frames, 8, 2) if clips == "windows" else
                   uniform_clips(record.num_frames, 8, 2, clips))
        per_crop = {level: [[] for _ in range(crops)] for level in ("low", "high")}
        for clip in indices:
            views = TestCrops(32, crops)(read_frames(record.path, clip, record.num_frames))
            for crop, view in enumerate(views):
                one = scale_clips(torch.from_numpy(np.ascontiguousarray(view)))[None]
                for level, logits in PixelClassifier()(one).items():
                    per_crop[level][crop].append(logits[0].softmax(dim=0).double().numpy())
        for level, parts in per_crop.items():
            expected = np.mean([np.mean(part, axis=0) for part in parts], axis=0)
            np.testing.assert_allclose(found[level][row], expected, rtol=0, atol=1e-6)
            assert found[level][row].sum() == pytest.approx(1)
    assert len(np.unique(found["low"][:, 0])) == 4, "or nothing was shown: the videos must differ"


def test_workers_and_order_change_not_a_bit_and_the_model_stays_in_its_mode(coded_videos):
    torch.manual_seed(0)
    model = VideoClassifier(load_backbone("random", "r3d10", 0)[0], {"high": ProbeHead(512, 3)}, False).train()
    settings = ClipSettings(clips=3, clip_frames=8, stride=2, img_dim=32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = predict(model, coded_videos, settings, HERE, batch=2, num_workers=0)["high"]
    again = predict(model, coded_videos[::-1], settings, HERE, batch=2, num_workers=1)["high"]
    assert np.array_equal(found, again[::-1]) and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_unreadable_test_videos_stop_or_are_reported(coded_videos, tmp_path):
    records = [coded_videos[0], VideoRecord(str(tmp_path / "gone"), 9, 1), coded_videos[1]]
    settings = ClipSettings(clips=1, clip_frames=8, img_dim=32)
    with pytest.raises(InputError, match="gone"):
        predict(PixelClassifier(), records, settings, HERE, batch=2, num_workers=0)
    skipped: dict[int, str] = {}
    found = predict(PixelClassifier(), records, settings, HERE, batch=2, num_workers=0, skipped=skipped)["low"]
    assert list(skipped) == [1] and "gone" in skipped[1]
    assert np.isnan(found[1]).all() and np.isfinite(found[[0, 2]]).all()
