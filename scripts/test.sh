#!/usr/bin/env bash
# Sets up .venv if needed and runs the tests with two processes; arguments are passed to pytest:
#
#   bash scripts/test.sh tests/models -k graph
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
install_requirements tests/requirements.txt
CHOICE=()
if BROWSER=$(bash tests/browser.sh); then
  export CHROMIUM="$BROWSER"
else
  echo "no browser: tests marked 'browser' are skipped, all others run"
  CHOICE=(-m "not browser")
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # threads of several processes wait for each other by spinning
exec "$PYTHON_BIN" -m pytest -n 2 --dist loadfile ${CHOICE[@]+"${CHOICE[@]}"} "$@"
