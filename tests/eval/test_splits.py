"""Splits: which csv files they name, and pairs of files that cannot be one data set."""
from __future__ import annotations

import argparse

import pytest

from dataset.records import VideoRecord
from eval.splits import EvalSplit, add_split_flags, check_pair, draw_shots, find_splits, read_split
from utils.errors import InputError


def flags(train: str, test: str, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=7)
    add_split_flags(parser)
    return parser.parse_args(["--train_csv", train, "--test_csv", test, *more])


def test_splits_fill_the_placeholder_in_order():
    assert find_splits(flags("a.csv", "b.csv")) == [EvalSplit(None, "a.csv", "b.csv")]
    assert find_splits(flags("d{split}/a_{split}.csv", "b{split}.csv", "--splits", "3,x")) == [
        EvalSplit("3", "d3/a_3.csv", "b3.csv"), EvalSplit("x", "dx/a_x.csv", "bx.csv")]


@pytest.mark.parametrize(("arguments", "message"), [
    (("a_{split}.csv", "b.csv"), "--train_csv a_{split}.csv: holds {split}; name the splits"),
    (("a.csv", "b_{split}.csv"), "--test_csv b_{split}.csv: holds {split}; name the splits"),
    (("a_{split}.csv", "b.csv", "--splits", "1,2"), "--test_csv b.csv: lacks {split}"),
    (("a.csv", "b_{split}.csv", "--splits", "1"), "--train_csv a.csv: lacks {split}"),
    (("a_{split}.csv", "b_{split}.csv", "--splits", "1,1"), "--splits 1,1: must be distinct"),
    (("a_{split}.csv", "b_{split}.csv", "--splits", "1,"), "--splits 1,: must be distinct"),
    (("a.csv", "b.csv", "--shots_seeds", "1"), "--shots_seeds 1: needs --shots"),
    (("a.csv", "b.csv", "--shots", "0"), "--shots 0: must be at least 1"),
    (("a.csv", "b.csv", "--shots", "1", "--shots_seeds", "1,1"), "--shots_seeds 1,1: must be distinct numbers"),
    (("a.csv", "b.csv", "--shots", "1", "--shots_seeds", "0,-1"), "--shots_seeds 0,-1: must be distinct numbers"),
])
def test_what_does_not_fit_together_is_one_line(arguments, message):
    with pytest.raises(InputError) as caught:
        find_splits(flags(*arguments))
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_shots_are_drawn_by_the_seed_and_several_seeds_are_several_splits():
    assert find_splits(flags("a.csv", "b.csv", "--shots", "5")) == [EvalSplit(None, "a.csv", "b.csv", (5, 7))]
    several = flags("a{split}.csv", "b{split}.csv", "--splits", "1,2", "--shots", "5", "--shots_seeds", "0,3")
    assert find_splits(several) == [EvalSplit(f"{split}_seed_{seed}", f"a{split}.csv", f"b{split}.csv", (5, seed))
                                    for split in "12" for seed in (0, 3)]


def test_every_class_gives_the_same_number_of_shots_and_each_video_is_as_likely():
    training = videos(*((f"/v/{number}", number % 3) for number in range(30)))
    shown = dict.fromkeys((video.path for video in training), 0)
    for seed in range(300):
        drawn = draw_shots(training, 4, seed, "a.csv")
        assert [video for video in training if video in drawn] == drawn and len(drawn) == 12
        assert sorted(video.label for video in drawn) == [0] * 4 + [1] * 4 + [2] * 4
        assert set(draw_shots(training, 2, seed, "a.csv")) < set(drawn)
        for video in drawn:
            shown[video.path] += 1
    assert 80 < min(shown.values()) and max(shown.values()) < 160  # 120 expected, standard deviation 8.5
    assert draw_shots(training, 10, 0, "a.csv") == training
    with pytest.raises(InputError, match=r"^--shots 5: a.csv has only 2 video\(s\) of label 5, such as /ucf/Biking/v_3$"):
        draw_shots(videos(*((f"/x/{number}", 0) for number in range(9))) + UCF[2:], 5, 0, "a.csv")


def videos(*paths_and_labels: tuple[str, int]) -> list[VideoRecord]:
    return [VideoRecord(path, 20, label) for path, label in paths_and_labels]


UCF = videos(("/ucf/Archery/v_1", 0), ("/ucf/Archery/v_2", 0), ("/ucf/Biking/v_3", 5), ("/ucf/Biking/v_4", 5))


@pytest.mark.parametrize(("train", "test"), [
    (UCF, videos(("/ucf/Archery/v_9", 0))),                                    # gaps, and a class never tested
    (UCF, videos(("/other/Archery/v_1", 0), ("/other/Biking/v_1", 5), ("/other/Biking/v_2", 5))),
    (UCF, videos(("/flat/a", 5), ("/flat/b", 0), ("/flat/c", 0))),             # no folder for each class
    (UCF, videos(("/x/a/frames", 0), ("/x/b/frames", 5))),                     # a folder for each video
    (videos(("/x/a", 0), ("/x/b", 1)), videos(("/y/a", 0), ("/y/b", 1))),
])
def test_pairs_that_can_be_one_data_set(train, test):
    check_pair(train, test, "train.csv", "test.csv")


@pytest.mark.parametrize(("test", "message"), [
    (videos(("/ucf/Archery/v_9", 0), ("/ucf/Chess/v_1", 3)), "label 3 (/ucf/Chess/v_1) occurs nowhere in train.csv"),
    (videos(("/ucf/Biking/v_4", 5)), "1 video(s) are in train.csv too"),
    (videos(("/ucf/Archery/v_7", 5), ("/ucf/Archery/v_8", 5), ("/ucf/Biking/v_8", 0)),
     "class folder Archery has label 5 here and 0 in train.csv"),
    (videos(("/hmdb/wave/v_7", 5), ("/hmdb/wave/v_8", 5), ("/hmdb/run/v_8", 0)), "are both files of one data set?"),
])
def test_pairs_that_cannot(test, message):
    with pytest.raises(InputError) as caught:
        check_pair(UCF, test, "train.csv", "test.csv")
    assert message in str(caught.value) and str(caught.value).startswith("test.csv: ")


def test_read_split_reads_and_checks_both(tmp_path):
    (tmp_path / "a.csv").write_text("x,9,0\ny,9,4\n")
    (tmp_path / "b.csv").write_text("z,9,4\n")
    split = EvalSplit(None, str(tmp_path / "a.csv"), str(tmp_path / "b.csv"))
    assert {role: [video.label for video in of_role] for role, of_role in read_split(split).items()} == {
        "train": [0, 4], "test": [4]}
    (tmp_path / "b.csv").write_text("z,9,4\nw,9\n")
    with pytest.raises(InputError, match="b.csv:2: 2 column"):
        read_split(split)


def test_one_video_under_two_spellings_or_on_two_lines_is_an_error(tmp_path):
    split = EvalSplit(None, str(tmp_path / "a.csv"), str(tmp_path / "b.csv"))
    for train, test, message in (("x,9,0\ny,9,4\n", "./x,9,0\n", "b.csv: 1 video"),
                                 ("x,9,0\nd/y,9,4\n", "d//e/../y/,9,4\n", "b.csv: 1 video"),
                                 ("x,9,0\ny,9,4\n", "z,9,4\nz,9,4\n", "b.csv: names .*/z twice"),
                                 ("x,9,0\n./x,9,4\n", "z,9,4\n", "a.csv: names .*/x twice, with label 0 and with")):
        (tmp_path / "a.csv").write_text(train)
        (tmp_path / "b.csv").write_text(test)
        with pytest.raises(InputError, match=message):
            read_split(split)
