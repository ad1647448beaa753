#!/usr/bin/env bash
# Prints the path of a Chromium or Chrome that starts. If there is none, installs Chromium first (needs root and apt-get).
#
#   CHROMIUM=/path/to/chromium bash tests/browser.sh      uses this one
#
# Exit status 1, with a one-line error, if there is none and it cannot be installed.
set -uo pipefail

print_browser_and_exit() {
  local candidate
  for candidate in ${CHROMIUM:-chromium chromium-browser google-chrome google-chrome-stable}; do
    # A program on PATH may be a stub that only prints how to install the real one.
    "$candidate" --version > /dev/null 2>&1 && command -v "$candidate" && exit
  done
}

print_browser_and_exit
if [ -z "${CHROMIUM:-}" ] && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
  echo "installing chromium to test the HTML report (once, about a minute)" >&2
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } > /dev/null
  print_browser_and_exit
fi
echo "no ${CHROMIUM:-chromium, chromium-browser or google-chrome} that starts; installing one needs root and apt-get" >&2
exit 1
