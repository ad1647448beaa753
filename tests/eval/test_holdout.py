"""The hold-out: groups stay together, classes keep their share, and the seed decides."""
from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dataset.records import VideoRecord
from eval.holdout import draw_holdout, find_groups
from utils.errors import InputError


def ucf(num_classes: int = 5, num_groups: int = 18, suffix: str = "") -> list[VideoRecord]:
    """Classes of groups of 4 to 7 clips, as UCF-101 has them; group numbers are those of every class."""
    return [VideoRecord(f"/ucf/C{label}/v_C{label}_g{group:02d}_c{clip:02d}{suffix}", 50, 2 * label)
            for label in range(num_classes) for group in range(1, num_groups + 1)
            for clip in range(1, 5 + (label + group) % 4)]


@pytest.mark.parametrize("suffix", ["", ".avi"])
@pytest.mark.parametrize("seed", range(3))
def test_groups_of_ucf101_stay_together_and_classes_keep_their_share(suffix, seed):
    videos = ucf(suffix=suffix)
    held_out, facts = draw_holdout(videos, "auto", 0.2, seed)
    sides = {}
    for video, held in zip(videos, held_out):
        sides.setdefault((video.label, video.path.split("_g")[1][:2]), set()).add(bool(held))
    assert all(len(side) == 1 for side in sides.values()), "a group on both sides leaks"
    for label in {video.label for video in videos}:
        held = [h for video, h in zip(videos, held_out) if video.label == label]
        assert abs(sum(held) - 0.2 * len(held)) <= 3.5, "no more off than half a group"
    assert facts["num_groups"] == 90 and "UCF-101" in facts["groups"]
    assert facts["num_groups_held_out"] == sum(True in side for side in sides.values())
    assert facts["num_videos_held_out"] == held_out.sum()


def test_the_seed_decides_and_nothing_else():
    videos = ucf()
    first, again, other = (draw_holdout(videos, "auto", 0.2, seed)[0] for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_without_groups_the_share_of_each_class_is_met_to_the_video():
    videos = [VideoRecord(f"/v/{i}", 50, label) for i, label in enumerate([0] * 40 + [1] * 11 + [2] * 2 + [7])]
    for group in ("auto", "none"):
        held_out, facts = draw_holdout(videos, group, 0.25, 3)
        held = Counter(video.label for video, h in zip(videos, held_out) if h)
        assert held == {0: 10, 1: 3, 2: 1}, "one at least, but for a class that has no other"
        assert facts["num_classes_without_held_out_video"] == 1
        assert "every video on its own" in facts["groups"]


def test_a_pattern_names_groups_that_may_span_classes():
    videos = [VideoRecord(f"/data/person{person}/clip{clip}", 50, clip % 3)
              for person in range(10) for clip in range(6)]
    held_out, facts = draw_holdout(videos, r"/(person\d+)/", 0.3, 0)
    persons = {video.path.split("/")[2] for video, held in zip(videos, held_out) if held}
    assert len(persons) == 3 and held_out.sum() == 18
    assert facts["num_groups"] == 10 and facts["groups"] == r"pattern /(person\d+)/"


def test_a_video_that_is_named_twice_stays_on_one_side():
    videos = [VideoRecord(f"/v/{i // 2}", 50, 0) for i in range(40)]
    held = draw_holdout(videos, "none", 0.3, 0)[0]
    assert np.array_equal(held[::2], held[1::2]) and held.sum() == 12


def test_groups_of_ucf101_are_within_a_class():
    names, _ = find_groups(ucf(num_classes=2, num_groups=3), "auto")
    assert len(set(names)) == 6


@pytest.mark.parametrize(("group", "message"), [
    (r"person(\d+)", "does not match 1 of 3 training videos, such as /v/v_A_g01_c01"),
    (r"/(x)?", "does not match 3 of 3"),
    ("person(", "not a regular expression"), ("person", "needs a group in parentheses"),
    ("auto", "1 of 3 names end with _gNN_cNN"),
])
def test_a_pattern_that_is_wrong_or_does_not_match_every_video_is_one_line(group, message):
    videos = [VideoRecord(path, 9, 0) for path in ("/v/person1_a", "/v/person2_a", "/v/v_A_g01_c01")]
    with pytest.raises(InputError) as caught:
        draw_holdout(videos, group, 0.5, 0)
    assert message in str(caught.value) and str(caught.value).startswith(f"--group {group}")
    assert "\n" not in str(caught.value)


def test_nothing_to_hold_out_is_one_line():
    for videos in ([VideoRecord("/v/a", 9, 0), VideoRecord("/v/b", 9, 1)],                   # a class would be empty
                   [VideoRecord(f"/v/v_A_g01_c{i:02d}", 9, 0) for i in range(9)]):           # one group in all
        with pytest.raises(InputError, match="--holdout 0.2: no group of training videos can be held out"):
            draw_holdout(videos, "auto", 0.2, 0)


def test_the_documented_pattern_keeps_clips_of_one_recording_together():
    document = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
    pattern = re.search(r"--group '(.*)'", document)[1]
    recordings = [("brush_hair", "April_09", "u_nm_np1_ba_goo_0"), ("brush_hair", "April_09", "f_cm_np2_le_med_13"),
             ("brush_hair", "brush", "h_nm_np1_fr_bad_0"), ("shoot_ball", "April_09", "u_nm_np1_ba_goo_0"),
             ("shoot_ball", "A_ball_shoot", "l_cm_np1_ri_med_2.avi")]
    names, _ = find_groups([VideoRecord(f"/data/hmdb51/frames/{label}/{recording}_{label}_{rest}", 40, 0)
                               for label, recording, rest in recordings], pattern)
    assert names == ["brush_hair/April_09"] * 2 + ["brush_hair/brush", "shoot_ball/April_09", "shoot_ball/A_ball_shoot"]
