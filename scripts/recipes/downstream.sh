#!/usr/bin/env bash
# Downstream evaluation on the three splits of UCF-101 or HMDB-51, by the protocol of CoCLR (Han et al. 2020):
#
#   CHECKPOINT=runs/kinetics_resnet18/checkpoints/epoch_0100.pt bash scripts/recipes/downstream.sh ucf101 retrieval [FLAGS]
#
# retrieval   R@1, 5, 10, 20, 50 of each level; both sets are centered on their own means
# probe       linear probe on stored features, with learning rate and weight decay chosen on held-out training videos
# end_to_end  linear probe trained on clips, with augmentation
# finetune    all layers, dropout 0.9, Adam, 500 epochs; 32 clips per GPU and step
#
# Needs   CHECKPOINT, pretrained weights
#         train_S.csv and test_S.csv of the splits S in CSV (default: csv/DATASET), of frames of scripts/extract_frames.py:
#           python scripts/make_csv.py DATASET FRAMES --annotations ANNOTATIONS --out csv/DATASET --split 1 2 3
#         several GPUs are used where there are any
# Takes   not measured here
# Prints  metrics, mean and standard deviation over the splits; runs/TASK_DATASET/result.json and its images
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"
: "${CHECKPOINT:?: path of the pretrained weights}"
DATASET=${1:?: ucf101 or hmdb51} TASK=${2:?: retrieval, probe, end_to_end or finetune}
shift 2
case $TASK in
  retrieval) command=(eval.retrieval --centering each --feature_dir runs/features) ;;
  probe) command=(eval.linear_probe --levels low,mid,high,concat --feature_dir runs/features) ;;
  end_to_end) command=(eval.linear_probe --end_to_end --resume) ;;
  finetune) command=(eval.finetune --resume) ;;
  *) echo "$TASK: must be retrieval, probe, end_to_end or finetune" >&2; exit 2 ;;
esac
CSV=${CSV:-csv/$DATASET}

run python -m "${command[@]}" --weights "$CHECKPOINT" --train_csv "$CSV/train_{split}.csv" \
  --test_csv "$CSV/test_{split}.csv" --splits 1,2,3 --clips windows --multiprocessing-distributed \
  --out "runs/${TASK}_$DATASET" "$@"
