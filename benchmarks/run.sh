#!/usr/bin/env bash
# Measures every figure of docs/performance.md and writes its tables: bash benchmarks/run.sh [--quick]
#
# --quick takes minutes and prints the tables without writing them. The whole takes about half an hour on two free
# cores; it should be the only thing that runs. A GPU is measured where there is one. PYTHON=/path/to/python chooses
# the interpreter (default: .venv, as scripts/test.sh makes it).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OMP_NUM_THREADS=1
python=${PYTHON:-.venv/bin/python}
names=(input video_decoders packed_frames objective step training evaluation growth scale)
if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  names+=(gpu)
fi
for name in "${names[@]}"; do
  echo "== benchmarks.$name" >&2
  "$python" -m "benchmarks.$name" "${@:---write}"
done
