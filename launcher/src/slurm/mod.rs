//! Slurm: what an allocation has (`allocation`), the steps that run in it (`step`), and `zipper-launch submit`, which writes
//! and hands in the script of a job (`submit`, `script`).
//!
//! Nothing here decides whether a run goes well. Slurm's own view of a step is no verdict: srun ends with 0 when tasks are lost
//! with their node, and hangs when a step's daemon dies. The coordinator decides.

mod allocation;
mod script;
mod step;
pub(crate) mod submit;

pub(crate) use allocation::Allocation;
pub(crate) use step::{AGENTS, PROBE, VARIABLES_OF_THE_JOB, srun};
