#!/usr/bin/env bash
# Prints the path of a Chromium or Chrome. If there is none, installs Chromium first (needs root and apt-get).
#
#   CHROMIUM=/path/to/chromium bash scripts/browser.sh      uses this one
#
# Exit status 1, with a one-line error, if there is none and it cannot be installed.
set -uo pipefail

find_browser() {
  local candidate
  for candidate in ${CHROMIUM:-chromium chromium-browser google-chrome google-chrome-stable}; do
    # A program on PATH may be a stub that only prints how to install the real one.
    if command -v "$candidate" > /dev/null && "$candidate" --version > /dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

find_browser && exit
if [ -n "${CHROMIUM:-}" ]; then
  echo "CHROMIUM=$CHROMIUM: not a browser that starts" >&2
  exit 1
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
  echo "no chromium, chromium-browser or google-chrome on PATH; installing one needs root and apt-get" >&2
  exit 1
fi
echo "installing chromium to test the HTML report (once, about a minute)" >&2
{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } > /dev/null || {
  echo "apt-get could not install chromium" >&2
  exit 1
}
find_browser || { echo "chromium was installed but does not start" >&2; exit 1; }
