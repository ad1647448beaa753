#!/usr/bin/env bash
# Pretraining on your own videos with the motion recipe: residual frames, one color change for all frames of a
# view, and swapped backgrounds.
# The schedule is meant for a few hundred to a few thousand videos; measured is only the small run of docs/evidence.md.
#
# Needs   CSV, the list of videos: `python scripts/make_csv.py folder VIDEOS --out OUT` writes OUT/pretrain.csv (docs/data.md)
# Takes   the time that `--dry_run 20` prints; docs/evidence.md has a small run
# Prints  every loss term; runs/NAME_resnet18 gets config.json, log.jsonl, checkpoints/epoch_0200.pt
#
#   CSV=OUT/pretrain.csv bash scripts/recipes/pretrain_motion.sh [FLAGS of train.py, such as --train_batch 32 --resume]
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"
: "${CSV:?name the list of videos, such as CSV=my/pretrain.csv}"

run python train.py --input residual --color_draws clip --swap_background 0.5 --amp bf16 --train_batch 32 --workers 8 --cluster 60 --epoch 200 --lr_decay 160 --split 40 --csv_file "$CSV" --multiprocessing-distributed "$@"
