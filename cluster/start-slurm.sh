#!/usr/bin/env bash
# A Slurm cluster of several nodes on this machine, for tests and for trying things out: munged, slurmctld and a slurmd for each
# node, with GPUs that are none. Needs root and the packages munge, slurmctld, slurmd and slurm-client.
#
#   cluster/start-slurm.sh [OPTIONS] DIR          start it; `. DIR/env.sh` then points srun, sbatch and squeue to it
#     --nodes N                                   how many nodes (4): node0, node1, ..
#     --gpus N                                    how many GPUs on each (0)
#     --ports PORT,PORT,..                        of slurmctld and of each slurmd (6817, 6818, ..)
#     --hosts PREFIX NETWORK                      nodes run in the namespaces of `cluster/netns.sh up PREFIX N NETWORK`
#
# Everything it keeps is under DIR, the key of its munge too; several clusters with other ports do not disturb each other.
# cluster/stop-slurm.sh ends it.
set -euo pipefail
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin

usage() {
  sed -n '5,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

nodes=4 gpus=0 ports=() prefix='' network=''
while [[ ${1-} == --* ]]; do
  case $1 in
    --nodes) nodes=${2-}; shift 2 || usage ;;
    --gpus) gpus=${2-}; shift 2 || usage ;;
    --ports) IFS=, read -r -a ports <<<"${2-}"; shift 2 || usage ;;
    --hosts) prefix=${2-} network=${3-}; shift 3 || usage ;;
    *) usage ;;
  esac
done
[[ $# -eq 1 ]] || usage
if [[ ${#ports[@]} -eq 0 ]]; then
  for ((i = 0; i <= nodes; i++)); do ports+=($((6817 + i))); done
fi
[[ ${#ports[@]} -eq $((nodes + 1)) ]] || usage

for program in munged slurmctld slurmd sinfo; do
  if ! command -v "$program" >/dev/null; then
    echo "error: \`$program\` is missing: apt-get install munge slurm-client slurmctld slurmd" >&2
    exit 2
  fi
done

umask 022
mkdir -p "$1"
dir=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$dir"/{gpu,log,munge,run,spool,state}
chmod 711 "$dir/munge"
host=$(hostname -s)
if [[ -n $prefix ]]; then controller=$network.1; else controller=127.0.0.1; fi

# slurmd takes any character device for a GPU.
gres=''
: >"$dir/gres.conf"
if ((gpus > 0)); then
  for ((i = 0; i < gpus; i++)); do
    [[ -c $dir/gpu/gpu$i ]] || mknod "$dir/gpu/gpu$i" c 1 3
  done
  gres=" Gres=gpu:$gpus"
  echo "Name=gpu File=$dir/gpu/gpu[0-$((gpus - 1))]" >"$dir/gres.conf"
fi

# cred_expire: a job that is queued again waits until credentials of its earlier life have expired.
# config_overrides: nodes have the processors that are written here, not those of this machine.
cat >"$dir/slurm.conf" <<CONF
ClusterName=zipper
SlurmctldHost=$host($controller)
SlurmctldPort=${ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge/socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd.%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=10
SlurmctldTimeout=10
MessageTimeout=10
TCPTimeout=2
KillWait=20
UnkillableStepTimeout=25
JobRequeue=1
MailProg=/bin/true
CONF
for ((i = 0; i < nodes; i++)); do
  if [[ -n $prefix ]]; then
    where="NodeHostname=node$i NodeAddr=$network.$((10 + i))"
  else
    where="NodeHostname=$host NodeAddr=127.0.0.1"
  fi
  echo "NodeName=node$i $where Port=${ports[i + 1]} CPUs=8 RealMemory=16000$gres State=UNKNOWN"
done >>"$dir/slurm.conf"
cat >>"$dir/slurm.conf" <<CONF
PartitionName=main Nodes=node[0-$((nodes - 1))] Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=60 State=UP
PartitionName=urgent Nodes=node[0-$((nodes - 1))] MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF State=UP
CONF
echo "export SLURM_CONF=$dir/slurm.conf" >"$dir/env.sh"
export SLURM_CONF=$dir/slurm.conf

failed() {
  echo "error: Slurm did not start; the ends of its logs:" >&2
  tail -n 5 "$dir"/munge/log "$dir"/log/*.log >&2 || true
  "$here/stop-slurm.sh" "$dir" || true
  exit 1
}
trap failed ERR

if [[ ! -s $dir/munge/key ]]; then
  (umask 077 && head -c 128 /dev/urandom >"$dir/munge/key")
fi
munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munge/pid" \
  --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" 2>/dev/null
slurmctld -c -f "$SLURM_CONF"
for ((i = 0; i < nodes; i++)); do
  if [[ -n $prefix ]]; then
    # shellcheck disable=SC2016 # for the inner shell
    nsenter "--net=/run/netns/$prefix$i" unshare --uts \
      sh -c 'hostname "$1" && exec slurmd -N "$1" -f "$SLURM_CONF"' sh "node$i"
  else
    slurmd -N "node$i" -f "$SLURM_CONF"
  fi
done
for _ in {1..300}; do
  if [[ $(sinfo -h -N -p main -t idle -o %N 2>/dev/null | wc -l) -eq $nodes ]]; then
    echo "Slurm: $nodes nodes (. $dir/env.sh)"
    exit 0
  fi
  sleep 0.1
done
failed
