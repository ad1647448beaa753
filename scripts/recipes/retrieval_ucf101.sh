#!/usr/bin/env bash
# Video retrieval on UCF-101, three splits: nearest training videos of each test video, both sets centered on their own
# means as CoCLR does (Han et al. 2020).
#
# Needs   CHECKPOINT, pretrained weights
#         train_S.csv and test_S.csv of the splits S in CSV (default: csv/ucf101), of frames of scripts/extract_frames.py:
#           python scripts/make_csv.py ucf101 FRAMES --annotations ucfTrainTestlist --out csv/ucf101 --split 1 2 3
#         several GPUs are used where there are any
# Takes   not measured here
# Prints  R@1, 5, 10, 20, 50 of each level, mean and standard deviation over the splits; OUT/result.json, retrieval.png
#
#   CHECKPOINT=runs/kinetics_resnet18/checkpoints/epoch_0100.pt bash scripts/recipes/retrieval_ucf101.sh [FLAGS]
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"
: "${CHECKPOINT:?: path of the pretrained weights}"
CSV=${CSV:-csv/ucf101}

run python -m eval.retrieval --weights "$CHECKPOINT" --train_csv "$CSV/train_{split}.csv" \
  --test_csv "$CSV/test_{split}.csv" --splits 1,2,3 --clips windows --centering each --multiprocessing-distributed \
  --feature_dir runs/features --out runs/retrieval_ucf101 "$@"
