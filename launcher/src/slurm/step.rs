//! The steps that zipper-launch starts in an allocation.

/// The step that holds the node agents: one task on each node. Nothing of it is Slurm's to decide: lost tasks do not end the
/// others, and what the job itself may use, all of them may.
pub(crate) const AGENTS: &str = "zipper-agents";
/// The step that asks a node what it has.
pub(crate) const PROBE: &str = "zipper-probe";

/// Variables by which sbatch's arguments would shape the steps, too, though they were meant for the job: with
/// `--ntasks-per-node=8` there would be eight agents, with `--gpus-per-task=1` an agent would see one GPU.
pub(crate) const VARIABLES_OF_THE_JOB: [&str; 13] = [
    "SLURM_CPUS_PER_GPU",
    "SLURM_CPUS_PER_TASK",
    "SLURM_DISTRIBUTION",
    // `sbatch --export=NONE`: the steps need what this process hands on.
    "SLURM_EXPORT_ENV",
    "SLURM_GPUS_PER_TASK",
    "SLURM_GPU_BIND",
    "SLURM_NPROCS",
    "SLURM_NTASKS",
    "SLURM_NTASKS_PER_GPU",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_OPEN_MODE",
    "SLURM_THREADS_PER_CORE",
    "SLURM_TRES_PER_TASK",
];

/// The words before a command that run it once on each of `nodes` nodes of the allocation.
pub(crate) fn srun(name: &str, nodes: u32) -> Vec<String> {
    vec![
        "srun".to_owned(),
        format!("--job-name={name}"),
        format!("--nodes={nodes}"),
        format!("--ntasks={nodes}"),
        "--ntasks-per-node=1".to_owned(),
        // Beside other steps of the job, with all that it has.
        "--overlap".to_owned(),
        "--cpu-bind=none".to_owned(),
        "--no-kill".to_owned(),
        "--kill-on-bad-exit=0".to_owned(),
        "--wait=0".to_owned(),
    ]
}
