"""The official lists, as they are written, and what is said of lists that are not so."""
from __future__ import annotations

import json

import pytest

from dataset.prepare.annotations import (
    GROUP_PATTERN, OFFICIAL_COUNTS, ListedVideo, group_finder, read_diving48, read_hmdb51, read_kinetics400, read_ssv2,
    read_ucf101,
)
from utils.errors import InputError


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def ucf(folder, **changed):
    files = {"classInd": "1 ApplyEyeMakeup\r\n2 Archery\r\n", "trainlist01": "Archery/v_Archery_g08_c01.avi 2\r\n"
             "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\n", "testlist01": "Archery/v_Archery_g01_c01.avi\r\n\r\n"}
    return write(folder, **(files | changed))


def test_ucf101(tmp_path):
    annotations = read_ucf101(ucf(tmp_path), [1])
    assert annotations.classes == ["ApplyEyeMakeup", "Archery"]  # labels from 0 in the order of classInd.txt
    assert annotations.sets == {
        "train_1": [ListedVideo("Archery", "v_Archery_g08_c01"),
                    ListedVideo("ApplyEyeMakeup", "v_ApplyEyeMakeup_g08_c01")],
        "test_1": [ListedVideo("Archery", "v_Archery_g01_c01")]}


@pytest.mark.parametrize(("changed", "says"), [
    ({"classInd": "0 Archery\n1 ApplyEyeMakeup\n"}, r"classInd.txt: class numbers are not 1, 2"),
    ({"classInd": "1 Archery\n2 Archery\n"}, r"classInd.txt:2: '2 Archery'"),
    ({"trainlist01": "Archery/v_Archery_g08_c01.avi 1\n"},
     r"trainlist01.txt:1: class number 1, but classInd.txt has 2"),
    ({"testlist01": "\nGolf/v_Golf_g01_c01.avi\n"}, r"testlist01.txt:2: 'Golf"),
    ({"testlist01": "v_Archery_g01_c01.avi\n"}, r"testlist01.txt:1: 'v_Archery"),
])
def test_ucf101_lists_that_are_wrong(tmp_path, changed, says):
    with pytest.raises(InputError, match=says):
        read_ucf101(ucf(tmp_path, **changed), [1])


def test_a_list_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="trainlist02.txt: cannot read the list: No such file"):
        read_ucf101(ucf(tmp_path), [1, 2])


def test_hmdb51(tmp_path):
    write(tmp_path, wave_test_split1="b A_wave_u_0.avi 1 \nc.d_wave_1.avi 2 \nspare_wave_2.avi 0 \n",
          brush_hair_test_split1="#1 x_brush_hair.avi 2 \n", brush_hair_test_split2="", wave_test_split2="q.avi 1\n")
    annotations = read_hmdb51(tmp_path, [1])
    assert annotations.classes == ["brush_hair", "wave"]
    assert annotations.sets == {"train_1": [ListedVideo("wave", "b A_wave_u_0")],
                                "test_1": [ListedVideo("brush_hair", "#1 x_brush_hair"), ListedVideo("wave", "c.d_wave_1")]}
    assert annotations.unused == [ListedVideo("wave", "spare_wave_2")]
    assert read_hmdb51(tmp_path, [1, 2]).sets["train_2"] == [ListedVideo("wave", "q")]


def test_hmdb51_lists_that_are_wrong(tmp_path):
    with pytest.raises(InputError, match="no files .*_test_split1.txt"):
        read_hmdb51(tmp_path, [1])
    write(tmp_path, wave_test_split1="a.avi 3\n", wave_test_split2="a.avi 1\n", golf_test_split2="b.avi 1\n")
    with pytest.raises(InputError, match="wave_test_split1.txt:1: 'a.avi 3', expected video.avi and 0, 1 or 2"):
        read_hmdb51(tmp_path, [1])
    write(tmp_path, wave_test_split1="a.avi 1\n")
    with pytest.raises(InputError, match="class golf has a list for split 2 or 1"):
        read_hmdb51(tmp_path, [1, 2])


def test_kinetics400(tmp_path):
    (tmp_path / "train.csv").write_text("label,youtube_id,time_start,time_end,split\nriding a bike,--_x-0,7,17,train\n"
                                        '"petting animal, dog",abc,120,130,train\n')
    (tmp_path / "val.csv").write_text("youtube_id,time_start,time_end,split,label\nq_-Z,0,10,val,riding a bike\n")
    annotations = read_kinetics400(tmp_path)
    assert annotations.classes == ["petting animal, dog", "riding a bike"]
    assert annotations.sets == {
        "train": [ListedVideo("riding a bike", "--_x-0_000007_000017"),
                  ListedVideo("petting animal, dog", "abc_000120_000130")],
        "val": [ListedVideo("riding a bike", "q_-Z_000000_000010")]}
    (tmp_path / "val.csv").write_text("label,youtube_id,time_start,time_end\nx,abc,zero,10\n")
    with pytest.raises(InputError, match="val.csv:2: times 'zero' and '10'"):
        read_kinetics400(tmp_path)
    (tmp_path / "val.csv").write_text("youtube_id,time_start,time_end\nabc,0,10\n")
    with pytest.raises(InputError, match="val.csv:1: columns youtube_id,time_start,time_end, expected label"):
        read_kinetics400(tmp_path)


def write_json(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


SSV2 = {
    "labels": {"Putting something on a surface": "1", "Pushing something so that it falls, slowly": "0"},
    "train": [{"id": "78687", "label": "putting cup on a surface", "template": "Putting [something] on a surface",
               "placeholders": ["cup"]},
              {"id": "42326", "label": "x", "template": "Pushing [something] so that [it] falls, slowly"}],
    "validation": [{"id": "74225", "label": "x", "template": "Putting [something] on a surface", "placeholders": ["x"]}]}


@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
def test_ssv2(tmp_path, prefix):
    write_json(tmp_path, **{f"{prefix}{name}": content for name, content in SSV2.items()})
    lists = read_ssv2(tmp_path)
    falls, putting = "Pushing something so that it falls, slowly", "Putting something on a surface"
    assert lists.classes == [falls, putting]  # by number, which is not the order in the file
    assert lists.sets == {"train": [ListedVideo(putting, "78687"), ListedVideo(falls, "42326")],
                          "val": [ListedVideo(putting, "74225")]}
    assert lists.unused == []
    write_json(tmp_path, **{f"{prefix}test": [{"id": "1420"}]})
    assert read_ssv2(tmp_path).unused == [ListedVideo("", "1420")]


@pytest.mark.parametrize(("changed", "says"), [
    ({"train": '[\n{"id": "1",\n}]'}, r"train.json:3: not JSON: .*\(column 1\)$"),
    ({"train": {"1": "x"}}, "train.json: expected a list of objects"),
    ({"validation": [*SSV2["validation"], {"id": 7, "template": "Putting [something] on a surface"}]},
     r"validation.json: entry 2: \{\"id\": 7.*, expected an object with id \(text\) and template \(text\)"),
    ({"validation": [*SSV2["validation"], {"id": "7", "template": "Eating [something]"}]},
     r"validation.json: entry 2: template 'Eating \[something\]' of video '7' is no class of labels.json"),
    ({"labels": {"Eating something": "1"}}, "labels.json: expected .* with the numbers 0, 1, 2"),
    ({"labels": ["Eating something"]}, "labels.json: expected"),
])
def test_ssv2_lists_that_are_wrong(tmp_path, changed, says):
    with pytest.raises(InputError, match=says) as caught:
        read_ssv2(write_json(tmp_path, **(SSV2 | changed)))
    assert "\n" not in str(caught.value)


DIVING48 = {"Diving48_vocab": [["Back", "15som", "05Twis", "FREE"], ["Reverse", "Dive", "NoTwis", "PIKE"]],
            "Diving48_V2_train": [{"vid_name": "sTAY8Ku9FS0_00146", "label": 1, "start_frame": 0, "end_frame": 155}],
            "Diving48_V2_test": [{"vid_name": "-mfiwwuchlc_00000", "label": 0, "start_frame": 0, "end_frame": 91}]}


def test_diving48(tmp_path):
    lists = read_diving48(write_json(tmp_path, **DIVING48))
    assert lists.classes == ["Back 15som 05Twis FREE", "Reverse Dive NoTwis PIKE"]
    assert lists.sets == {"train": [ListedVideo("Reverse Dive NoTwis PIKE", "sTAY8Ku9FS0_00146")],
                          "test": [ListedVideo("Back 15som 05Twis FREE", "-mfiwwuchlc_00000")]}


@pytest.mark.parametrize(("changed", "says"), [
    ({"Diving48_V2_test": [{"vid_name": "a", "label": 2}]},
     "Diving48_V2_test.json: entry 1: label 2 of video 'a', but Diving48_vocab.json has 2 classes"),
    ({"Diving48_V2_train": [{"vid_name": "a", "label": "1"}]}, r"entry 1: .* expected .* and label \(a whole number\)"),
    ({"Diving48_V2_train": [{"label": 1}]}, r"entry 1: .* expected an object with vid_name \(text\)"),
    ({"Diving48_vocab": [["Back"], ["Back"]]}, r"Diving48_vocab.json: names 1 class\(es\) twice: 'Back'$"),
    ({"Diving48_vocab": ["Back", "Reverse"]}, "Diving48_vocab.json: expected"),
])
def test_diving48_lists_that_are_wrong(tmp_path, changed, says):
    with pytest.raises(InputError, match=says):
        read_diving48(write_json(tmp_path, **(DIVING48 | changed)))


def test_official_counts_are_whole_data_sets():
    for split in "123":
        assert sum(OFFICIAL_COUNTS["ucf101"][f"{role}_{split}"] for role in ("train", "test")) == 13320
        assert [OFFICIAL_COUNTS["hmdb51"][f"{role}_{split}"] for role in ("train", "test")] == [3570, 1530]
    assert OFFICIAL_COUNTS["ssv2"] == {"train": 168_913, "val": 24_777}
    assert OFFICIAL_COUNTS["diving48"] == {"train": 15_027, "test": 1_970}


def test_groups():
    find = group_finder(GROUP_PATTERN)
    assert find("v_Archery_g03_c05") == "v_Archery_g03"
    assert find("v_Archery_g03_c05x") is find("abc_000000_000010") is None
    assert group_finder(r"(\d+)-.*")("12-a") == "12"
    with pytest.raises(InputError, match="--group_pattern .*not a regular expression"):
        group_finder("(")
    with pytest.raises(InputError, match="--group_pattern .*needs a group"):
        group_finder("abc")


@pytest.mark.parametrize(("row", "says"), [
    ("yoga,a,inf,10", "val.csv:2: times 'inf' and '10', expected seconds"), ("yoga,a,0,nan", "times '0' and 'nan'"),
    ("yoga,a,1.2.3,4", "times '1.2.3'"), ("yoga,a,0," + "9" * 400, "times '0' and '99999999999999999999', expected"),
    (",a,0,10", "val.csv:2: label or youtube_id is empty"), ("yoga,a,0", "more or fewer than the 4 columns"),
])
def test_kinetics_rows_that_are_wrong(tmp_path, row, says):
    for name, line in (("train", " yoga ,b,0.5,10"), ("val", row)):
        (tmp_path / f"{name}.csv").write_text(f"label,youtube_id,time_start,time_end\n{line}\n")
    with pytest.raises(InputError, match=says):
        read_kinetics400(tmp_path)


def test_lists_name_file_and_line(tmp_path):
    (tmp_path / "classInd.txt").write_bytes(b"1 a\n2 \xe9\n")
    with pytest.raises(InputError, match="classInd.txt:2: not UTF-8 text"):
        read_ucf101(tmp_path, [1])
    (tmp_path / "classInd.txt").write_text("1" * 5000 + " a\n")
    with pytest.raises(InputError, match="classInd.txt:1: .*, expected a class number"):
        read_ucf101(tmp_path, [1])
    for text in ("[" + "1" * 5000 + "]", "[" * 100_000):
        (tmp_path / "labels.json").write_text(text)
        with pytest.raises(InputError, match="labels.json: not JSON of such a list"):
            read_ssv2(tmp_path)


def test_hidden_files_beside_the_lists_of_hmdb51(tmp_path):
    (tmp_path / "run_test_split1.txt").write_text("a.avi 1\n")
    (tmp_path / "._run_test_split1.txt").write_bytes(b"\0\5\x16\7")
    assert read_hmdb51(tmp_path, [1]).classes == ["run"]
