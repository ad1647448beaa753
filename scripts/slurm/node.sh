#!/usr/bin/env bash
# One node's part of pretrain.sbatch: COMMAND (torchrun) that is deaf to requests to stop, `bash node.sh COMMAND...`
#
# SLURM sends a signal to every process of a step. torchrun must not hear it: SIGUSR1 would end it, and on SIGTERM it would
# give the ranks 30 s. They hear it themselves, take all the time they need, and torchrun ends when they have.
trap '' USR1 TERM
export TORCHELASTIC_SIGNALS_TO_HANDLE=SIGINT,SIGHUP,SIGQUIT  # without it SIGTERM is handled all the same
exec "$@"
