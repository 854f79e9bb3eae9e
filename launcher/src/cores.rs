//! Which cores each worker of a machine may use (`runtime.pin_cores`).

use std::fs;
use std::path::Path;

use anyhow::Context;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

/// A core's number, and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Cpu {
    socket: i64,
    core: i64,
    number: usize,
}

/// The cores that this process may use, those of one socket side by side, and so the threads of one core.
///
/// # Errors
/// If the system does not tell.
pub(crate) fn of_this_process() -> anyhow::Result<Vec<usize>> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("the cores of this process are not known")?;
    let mut cpus: Vec<Cpu> = (0..CpuSet::count())
        .filter(|&number| allowed.is_set(number).unwrap_or(false))
        .map(|number| {
            let place = format!("/sys/devices/system/cpu/cpu{number}/topology");
            Cpu {
                socket: number_in(&Path::new(&place).join("physical_package_id")),
                core: number_in(&Path::new(&place).join("core_id")),
                number,
            }
        })
        .collect();
    cpus.sort_unstable();
    Ok(cpus.into_iter().map(|cpu| cpu.number).collect())
}

/// 0 where the system does not say: cores are then in the order of their numbers.
fn number_in(file: &Path) -> i64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// The part of `cores` that belongs to worker `index` of `count`: as many as the others have, or one more. Workers share cores where there
/// are more of them.
pub(crate) fn share(cores: &[usize], index: usize, count: usize) -> &[usize] {
    if cores.len() < count {
        let shared = index % cores.len();
        return &cores[shared..=shared];
    }
    let begin_of = |index: usize| index * cores.len() / count;
    &cores[begin_of(index)..begin_of(index + 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_cores_evenly() {
        let cores = [0, 4, 1, 5, 2];
        let shares = |count: usize| -> Vec<&[usize]> {
            let indices = 0..count;
            indices.map(|index| share(&cores, index, count)).collect()
        };
        assert_eq!(shares(1), [&cores[..]]);
        assert_eq!(shares(2), [&[0, 4][..], &[1, 5, 2]]);
        assert_eq!(shares(7), [[0], [4], [1], [5], [2], [0], [4]]);
    }

    #[test]
    fn this_process_has_cores() {
        let cores = of_this_process().unwrap();
        assert!(!cores.is_empty());
        assert!(cores.len() <= std::thread::available_parallelism().unwrap().get());
    }
}
