#!/usr/bin/env bash
# Everything that needs a GPU, in parts that do not depend on each other:
#
#   bash benchmarks/gpu.sh OUT [tests] [bench] [data] [train]
#
# tests  tests/test_gpu.py, several at a time                     at most TESTS_S seconds (default 240)
# bench  python -m benchmarks.gpu, rows as they are measured      at most BENCH_S (300)
# data   python -m benchmarks.training: steps on videos read      at most DATA_S (120)
# train  the motion recipe on synthetic videos, retrieval and     at most TRAIN_S of training (600), and EVAL_S (90) for
#        linear probe with random weights before and after it,    each evaluation
#        and temporal order after it
#
# Without names all parts run. OUT gets logs and status.txt; the exit status is 1 if a part failed. DRY_RUN=1 tries all on
# the CPU: the tests are collected, training takes a few steps. PYTHON chooses the interpreter.
# EPOCHS and TRAIN_FLAGS are for train.py. Within 15 minutes in all, with a shorter training:
# TESTS_S=180 BENCH_S=240 DATA_S=60 TRAIN_S=150 EVAL_S=40 EPOCHS=40.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "${1:?: where the results go}" && OUT=$(realpath "$1") && shift
[ -x .venv/bin/python ] && PYTHON=${PYTHON:-.venv/bin/python} || PYTHON=${PYTHON:-python}
DRY_RUN=${DRY_RUN:-} FAILED=0

limited() {  # SECONDS NAME COMMAND...: its output in OUT/NAME.log; asked to stop at the limit, killed 60 s later
  local seconds=$1 name=$2 begin=$SECONDS status=0
  shift 2
  timeout -k 60 "$seconds" "$PYTHON" "$@" >>"$OUT/$name.log" 2>&1 || status=$?
  echo "$name: exit status $status after $((SECONDS - begin)) s: python $*" | tee -a "$OUT/status.txt"
  [ "$status" = 0 ] || { [ "$name" = pretrain ] && [ "$status" = 124 ]; } || FAILED=1  # pretraining fills its time
}

tests() { limited "${TESTS_S:-240}" tests -m pytest -v -n 6 ${DRY_RUN:+--collect-only} tests/test_gpu.py; }

bench() { limited "${BENCH_S:-300}" bench -m benchmarks.gpu ${DRY_RUN:+--help}; }

data() { limited "${DATA_S:-120}" data -m benchmarks.training ${DRY_RUN:+--help}; }

evaluate() {  # NAME WEIGHTS
  local common=(--weights "$2" --train_csv "$OUT/videos/train.csv" --test_csv "$OUT/videos/test.csv" --clips 4 --amp bf16
    --workers "$(nproc)" --feature_dir "$OUT/features_$1")
  [ "$2" = random ] && common+=(--net r3d18 --input residual)
  [ "$DRY_RUN" ] && common+=(--img_dim 32 --seq 8)
  limited "${EVAL_S:-90}" "retrieval_$1" -m eval.retrieval "${common[@]}" --out "$OUT/retrieval_$1"
  limited "${EVAL_S:-90}" "probe_$1" -m eval.linear_probe "${common[@]}" --levels low,mid,high,concat \
    ${DRY_RUN:+--epochs 2} --out "$OUT/probe_$1"
  [ "$2" = random ] || limited "${EVAL_S:-90}" "order_$1" -m visualization.main_temporal --weights "$2" --clips 4 \
    --train_csv "$OUT/videos/arrow_train.csv" --test_csv "$OUT/videos/arrow_test.csv" --img_dim 112 --level mid --lr 0.01 \
    --epoch 200 --lr_decay 150 --workers "$(nproc)" ${DRY_RUN:+--img_dim 32 --epoch 2} --out "$OUT/order_$1"
}

train() {
  local epochs=${EPOCHS:-120}
  local size=(--train_per_class 180 --test_per_class 20 --size 200x150) flags=(--train_batch 64 --workers 14)
  [ "$DRY_RUN" ] && epochs=1 size=(--train_per_class 2 --test_per_class 1) && flags=(
    --train_batch 15 --workers 1 --img_dim 32)
  flags+=(${TRAIN_FLAGS:-})
  limited 120 videos -m dataset.synthetic "$OUT/videos" "${size[@]}"
  evaluate before random
  limited "${TRAIN_S:-600}" pretrain train.py --net r3d18 --input residual --color_draws clip --amp bf16 --channels_last \
    --cluster 60 --epoch "$epochs" --split $((epochs / 4)) --lr_decay $((epochs * 4 / 5 + 1)) --out "$OUT/run" \
    --csv_file "$OUT/videos/pretrain.csv" --monitor_csv "$OUT/videos/train.csv" "$OUT/videos/test.csv" \
    --monitor_every $(((epochs + 5) / 6)) "${flags[@]}"
  evaluate after "$(ls -t "$OUT"/run/checkpoints/*.pt 2>/dev/null | head -1)"
}

for part in "${@:-tests bench data train}"; do
  for name in $part; do
    case $name in
      tests | bench | data | train) "$name" ;;
      *) echo "$name: must be tests, bench, data or train" >&2; exit 2 ;;
    esac
  done
done
exit $FAILED
