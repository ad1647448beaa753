#!/usr/bin/env bash
# Around each rank of pretrain.sbatch: runs COMMAND, `bash rank.sh COMMAND...`, and tells torchrun whether to start it anew.
#
# torchrun starts everything again that does not end with 0. That helps where a rank was lost, and not after a stop on
# request (75), a mistake in what was given (2) or numbers that are not finite (4): these become 0 here, and so does the loss
# of a rank (3) that ended with 2 or 4. What COMMAND ended with is left in the folder $RANK_STATUSES under the rank's number.
trap '' USR1 TERM  # COMMAND has handlers of its own
rm -f "$RANK_STATUSES/$RANK"
"$@"
status=$?
echo "$status" > "$RANK_STATUSES/$RANK"
case $status in
  2 | 4 | 75) exit 0 ;;
  3) grep -qsx '[24]' "$RANK_STATUSES"/* && exit 0 ;;
esac
exit "$status"
