# Sourced by the recipes; goes to the root of the repository.
#
#   run python ARGUMENTS...     shows the command and runs it
#
# PYTHON=/path/to/python chooses the interpreter (default: .venv/bin/python where there is one, else python); with PYTHON=true
# nothing is run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
[ -x .venv/bin/python ] && PYTHON=${PYTHON:-.venv/bin/python} || PYTHON=${PYTHON:-python}

run() {
  shift
  echo "+ python $*"
  "$PYTHON" "$@"
}
