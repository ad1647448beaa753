#!/usr/bin/env bash
# Pretraining on Kinetics-400: 100 epochs, 1000 prototypes, graph constraint from epoch 20.
#
# Needs   kinetics.csv in the root of the repository; FRAMES (from scripts/extract_frames.py) outside csv/k400, so that
#         the csv has absolute paths and can be copied:
#           python scripts/make_csv.py kinetics400 FRAMES --annotations ANNOTATIONS --out csv/k400 --allow_missing
#           cp csv/k400/pretrain.csv kinetics.csv
#         one GPU or several: 64 videos per GPU and step
# Takes   not measured here
# Prints  every loss term; runs/kinetics_resnet18 gets config.json, log.jsonl, checkpoints/epoch_0100.pt
#
#   bash scripts/recipes/pretrain_kinetics400.sh [FLAGS of train.py, such as --out runs/k400 --resume]
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"

run python train.py --train_batch 64 --workers 8 --cluster 1000 --epoch 100 --lr_decay 70 --thres 0.05 --csv_file kinetics.csv --multiprocessing-distributed --split 20 "$@"
