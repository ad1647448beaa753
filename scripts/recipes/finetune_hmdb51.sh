#!/usr/bin/env bash
# Finetuning on HMDB-51, all layers, three splits, as CoCLR does (Han et al. 2020): dropout 0.9, Adam, 500 epochs.
#
# Needs   CHECKPOINT, pretrained weights
#         train_S.csv and test_S.csv of the splits S in CSV (default: csv/hmdb51), of frames of scripts/extract_frames.py:
#           python scripts/make_csv.py hmdb51 FRAMES --annotations testTrainMulti_7030_splits --out csv/hmdb51 --split 1 2 3
#         several GPUs are used where there are any: 32 clips per GPU and step
# Takes   not measured here
# Prints  top-1 and top-5, mean and standard deviation over the splits; OUT/result.json, confusion matrices
#
#   CHECKPOINT=runs/kinetics_resnet18/checkpoints/epoch_0100.pt bash scripts/recipes/finetune_hmdb51.sh [FLAGS]
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"
: "${CHECKPOINT:?: path of the pretrained weights}"
CSV=${CSV:-csv/hmdb51}

run python -m eval.finetune --weights "$CHECKPOINT" --train_csv "$CSV/train_{split}.csv" --test_csv "$CSV/test_{split}.csv" \
  --splits 1,2,3 --clips windows --multiprocessing-distributed --out runs/finetune_hmdb51 --resume "$@"
