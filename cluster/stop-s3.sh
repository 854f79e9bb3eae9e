#!/usr/bin/env bash
# Ends the S3 server that cluster/start-s3.sh started in DIR. What was written is on disk: it needs no farewell.
#
#   cluster/stop-s3.sh DIR
set -euo pipefail

if [[ $# -ne 1 ]]; then
  sed -n '2,4s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
pid=$(cat "$1/server.pid" 2>/dev/null) || exit 0
if [[ $(cat "/proc/$pid/comm" 2>/dev/null) == weed ]]; then
  kill -KILL "$pid"
  # Its ports are free when it is gone.
  while [[ $(cat "/proc/$pid/comm" 2>/dev/null) == weed ]]; do
    sleep 0.05
  done
fi
rm -f "$1/server.pid"
