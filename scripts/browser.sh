#!/usr/bin/env bash
# Prints the path of a Chromium or Chrome; without one, and as root where apt-get is, installs it first.
#
#   CHROMIUM=/path/to/chromium bash scripts/browser.sh      takes this one
#
# Exit status 1 where none can be had, with the reason on the terminal.
set -uo pipefail

find_browser() {
  local candidate
  for candidate in ${CHROMIUM:-chromium chromium-browser google-chrome google-chrome-stable}; do
    # A name on PATH may be a stub that only tells how to install the real one.
    if command -v "$candidate" > /dev/null && "$candidate" --version > /dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

find_browser && exit
if [ -n "${CHROMIUM:-}" ]; then
  echo "CHROMIUM=$CHROMIUM: is no browser that starts" >&2
  exit 1
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
  echo "no chromium, chromium-browser or google-chrome on PATH, and none can be installed (that takes root and apt-get)" >&2
  exit 1
fi
echo "installing chromium, with which the report's page is tested (once, about a minute)" >&2
{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } > /dev/null || {
  echo "apt-get could not install chromium" >&2
  exit 1
}
find_browser || { echo "chromium was installed and does not start" >&2; exit 1; }
