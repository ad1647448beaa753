#!/usr/bin/env bash
# Started by torchrun for each rank: `bash rank.sh COMMAND...` runs COMMAND and decides whether torchrun restarts it.
#
# torchrun restarts all ranks if one exits with a status other than 0. That helps after a lost rank, but not after a stop on
# request (75), wrong input (2) or non-finite values (4): these become 0 here, and so does a lost peer (3) if that peer
# exited with 2 or 4. The exit status of COMMAND is written to $RANK_STATUSES/RANK.
trap '' USR1 TERM  # COMMAND installs its own handlers
rm -f "$RANK_STATUSES/$RANK"
"$@"
status=$?
echo "$status" > "$RANK_STATUSES/$RANK"
case $status in
  2 | 4 | 75) exit 0 ;;
  3) grep -qsx '[24]' "$RANK_STATUSES"/* && exit 0 ;;
esac
exit "$status"
