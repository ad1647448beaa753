#!/usr/bin/env bash
# Sets up .venv where needed and runs the tests; arguments go to pytest: bash scripts/test.sh tests/models -k graph
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
install_requirements tests/requirements.txt
exec "$PYTHON_BIN" -m pytest "$@"
