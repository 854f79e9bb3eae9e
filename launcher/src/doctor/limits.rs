//! The limits that the system sets to processes: open files, processes, locked memory.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::finding::Finding;
use crate::devices::Crew;

/// Files that a worker or the coordinator has open besides its connections, about.
const FILES: u64 = 64;
/// The same at the least.
const FEWEST_FILES: u64 = 24;
/// Threads of a worker besides those that compute, about.
const THREADS: u64 = 32;
/// Threads of a worker at the least.
const FEWEST_THREADS: u64 = 4;

/// Looks at what this process may do, as all that it starts.
pub(super) fn look(crew: &Crew) -> Vec<Finding> {
    let workers = u64::from(crew.all_workers());
    let mut findings = Vec::new();
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        findings.push(files(soft, hard, workers));
    }
    if let (Ok((soft, _)), Some(user)) = (getrlimit(Resource::RLIMIT_NPROC), user()) {
        let here = u64::from(crew.workers_per_machine());
        findings.extend(tasks(soft, user, here, || tasks_of(user)));
    }
    if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_MEMLOCK) {
        let infiniband =
            fs::read_dir("/sys/class/infiniband").is_ok_and(|mut entries| entries.next().is_some());
        findings.extend(locked_memory(soft, infiniband, crew.backend == "nccl"));
    }
    findings
}

/// Each worker is connected to every other one, and the coordinator to all of them.
fn files(soft: u64, hard: u64, workers: u64) -> Finding {
    let (needed, fewest) = (FILES + 3 * workers, FEWEST_FILES + workers);
    let found = format!("a process may open {soft} files (`ulimit -n`)");
    if soft >= needed {
        return Finding::fine("limits", found);
    }
    let found = format!("{found}, and one of a run with {workers} workers opens about {needed}");
    let finding = if soft < fewest {
        Finding::failure("limits", found)
    } else {
        Finding::warning("limits", found)
    };
    if hard >= needed {
        finding.fix(format!(
            "`ulimit -n {}` before zipper-launch is called",
            hard.min(needed.max(65_536))
        ))
    } else {
        finding.fix(format!(
            "raise the hard limit ({hard}) in /etc/security/limits.conf, or `LimitNOFILE` of the service"
        ))
    }
}

/// Of all processes of a user together, root excepted.
fn tasks(soft: u64, user: u32, workers: u64, in_use: impl Fn() -> u64) -> Option<Finding> {
    if soft == RLIM_INFINITY || user == 0 {
        return None;
    }
    let in_use = in_use();
    let left = soft.saturating_sub(in_use);
    let found =
        format!("{left} more processes and threads can be started (`ulimit -u` {soft}, {in_use} in use)");
    let fix = "raise `nproc` in /etc/security/limits.conf, or end processes of this user";
    Some(if left < workers * FEWEST_THREADS {
        Finding::failure("limits", format!("{found}, too few for {workers} workers")).fix(fix)
    } else if left < workers * THREADS {
        Finding::warning(
            "limits",
            format!("{found}, and {workers} workers start about {}", workers * THREADS),
        )
        .fix(fix)
    } else {
        Finding::fine("limits", found)
    })
}

fn locked_memory(soft: u64, infiniband: bool, nccl: bool) -> Option<Finding> {
    (infiniband && nccl && soft != RLIM_INFINITY).then(|| {
        let found = format!("only {soft} bytes of memory can be locked (`ulimit -l`), and NCCL locks its buffers for InfiniBand");
        Finding::warning("limits", found)
            .fix("set `memlock` to unlimited in /etc/security/limits.conf")
            .fix("under Slurm: `LimitMEMLOCK=infinity` for slurmd, and `PropagateResourceLimitsExcept=MEMLOCK`")
    })
}

fn user() -> Option<u32> {
    Some(fs::metadata("/proc/self").ok()?.uid())
}

/// How many threads the processes of a user have, as far as they can be seen.
fn tasks_of(user: u32) -> u64 {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let own = entries.filter(|entry| {
        let is_process = entry
            .file_name()
            .to_string_lossy()
            .bytes()
            .all(|byte| byte.is_ascii_digit());
        is_process && entry.metadata().is_ok_and(|metadata| metadata.uid() == user)
    });
    own.map(|entry| threads_of(&entry.path())).sum()
}

fn threads_of(process: &Path) -> u64 {
    let status = fs::read_to_string(process.join("status")).unwrap_or_default();
    let threads = status.lines().find_map(|line| line.strip_prefix("Threads:"));
    threads.and_then(|number| number.trim().parse().ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn limits_are_measured_by_the_run() {
        let level = |soft, hard, workers| files(soft, hard, workers).level;
        assert_eq!(level(1_024, 1_024, 4), Level::Ok);
        assert_eq!(level(1_024, 1_024, 512), Level::Warning);
        assert_eq!(level(1_024, 4_096, 1_024), Level::Failure);
        assert_eq!(level(25, 1_024, 4), Level::Failure);
        assert!(files(25, 1_048_576, 4).fixes[0].contains("ulimit -n 65536"));
        assert!(files(25, 30, 4).fixes[0].contains("hard limit (30)"));

        let level = |soft, workers| tasks(soft, 1000, workers, || 90).map(|finding| finding.level);
        assert_eq!(level(RLIM_INFINITY, 4), None);
        assert_eq!(level(1_000, 4), Some(Level::Ok));
        assert_eq!(level(200, 4), Some(Level::Warning));
        assert_eq!(level(100, 4), Some(Level::Failure));
        assert_eq!(tasks(100, 0, 4, || 90), None, "root has no such limit");

        assert!(locked_memory(65_536, true, true).is_some());
        assert_eq!(locked_memory(65_536, true, false), None);
        assert_eq!(locked_memory(RLIM_INFINITY, true, true), None);
    }

    #[test]
    fn own_threads_are_counted() {
        let user = user().expect("there is a /proc");
        assert!(tasks_of(user) >= 1);
        assert_eq!(threads_of(Path::new("/proc/nobody")), 1);
    }
}
