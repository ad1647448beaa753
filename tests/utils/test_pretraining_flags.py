"""The flags of pretraining: published commands, defaults, refusals."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eval.classifier.flags import check_training_flags
from eval.finetune import finetune_parser
from models.multilevel import BACKBONES
from models.objective import TERM_WEIGHTS
from utils.cli import DEFAULT_URL, NETS
from utils.launch import visible_gpus
from utils.pretraining_flags import LOSS_TERMS, parse_loss_weights, parse_pretraining_flags
from visualization.temporal_order import order_parser

KINETICS = ("--train_batch 64 --workers 8 --cluster 1000 --epoch 100 --lr_decay 70 --thres 0.05 --csv_file kinetics.csv "
            "--multiprocessing-distributed --split 20")
UCF101 = ("--train_batch 64 --workers 8 --cluster 200 --epoch 300 --lr_decay 200 -thres 0.05 --csv_file ucf_pretrain.csv "
          "--multiprocessing-distributed --split 50")
OFFICIAL = ("--net resnet18 --seq 16 --sample 2 --rate 3.0 --train_batch 64 --lr 0.001 --wd 1e-5 --img_dim 112 "
             "--workers 8 --channel 128 --cluster 1000 --gpu 0,1,2,3 --csv_file kinetics.csv --epoch 100 --split 20 "
             "--seed 0 --lr_decay 70 --thres 0.05 --world-size 1 --rank 0 --dist-url tcp://localhost:10001 "
             "--dist-backend nccl")


def test_published_commands_parse():
    kinetics, ucf101 = (parse_pretraining_flags(line.split()) for line in (KINETICS, UCF101))
    assert (kinetics.epochs, kinetics.lr_decay_epoch, kinetics.graph_start_epoch, kinetics.num_prototypes) == (
        100, 70, 20, 1000)
    assert (ucf101.epochs, ucf101.lr_decay_epoch, ucf101.graph_start_epoch, ucf101.num_prototypes) == (300, 200, 50, 200)
    assert kinetics.graph_threshold == ucf101.graph_threshold == 0.05
    assert kinetics.multiprocessing_distributed and kinetics.gpu is None and kinetics.csv_file == "kinetics.csv"
    assert kinetics.batch_per_gpu == ucf101.batch_per_gpu == 64 and kinetics.num_workers == 8


def test_defaults_are_the_official_code_s():
    flags = vars(parse_pretraining_flags(OFFICIAL.split()))
    defaults = vars(parse_pretraining_flags([]))
    assert flags.pop("gpu") == "0,1,2,3" and defaults.pop("gpu") is None  # here: all GPUs
    assert flags.pop("dist_url") == DEFAULT_URL and defaults.pop("dist_url") is None  # here: on one machine a free port
    assert flags == defaults


@pytest.mark.parametrize("line, named", [
    ("--seq 20", "--seq 20: must be a multiple of 8 * --sample = 16"),
    ("--net r3d18_time_pool", "--seq 16: must be a multiple of 16 * --sample = 32"),
    ("--sample 3", "--seq 16: must be a multiple of 8 * --sample = 24"),
    ("--seq 0", "--seq 0"),
    ("--sample 1", "--sample 1: must be at least 2"),
    ("--train_batch 1", "--train_batch 1: must be at least 2"),
    ("--rate 0.5", "--rate 0.5: must be at least 1"),
    ("--rate nan", "--rate nan"),
    ("--img_dim 31", "--img_dim 31: must be at least 32"),
    ("--workers -1", "--workers -1"),
    ("--cluster 1", "--cluster 1"),
    ("--lr 0", "--lr 0.0: must be positive"),
    ("--lr inf", "--lr inf"),
    ("--wd -1", "--wd -1.0"),
    ("--thres 1.5", "--thres 1.5: must be between 0 and 1"),
    ("--swap_background 1.5", "--swap_background 1.5: must be between 0 and 1"),
    ("--seed -1", "--seed -1"),
    ("--epoch 0", "--epoch 0"),
    ("--world-size 2 --rank 2", "--rank 2: must be below --world-size 2"),
    ("--gpu 0,x", "--gpu 0,x"),
    ("--gpu 1,1", "--gpu 1,1"),
    ("--path a.pt", "--path a.pt"),
    ("--path a.pt --resume b.pt", "--path a.pt"),
    ("--net resnet50", "--net"),
    ("--clust 10", "--clust"),
    ("--queue_start -1", "--queue_start -1"),
    ("--stop_after 0", "--stop_after 0"),
    ("--dist_timeout 0", "--dist_timeout"),
    ("--dist-url localhost:10001", "--dist-url localhost:10001: must be tcp://HOST:PORT"),
    ("--loss_weights graph", "--loss_weights graph: must be TERM=W"),
    ("--loss_weights low=0,grap=0", "--loss_weights grap=0: must be TERM=W, W a finite number from 0, TERM one of graph, "),
    ("--loss_weights low=-1", "--loss_weights low=-1"),
    ("--loss_weights low=nan", "--loss_weights low=nan"),
    ("--loss_weights low=inf", "--loss_weights low=inf"),
    ("--loss_weights low=0,", "--loss_weights : must be"),
    ("--nproc 2", "--nproc 2: needs --multiprocessing-distributed"),
])
def test_impossible_values_are_refused_by_name_in_one_line(line, named, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_pretraining_flags(line.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("train.py: error: ") and named in error
    assert error.count("\n") == 1


def test_split_beyond_the_end_is_a_warning(capsys):
    flags = parse_pretraining_flags("--epoch 5 --split 5".split())
    assert flags.graph_start_epoch == 5
    assert "warning: --split 5" in capsys.readouterr().err


def test_resume_and_path():
    assert parse_pretraining_flags(["--resume"]).resume == "auto"
    assert parse_pretraining_flags(["--resume", "a.pt"]).resume == "a.pt"
    assert parse_pretraining_flags(["--resume", "--path", "a.pt"]).resume == "a.pt"
    assert parse_pretraining_flags(["--resume", "1"]).resume == "auto"
    assert parse_pretraining_flags("--resume 1 --path a.pt".split()).resume == "a.pt"
    for line in ("--resume 0", "--resume 0 --path a.pt", "--dry_run 2 --resume 0"):
        flags = parse_pretraining_flags(line.split())
        assert flags.resume is None and flags.path is None


@pytest.mark.parametrize("parser", [finetune_parser(), order_parser("")], ids=lambda parser: parser.prog)
def test_every_command_that_resumes_reads_the_official_spelling(parser):
    given = [part for action in parser._actions if action.required for part in (action.option_strings[0], "x")]
    for text, resume in (("", None), ("--resume", "auto"), ("--resume 1", "auto"), ("--resume 0", None),
                         ("--resume a.pt", "a.pt")):
        flags = parser.parse_args([*given, *text.split()])
        assert flags.resume == resume and "path" not in flags


def test_warnings_come_from_one_process(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr("utils.launch.DRIVER", Path("absent"))
    line = "--weights random --net r3d18 --train_csv a --test_csv b --epochs 5 --lr_decay 5".split()
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        parse_pretraining_flags("--epoch 5 --split 5".split())
        visible_gpus("0")
        check_training_flags(finetune_parser().parse_args(line), finetune_parser())
        printed = capsys.readouterr()
        named = [text in printed.out + printed.err for text in ("--split 5", "--gpu 0 is not used", "--lr_decay 5")]
        assert named == [rank == "0"] * 3


def test_loss_weights_by_term_and_by_part():
    assert set(LOSS_TERMS) == set(TERM_WEIGHTS)
    assert parse_loss_weights(None) == {}
    assert parse_loss_weights("motion_low=2") == {"motion_low": 2}
    assert parse_loss_weights("low=0") == {"motion_low": 0, "timestamp_low": 0, "graph_low": 0}
    assert parse_loss_weights("graph=0,prototype=.5,low=1") == {
        "graph_high": 0, "graph_mid": 0, "graph_low": 1, "prototype": 0.5, "motion_low": 1, "timestamp_low": 1}


def test_every_backbone_can_be_chosen():
    assert set(NETS) == set(BACKBONES)


def test_flags_are_read_without_torch():
    subprocess.run([sys.executable, "-c", "import sys, utils.pretraining_flags as f; f.parse_pretraining_flags([]); "
                    "assert not {'torch', 'numpy', 'cv2'} & set(sys.modules)"], check=True)
