#!/usr/bin/env bash
# Ends the cluster that cluster/start-slurm.sh started in DIR, with its jobs; no process of it is left.
#
#   cluster/stop-slurm.sh DIR
set -euo pipefail
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin

if [[ $# -ne 1 ]]; then
  sed -n '4s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
[[ -e $1/slurm.conf ]] || exit 0
dir=$(cd "$1" && pwd)
export SLURM_CONF=$dir/slurm.conf

# Whether process $1 is a living one called $2: its number may be somebody else's by now, and nobody may have reaped it.
lives() {
  [[ $(cat "/proc/$1/comm" 2>/dev/null) == "$2" && $(ps -o state= -p "$1") != Z* ]]
}

# Ends process $1 called $2 with signal $3, in the end with SIGKILL.
end() {
  lives "$1" "$2" || return 0
  kill "-$3" "$1" 2>/dev/null || true
  for _ in {1..100}; do
    lives "$1" "$2" || return 0
    sleep 0.05
  done
  kill -KILL "$1" 2>/dev/null || true
}

# The process that holds the steps of a job, and everything that it started, whatever group that is in.
end_step() {
  local child
  kill -STOP "$1" 2>/dev/null || true
  for child in $(ps -o pid= --ppid "$1"); do
    end_step "$child"
  done
  kill -KILL "$1" 2>/dev/null || true
}

# Without slurmctld nothing is started any more.
if pid=$(cat "$dir/run/slurmctld.pid" 2>/dev/null); then
  end "$pid" slurmctld TERM
fi
for file in "$dir"/run/slurmd.*.pid; do
  if pid=$(cat "$file" 2>/dev/null); then
    end "$pid" slurmd TERM
  fi
done
for pid in $(ps -e -o pid=,comm= | awk '$2 == "slurmstepd" {print $1}'); do
  if tr '\0' '\n' 2>/dev/null <"/proc/$pid/environ" | grep -qxF "SLURM_CONF=$SLURM_CONF"; then
    end_step "$pid"
  fi
done
if pid=$(cat "$dir/munge/pid" 2>/dev/null); then
  end "$pid" munged TERM
fi
