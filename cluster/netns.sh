#!/usr/bin/env bash
# Network namespaces that look like hosts: PREFIX0, PREFIX1, .. at NETWORK.10, NETWORK.11, .. on the bridge PREFIXbr, whose
# own address NETWORK.1 is this machine's side. Needs root.
#
#   cluster/netns.sh up PREFIX NUMBER NETWORK     make them, e.g. `up zt 4 10.231.7`
#   cluster/netns.sh down PREFIX                  remove all that begin with PREFIX
#
# A program in one: nsenter --net=/run/netns/PREFIX0 COMMAND (unlike `ip netns exec` it leaves /sys as it is).
# Cut one off:      ip link set PREFIXv0 down      and again: ip link set PREFIXv0 up
set -euo pipefail

usage() {
  sed -n '5,6s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

down() {
  local name
  for name in $(ip netns list | cut -d' ' -f1); do
    if [[ $name =~ ^"$1"[0-9]+$ ]]; then
      # Its cable first: that of a deleted namespace goes a while later.
      ip link delete "$1v${name#"$1"}" || true
      ip netns delete "$name"
    fi
  done
  if ip link show "$1br" >/dev/null 2>&1; then
    ip link delete "$1br"
  fi
}

up() {
  local prefix=$1 network=$3 host
  trap 'down "$prefix"' ERR
  ip link add "${prefix}br" type bridge
  ip address add "$network.1/24" dev "${prefix}br"
  ip link set "${prefix}br" up
  for ((host = 0; host < $2; host++)); do
    ip netns add "$prefix$host"
    ip link add "${prefix}v$host" type veth peer name eth0 netns "$prefix$host"
    ip link set "${prefix}v$host" master "${prefix}br" up
    ip -n "$prefix$host" address add "$network.$((10 + host))/24" dev eth0
    ip -n "$prefix$host" link set eth0 up
    ip -n "$prefix$host" link set lo up
  done
}

case ${1-} in
  up) [[ $# -eq 4 ]] || usage; up "$2" "$3" "$4" ;;
  down) [[ $# -eq 2 ]] || usage; down "$2" ;;
  *) usage ;;
esac
