#!/bin/bash
#SBATCH
# Written by `zipper-launch submit`. The job stops with a checkpoint before its time is over and when it is pre-empted, and
# then queues itself again; its next life goes on from there.
set -u

max_requeues=@MAX_REQUEUES@
requeues=${SLURM_RESTART_COUNT:-0}
resume=@RESUME@
if ((requeues > 0)); then
  resume=auto
fi

say() { echo "$(date -u +%FT%TZ) job $SLURM_JOB_ID: $*"; }
say "begins on $SLURM_JOB_NODELIST, requeued $requeues of $max_requeues times"
# Slurm itself queues jobs again, too, when their nodes are lost.
if ((requeues > max_requeues)); then
  say "that is more often than cluster.max_requeues allows: the same command goes on"
  exit 75
fi

# A signal interrupts `wait`, which then has no exit code of the run.
launch='' asked='' interrupted=''
# shellcheck disable=SC2317 # traps call it
pass_on() {
  asked=$1 interrupted=yes
  say "$1"
  if [[ -n $launch ]]; then kill "-$1" "$launch" 2>/dev/null; fi
}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM

code=75
if [[ -z $asked ]]; then
  @COMMAND@ --resume "$resume" &
  launch=$!
  # It may have come just now.
  if [[ -n $asked ]]; then kill "-$asked" "$launch"; fi
  while :; do
    interrupted=''
    wait "$launch"
    code=$?
    [[ -n $interrupted ]] || break
  done
  say "the run ended with exit code $code"
fi

said=$(scontrol show job --oneliner "$SLURM_JOB_ID")
state=$(sed -n 's/.* JobState=\([A-Z_]*\).*/\1/p' <<<"$said")
nodes=$(sed -n 's/.* NumNodes=\([0-9]*\).*/\1/p' <<<"$said")
# With --no-kill Slurm takes lost nodes out of the job.
lost=$((SLURM_JOB_NUM_NODES - ${nodes:-SLURM_JOB_NUM_NODES}))
if ((code == 1 && lost > 0)); then
  say "it has lost $lost of its $SLURM_JOB_NUM_NODES nodes"
elif ((code != 75)); then
  exit "$code"
fi
if [[ $state != RUNNING ]]; then
  # Cancelled, or out of time: that is meant, or Slurm itself queues it again.
  say "stopped in state ${state:-unknown}, so it is not queued again"
elif [[ $said == *' Requeue=0 '* ]]; then
  say "stopped by \`zipper-launch stop\`, or not to be requeued, so it is not queued again"
elif ((requeues >= max_requeues)); then
  say "stopped, and it was requeued $requeues times already (cluster.max_requeues): the same command goes on"
elif scontrol requeue "$SLURM_JOB_ID"; then
  say "queued again"
fi
exit "$code"
