#!/usr/bin/env bash
# An S3-compatible server (SeaweedFS) for tests and for trying things out, on 127.0.0.1.
#
#   cluster/start-s3.sh DIR [PORT]                 start it with the bucket `zipper`; `. DIR/env.sh` then sets AWS_*
#   cluster/start-s3.sh --foreground DIR PORT{8}   become it: ports of S3, master, volume, filer, and of gRPC of each
#
# Everything it keeps is under DIR, the generated credentials too, so the same command on the same DIR goes on with the
# same data. cluster/stop-s3.sh ends it. `cargo xtask setup` installs the program.
set -euo pipefail

usage() {
  sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

foreground=false
if [[ ${1-} == --foreground ]]; then
  foreground=true
  shift
fi
[[ $# -ge 1 ]] || usage
mkdir -p "$1/data"
dir=$(cd "$1" && pwd)
shift
if $foreground; then
  [[ $# -eq 8 ]] || usage
  ports=("$@")
else
  [[ $# -le 1 ]] || usage
  base=${1:-8333}
  ports=("$base" $((base + 1)) $((base + 2)) $((base + 3)) $((base + 10)) $((base + 11)) $((base + 12)) $((base + 13)))
fi

weed=$(cd "$(dirname "$0")/.." && pwd)/.deps/seaweedfs/bin/weed
if [[ ! -x $weed ]]; then
  echo "error: \`$weed\` is missing: run \`cargo xtask setup\`" >&2
  exit 2
fi

if ! $foreground && pid=$(cat "$dir/server.pid" 2>/dev/null) && [[ $(cat "/proc/$pid/comm" 2>/dev/null) == weed ]]; then
  echo "error: the S3 server of \`$dir\` runs already (process $pid): \`cluster/stop-s3.sh $dir\` ends it" >&2
  exit 1
fi

random() { od -An -N"$1" -tx1 /dev/urandom | tr -d ' \n'; }
umask 077
if [[ ! -e $dir/keys.sh ]]; then
  key=$(random 10)
  secret=$(random 20)
  cat >"$dir/s3.json" <<JSON
{"identities": [{"name": "zipper", "credentials": [{"accessKey": "$key", "secretKey": "$secret"}],
  "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}
JSON
  printf 'export AWS_ACCESS_KEY_ID=%s\nexport AWS_SECRET_ACCESS_KEY=%s\n' "$key" "$secret" >"$dir/keys.sh"
fi
# Anew each time: the port may be another one.
{
  cat "$dir/keys.sh"
  printf 'export AWS_ENDPOINT=http://127.0.0.1:%s\nexport AWS_REGION=us-east-1\nexport AWS_ALLOW_HTTP=true\n' "${ports[0]}"
} >"$dir/env.sh"

# Without minFreeSpace every write hangs on a disk that is 99 % full, however large it is.
server=("$weed" "-logdir=$dir" server "-dir=$dir/data" -ip=127.0.0.1 -ip.bind=127.0.0.1
  -master.telemetry=false -master.electionTimeout=1s -master.volumeSizeLimitMB=1024
  -volume.max=20 -volume.preStopSeconds=0 -volume.minFreeSpace=64MiB
  -s3 "-s3.config=$dir/s3.json" -s3.port.iceberg=0 -s3.port.lance=0
  "-s3.localSocket=$dir/s3.sock" "-filer.localSocket=$dir/filer.sock"
  "-s3.port=${ports[0]}" "-master.port=${ports[1]}" "-volume.port=${ports[2]}" "-filer.port=${ports[3]}"
  "-s3.port.grpc=${ports[4]}" "-master.port.grpc=${ports[5]}" "-volume.port.grpc=${ports[6]}"
  "-filer.port.grpc=${ports[7]}")
cd "$dir"
if $foreground; then
  exec "${server[@]}"
fi

setsid "${server[@]}" </dev/null >"$dir/server.log" 2>&1 &
echo $! >"$dir/server.pid"
# Prints the status that METHOD PATH has at PORT.
http() {
  exec 3<>"/dev/tcp/127.0.0.1/$3" || return 1
  printf '%s %s HTTP/1.0\r\nContent-Length: 0\r\n\r\n' "$1" "$2" >&3
  read -r -t 10 _ status _ <&3
  exec 3>&-
  echo "$status"
}
for _ in {1..300}; do
  # Buckets are folders of the filer; 409: it is there already.
  if [[ $(http GET /healthz "${ports[0]}") == 200 && $(http POST /buckets/zipper/ "${ports[3]}") =~ ^(201|409)$ ]] 2>/dev/null; then
    echo "S3 server: http://127.0.0.1:${ports[0]} (. $dir/env.sh)"
    exit 0
  fi
  kill -0 $! 2>/dev/null || break
  sleep 0.1
done
echo "error: the S3 server did not start: see $dir/server.log" >&2
exit 1
