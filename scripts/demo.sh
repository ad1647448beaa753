#!/usr/bin/env bash
# The full pipeline on a small scale: procedural action videos as JPEG files, pretraining, retrieval and linear probe on
# held-out videos with random and with pretrained weights, maps of temporal order, and an HTML report.
#
#   bash scripts/demo.sh [FOLDER]        FOLDER defaults to demo; steps that are already finished are reused
#
# SEED=1 sets the seed of pretraining (default 0), LOOKS=unique selects the hard variant of the videos.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
install_requirements requirements.txt

FOLDER=${1:-demo}
SEED=${SEED:-0}
LOOKS=${LOOKS:-shared}
VIDEOS="$FOLDER/videos_$LOOKS"
RUN="$FOLDER/run_${LOOKS}_seed$SEED"
[ "$LOOKS" = shared ] && LOOK_FLAG=--shared_looks || LOOK_FLAG=
FEATURE_FLAGS=(--train_csv "$VIDEOS/train.csv" --test_csv "$VIDEOS/test.csv" --img_dim 32 --clips 4 --workers 2
               --seed "$SEED" --levels low,mid,high,concat --feature_dir "$RUN/features")

echo "== 1. videos"
"$PYTHON_BIN" -m dataset.synthetic "$VIDEOS" $LOOK_FLAG

echo "== 2. pretraining"
PRETRAIN=("$PYTHON_BIN" train.py --csv_file "$VIDEOS/pretrain.csv" --out "$RUN" --seed "$SEED" --net r3d10 --img_dim 32
          --train_batch 20 --workers 1 --cluster 40 --queue 140 --queue_start 3 --epoch 12 --split 6 --lr_decay 10
          --resume)
echo "${PRETRAIN[*]}"
"${PRETRAIN[@]}"
CHECKPOINT="$RUN/checkpoints/epoch_0012.pt"

echo "== 3. retrieval and linear probe on held-out videos: random, then pretrained weights"
for NAME in random pretrained; do
  WEIGHTS=(--weights random --net r3d10)
  [ $NAME = pretrained ] && WEIGHTS=(--weights "$CHECKPOINT")
  "$PYTHON_BIN" -m eval.retrieval "${WEIGHTS[@]}" "${FEATURE_FLAGS[@]}" --out "$RUN/retrieval_$NAME"
  "$PYTHON_BIN" -m eval.linear_probe "${WEIGHTS[@]}" "${FEATURE_FLAGS[@]}" --out "$RUN/probe_$NAME"
done

echo "== 4. temporal order: forward or reversed? (near chance here: three classes are three others played backwards)"
ORDER=("$PYTHON_BIN" -m visualization.main_temporal --weights "$CHECKPOINT" --test_csv "$VIDEOS/test.csv"
       --out "$RUN/temporal_order" --workers 2)
"${ORDER[@]}" --train_csv "$VIDEOS/train.csv" --img_dim 64 --level low --epoch 20 --resume
"${ORDER[@]}" --mode visualize --num_videos 3

echo "== 5. result"
"$PYTHON_BIN" -m eval.compare "$RUN/retrieval_random" "$RUN/retrieval_pretrained"
"$PYTHON_BIN" -m eval.compare "$RUN/probe_random" "$RUN/probe_pretrained"
"$PYTHON_BIN" -m visualization.curves "$RUN"
"$PYTHON_BIN" -m visualization.report "$RUN" --csv_file "$VIDEOS/train.csv" --test_csv "$VIDEOS/test.csv" --workers 2
cat <<NEXT
neighbors: $RUN/retrieval_pretrained/retrieval.png

Next:
  open $RUN/report.html in a browser
  $PYTHON_BIN -m tensorboard.main --logdir $RUN/tensorboard
  SEED=1 bash scripts/demo.sh $FOLDER              another seed
  LOOKS=unique bash scripts/demo.sh $FOLDER        every video with its own appearance
  $PYTHON_BIN train.py --csv_file YOUR.csv --net r3d18     your own videos (docs/data.md)
  $PYTHON_BIN -m eval.finetune --weights $CHECKPOINT --train_csv YOUR_train.csv --test_csv YOUR_test.csv
NEXT
