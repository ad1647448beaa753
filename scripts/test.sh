#!/usr/bin/env bash
# Sets up .venv where needed and runs the tests, two files at a time; arguments go to pytest:
#
#   bash scripts/test.sh tests/models -k graph
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
install_requirements tests/requirements.txt
CHOICE=()
if BROWSER=$(bash scripts/browser.sh); then
  export CHROMIUM="$BROWSER"
else
  echo "no browser: the tests marked 'browser' are left out; all others run"
  CHOICE=(-m "not browser")
fi
exec "$PYTHON_BIN" -m pytest -n 2 --dist loadfile ${CHOICE[@]+"${CHOICE[@]}"} "$@"
