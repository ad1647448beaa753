#!/usr/bin/env bash
# Pretraining on the training videos of UCF-101, split 1: 300 epochs, 200 prototypes, graph constraint from epoch 50.
#
# Needs   ucf_pretrain.csv in the root of the repository; FRAMES (from scripts/extract_frames.py) outside csv/ucf101, so that
#         the csv has absolute paths and can be copied:
#           python scripts/make_csv.py ucf101 FRAMES --annotations ucfTrainTestlist --out csv/ucf101 --split 1 2 3
#           cp csv/ucf101/pretrain.csv ucf_pretrain.csv
#         one GPU or several: 64 videos per GPU and step
# Takes   not measured here
# Prints  every loss term; runs/ucf_pretrain_resnet18 gets config.json, log.jsonl, checkpoints/epoch_0300.pt
#
#   bash scripts/recipes/pretrain_ucf101.sh [FLAGS of train.py, such as --out runs/ucf --resume]
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"

run python train.py --train_batch 64 --workers 8 --cluster 200 --epoch 300 --lr_decay 200 -thres 0.05 --csv_file ucf_pretrain.csv --multiprocessing-distributed --split 50 "$@"
