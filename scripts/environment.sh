# Sourced by demo.sh and test.sh: creates .venv in the repository and installs a requirements file into it, once.
#
#   install_requirements requirements.txt     sets PYTHON_BIN; no network needed if nothing has changed
#
# PYTHON=/path/to/python selects the interpreter of a new environment (3.10 or newer).

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.10 or newer among: ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}" >&2
  return 1
}

install_requirements() {
  local file=$1 python stamp wanted
  PYTHON_BIN="$PWD/.venv/bin/python"
  if ! [ -x "$PYTHON_BIN" ]; then
    python=$(find_python) || return 1
    echo "creating .venv with $("$python" --version)"
    "$python" -m venv .venv || {
      echo "error: $python -m venv failed (on Debian and Ubuntu: apt-get install python3-venv)" >&2
      rm -rf .venv
      return 1
    }
  fi
  stamp=".venv/installed-$(echo "$file" | tr / -)"
  wanted=$(cat requirements.txt "$file" | cksum)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing $file into .venv (torch is large: several minutes on a slow network)"
    "$PYTHON_BIN" -m pip install --quiet --disable-pip-version-check -r "$file" || return 1
    echo "$wanted" > "$stamp"
  fi
}
