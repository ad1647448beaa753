#!/usr/bin/env bash
# The full pipeline on a small scale: procedural action videos as JPEG files, pretraining, retrieval and linear probe on
# held-out videos with random and with pretrained weights, maps of temporal order, and an HTML report.
#
#   bash scripts/demo.sh [FOLDER]        FOLDER defaults to demo; steps that are already finished are reused
#
# SEED=1 sets the seed of pretraining (default 0); RECIPE=published pretrains as published instead of with the motion recipe.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
install_requirements requirements.txt

FOLDER=${1:-demo}
SEED=${SEED:-0}
RECIPE=${RECIPE:-motion}
VIDEOS="$FOLDER/videos"
RUN="$FOLDER/${RECIPE}_seed$SEED"
case $RECIPE in
  motion) FRAMES=residual; RECIPE_FLAGS=(--input residual --color_draws clip) ;;
  published) FRAMES=rgb; RECIPE_FLAGS=() ;;
  *) echo "demo.sh: RECIPE $RECIPE: must be motion or published" >&2; exit 2 ;;
esac
FEATURE_FLAGS=(--train_csv "$VIDEOS/train.csv" --test_csv "$VIDEOS/test.csv" --img_dim 32 --clips 4 --workers 2
               --seed "$SEED" --levels low,mid,high,concat --feature_dir "$RUN/features" --amp bf16)

echo "== 1. videos"
"$PYTHON_BIN" -m dataset.synthetic "$VIDEOS"

echo "== 2. pretraining, $RECIPE recipe"
PRETRAIN=("$PYTHON_BIN" train.py --csv_file "$VIDEOS/pretrain.csv" --out "$RUN" --seed "$SEED" --net r3d10 --img_dim 32
          --train_batch 30 --workers 1 --cluster 60 --queue 300 --queue_start 4 --epoch 14 --split 7 --lr_decay 12
          --amp bf16 --channels_last ${RECIPE_FLAGS[@]+"${RECIPE_FLAGS[@]}"} --resume)
echo "${PRETRAIN[*]}"
"${PRETRAIN[@]}"
CHECKPOINT="$RUN/checkpoints/epoch_0014.pt"

echo "== 3. retrieval and linear probe on held-out videos: random, then pretrained weights"
for NAME in random pretrained; do
  WEIGHTS=(--weights random --net r3d10 --input $FRAMES)
  [ $NAME = pretrained ] && WEIGHTS=(--weights "$CHECKPOINT")
  "$PYTHON_BIN" -m eval.retrieval "${WEIGHTS[@]}" "${FEATURE_FLAGS[@]}" --out "$RUN/retrieval_$NAME"
  "$PYTHON_BIN" -m eval.linear_probe "${WEIGHTS[@]}" "${FEATURE_FLAGS[@]}" --out "$RUN/probe_$NAME"
done

echo "== 4. temporal order: forward or reversed? (on the classes with an arrow of time; chance is 50 %)"
echo "so short a run stays near chance, and its maps show little of the order (docs/demo.md)"
ORDER=("$PYTHON_BIN" -m visualization.main_temporal --weights "$CHECKPOINT" --test_csv "$VIDEOS/arrow_test.csv"
       --out "$RUN/temporal_order" --workers 2)
"${ORDER[@]}" --train_csv "$VIDEOS/arrow_train.csv" --img_dim 48 --clips 2 --level mid --epoch 50 --resume
"${ORDER[@]}" --mode visualize --num_videos 3

echo "== 5. result, in per cent: R@1 of retrieval and top-1 of the linear probe, chance is 6.7 (docs/demo.md)"
"$PYTHON_BIN" -m eval.compare "$RUN/retrieval_random" "$RUN/retrieval_pretrained"
"$PYTHON_BIN" -m eval.compare "$RUN/probe_random" "$RUN/probe_pretrained"
"$PYTHON_BIN" -m visualization.curves "$RUN"
"$PYTHON_BIN" -m visualization.embedding --weights "$CHECKPOINT" --csv_file "$VIDEOS/test.csv" --img_dim 32 --clips 4 \
  --workers 2 --seed "$SEED" --out "$RUN/embedding.png"
"$PYTHON_BIN" -m visualization.report "$RUN" --csv_file "$VIDEOS/train.csv" --workers 2
cat <<NEXT
neighbors: $RUN/retrieval_pretrained/retrieval.png

Next:
  open $RUN/report.html in a browser
  $PYTHON_BIN -m tensorboard.main --logdir $RUN/tensorboard
  SEED=1 bash scripts/demo.sh $FOLDER                another seed
  RECIPE=published bash scripts/demo.sh $FOLDER      the published recipe (docs/demo.md compares them)
  CSV=YOUR.csv bash scripts/recipes/pretrain_motion.sh      your own videos (docs/data.md)
  $PYTHON_BIN -m eval.finetune --weights $CHECKPOINT --train_csv YOUR_train.csv --test_csv YOUR_test.csv
NEXT
