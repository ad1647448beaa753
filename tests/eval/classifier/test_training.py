"""The loss of a classifier, and the clips that it is trained on."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from dataset.records import VideoRecord
from dataset.transforms import FinetuneAugmentation
from dataset.videos import LabelledVideos
from eval.classifier.training import classifier_loss
from utils.errors import InputError


def test_loss_and_accuracy_of_each_level():
    logits = {"low": torch.tensor([[2.0, 0.0], [0.0, 1.0]]), "high": torch.tensor([[0.0, 0.0], [3.0, 0.0]])}
    loss = classifier_loss(logits, torch.tensor([0, 1]))
    low = (np.log1p(np.exp(-2)) + np.log1p(np.exp(-1))) / 2
    high = (np.log(2) + np.log1p(np.exp(3))) / 2
    assert loss.terms["loss_low"].item() == pytest.approx(low) and loss.terms["loss_high"].item() == pytest.approx(high)
    assert loss.total.item() == pytest.approx(low + high)
    assert (loss.metrics["accuracy_low"].item(), loss.metrics["accuracy_high"].item()) == (1.0, 0.5)


def test_an_unreadable_video_is_replaced_by_the_next(coded_videos, tmp_path):
    absent = [VideoRecord(str(tmp_path / name), 9, 7) for name in ("gone", "lost")]
    records = [coded_videos[0], *absent, coded_videos[1]]
    clips = LabelledVideos(records, 8, 1, FinetuneAugmentation(16), 0)
    replaced = LabelledVideos(records, 8, 1, FinetuneAugmentation(16), 0, skip_bad=True)
    for index, shown in ((0, 0), (1, 3), (2, 3), (3, 3)):
        clip, label, own, reason = replaced[5, index]
        expected, expected_label = clips[5, shown][:2]
        assert torch.equal(clip, expected) and label == expected_label and own == index
        assert (records[index].path in reason) == (index in (1, 2)) and bool(reason) == (index in (1, 2))
    with pytest.raises(InputError, match="gone"):
        clips[5, 1]
    with pytest.raises(InputError, match="none of 2 videos can be read; the first: .*gone"):
        LabelledVideos(absent, 8, 1, FinetuneAugmentation(16), 0, skip_bad=True)[0, 0]
