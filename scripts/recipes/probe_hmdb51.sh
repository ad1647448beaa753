#!/usr/bin/env bash
# Linear probe on HMDB-51, three splits: trained end to end as CoCLR does (Han et al. 2020), then on stored
# features, with learning rate and weight decay chosen on a hold-out of the training videos.
#
# Needs   CHECKPOINT, pretrained weights
#         train_S.csv and test_S.csv of the splits S in CSV (default: csv/hmdb51), of frames of scripts/extract_frames.py:
#           python scripts/make_csv.py hmdb51 FRAMES --annotations testTrainMulti_7030_splits --out csv/hmdb51 --split 1 2 3
#         several GPUs are used where there are any
# Takes   not measured here
# Prints  top-1 and top-5 of each level, mean and standard deviation over the splits, twice; OUT/result.json
#
#   CHECKPOINT=runs/kinetics_resnet18/checkpoints/epoch_0100.pt bash scripts/recipes/probe_hmdb51.sh
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"
: "${CHECKPOINT:?: path of the pretrained weights}"
CSV=${CSV:-csv/hmdb51}

DATA=(--weights "$CHECKPOINT" --train_csv "$CSV/train_{split}.csv" --test_csv "$CSV/test_{split}.csv" --splits 1,2,3
      --clips windows --multiprocessing-distributed)
run python -m eval.linear_probe --end_to_end "${DATA[@]}" --out runs/probe_end_to_end_hmdb51 --resume
run python -m eval.linear_probe "${DATA[@]}" --levels low,mid,high,concat --feature_dir runs/features \
  --out runs/probe_hmdb51
