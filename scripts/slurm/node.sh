#!/usr/bin/env bash
# Started by pretrain.sbatch on each node: `bash node.sh COMMAND...` runs COMMAND (torchrun) ignoring requests to stop.
#
# SLURM sends a signal to every process of a step. torchrun must ignore it: SIGUSR1 would end it, and on SIGTERM it would
# kill the ranks after 30 s. The ranks handle it themselves, take the time they need, and torchrun exits after them.
trap '' USR1 TERM
export TORCHELASTIC_SIGNALS_TO_HANDLE=SIGINT,SIGHUP,SIGQUIT  # otherwise torchrun handles SIGTERM despite the trap
exec "$@"
