# Sourced by the recipes; goes to the root of the repository.
#
#   run python ARGUMENTS...     shows the command and runs it; with DRY_RUN=1 its flags are parsed, and nothing is run
#
# PYTHON=/path/to/python chooses the interpreter (default: .venv/bin/python where there is one, else python).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
[ -x .venv/bin/python ] && PYTHON=${PYTHON:-.venv/bin/python} || PYTHON=${PYTHON:-python}

run() {
  shift
  echo "+ python $*"
  if [ -n "${DRY_RUN:-}" ]; then
    "$PYTHON" scripts/recipes/parse_flags.py "$@"
  else
    "$PYTHON" "$@"
  fi
}
