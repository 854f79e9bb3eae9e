//! What a run holds while it goes on, its processes' memory, files and threads and the store's objects, and whether that grows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use procfs::process::Process;
use serde::Serialize;
use zipper_checkpoint::RunStore;

use super::LiveRun;

const MIB: f64 = (1 << 20) as f64;
/// Fewer samples than this show no growth.
const ENOUGH: usize = 12;
/// By how much memory may differ between two thirds of the time: a share of it,
const SHARE_OF_MEMORY: f64 = 0.05;
/// and MiB.
const MEMORY: f64 = 2.0;
/// The same of files, threads, and objects.
const COUNT: f64 = 3.0;
/// Where retention decides what stays. Other folders keep what happened: an entry for each event, a file of metrics now and then.
const RETAINED: &str = "checkpoints";

/// What one process holds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Held {
    /// Which process it is: another one with the same role has another.
    pub pid: i32,
    /// Resident memory that is not of files (MiB).
    pub memory: f64,
    /// Open files, sockets among them.
    pub files: usize,
    /// Threads.
    pub threads: u64,
}

impl Held {
    /// Nothing if the process has ended.
    fn by(pid: i32) -> Option<Self> {
        let process = Process::new(pid).ok()?;
        let status = process.status().ok()?;
        Some(Self {
            pid,
            memory: status.rssanon? as f64 * 1024.0 / MIB,
            files: process.fd_count().ok()?,
            threads: status.threads,
        })
    }
}

/// What a run holds at a moment.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// Seconds since the first step.
    pub at: f64,
    /// By role: `launcher`, `coordinator`, `agent 0`, `worker 0`, ...
    pub processes: BTreeMap<String, Held>,
    /// Objects by the folder of the run that they are in.
    pub objects: BTreeMap<String, usize>,
    /// Size of all of them (MiB).
    pub stored: f64,
}

impl Sample {
    /// # Errors
    /// If the store does not answer.
    pub(super) async fn take(at: f64, run: &LiveRun, nodes: u32, store: &RunStore) -> Result<Self, String> {
        let mut roles = vec![
            ("launcher".to_owned(), Some(run.launcher())),
            ("coordinator".to_owned(), run.coordinator()),
        ];
        for node in 0..nodes {
            roles.push((format!("agent {node}"), run.agent(node)));
            roles.push((format!("worker {node}"), run.worker(node)));
        }
        let held = roles
            .into_iter()
            .filter_map(|(role, pid)| Some((role, Held::by(pid?)?)));
        let stored = store
            .list_with_sizes("")
            .await
            .map_err(|error| error.to_string())?;
        let mut objects = BTreeMap::new();
        for object in &stored {
            if let Some((folder, _)) = object.path.split_once('/') {
                *objects.entry(folder.to_owned()).or_default() += 1;
            }
        }
        Ok(Self {
            at,
            processes: held.collect(),
            objects,
            stored: stored.iter().map(|object| object.bytes as f64).sum::<f64>() / MIB,
        })
    }
}

/// Something that was counted all the time: medians of the three thirds of it.
#[derive(Debug, Clone, Serialize)]
pub struct Course {
    /// Whose, and what.
    pub of: String,
    /// The median of each third.
    pub thirds: [f64; 3],
    /// The last third is clearly more than the one before.
    pub grows: bool,
}

/// The course of everything that was there all the time. The first third is for what is filled once; growth is between the others.
pub(super) fn courses(samples: &[Sample]) -> Vec<Course> {
    let Some(first) = samples.first().filter(|_| samples.len() >= ENOUGH) else {
        return Vec::new();
    };
    let mut courses = Vec::new();
    let mut add = |of: String, values: Vec<f64>, share: f64, more: f64| {
        let third = values.len().div_ceil(3);
        let mut thirds = values.chunks(third).map(median);
        let thirds: [f64; 3] = std::array::from_fn(|_| thirds.next().expect("at least twelve values"));
        let grows = thirds[2] > thirds[1] * (1.0 + share) + more;
        courses.push(Course { of, thirds, grows });
    };
    for (role, held) in &first.processes {
        let all: Option<Vec<Held>> = samples
            .iter()
            .map(|sample| sample.processes.get(role).copied())
            .map(|other| other.filter(|other| other.pid == held.pid))
            .collect();
        let Some(all) = all else { continue };
        let values = |value: fn(&Held) -> f64| all.iter().map(value).collect::<Vec<f64>>();
        add(
            format!("{role}: memory (MiB)"),
            values(|held| held.memory),
            SHARE_OF_MEMORY,
            MEMORY,
        );
        add(
            format!("{role}: files"),
            values(|held| held.files as f64),
            0.0,
            COUNT,
        );
        add(
            format!("{role}: threads"),
            values(|held| held.threads as f64),
            0.0,
            COUNT,
        );
    }
    let folders: BTreeSet<&String> = samples.iter().flat_map(|sample| sample.objects.keys()).collect();
    for folder in folders {
        let objects = |sample: &Sample| sample.objects.get(folder).copied().unwrap_or_default() as f64;
        let more = if folder == RETAINED { COUNT } else { f64::INFINITY };
        add(
            format!("store: objects in `{folder}`"),
            samples.iter().map(objects).collect(),
            0.0,
            more,
        );
    }
    courses
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// As a table for documentation.
pub(super) fn markdown(courses: &[Course]) -> String {
    let mut table = "| what | first third | second | last | |\n| --- | --- | --- | --- | --- |\n".to_owned();
    for Course { of, thirds, grows } in courses {
        let verdict = if *grows { "GROWS" } else { "" };
        let [first, second, last] = thirds;
        writeln!(
            table,
            "| {of} | {first:.1} | {second:.1} | {last:.1} | {verdict} |"
        )
        .expect("a string takes everything");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(minute: usize, pid: i32, memory: f64, files: usize, objects: usize) -> Sample {
        let held = Held {
            pid,
            memory,
            files,
            threads: 4,
        };
        Sample {
            at: minute as f64 * 60.0,
            processes: BTreeMap::from([("worker 0".to_owned(), held)]),
            objects: BTreeMap::from([(RETAINED.to_owned(), objects), ("journal".to_owned(), 2 * minute)]),
            stored: 1.0,
        }
    }

    fn growing(samples: &[Sample]) -> Vec<String> {
        let courses = courses(samples);
        let growing = courses.into_iter().filter(|course| course.grows);
        growing.map(|course| course.of).collect()
    }

    /// Goal: a leak of each kind is named, and what is filled once or goes up and down is none.
    #[test]
    fn leaks_are_told_from_noise() {
        let of = |sample: fn(usize) -> Sample| (0..30).map(sample).collect::<Vec<_>>();
        let steady = of(|minute| sample(minute, 7, 50.0 + (minute % 3) as f64, 20 + minute % 2, 40));
        assert!(growing(&steady).is_empty());
        let filled = of(|minute| sample(minute, 7, (minute as f64 * 20.0).min(160.0), minute.min(9), 40));
        assert!(growing(&filled).is_empty());
        let memory = of(|minute| sample(minute, 7, 50.0 + minute as f64, 20, 40));
        assert_eq!(growing(&memory), ["worker 0: memory (MiB)"]);
        let files = of(|minute| sample(minute, 7, 50.0, 20 + minute, 40));
        assert_eq!(growing(&files), ["worker 0: files"]);
        let objects = of(|minute| sample(minute, 7, 50.0, 20, 40 + minute));
        assert_eq!(growing(&objects), ["store: objects in `checkpoints`"]);
        let too_few = &memory[..ENOUGH - 1];
        assert!(courses(too_few).is_empty());
    }

    /// Goal: a process that took another one's place is not compared with it.
    #[test]
    fn only_a_process_that_was_there_all_the_time_is_judged() {
        let replaced: Vec<_> = (0..30)
            .map(|minute| sample(minute, if minute < 15 { 7 } else { 8 }, minute as f64, 20, 40))
            .collect();
        let judged: Vec<String> = courses(&replaced).into_iter().map(|course| course.of).collect();
        assert!(judged.iter().all(|of| of.starts_with("store: ")), "{judged:?}");
    }

    /// Goal: what the system says of this very process is plausible.
    #[test]
    fn a_process_holds_what_it_opened() {
        let pid = std::process::id() as i32;
        let before = Held::by(pid).expect("this process is there");
        let files: Vec<_> = (0..50).map(|_| tempfile::tempfile().expect("a file")).collect();
        let memory = vec![1u8; 64 << 20];
        let after = Held::by(pid).expect("this process is there");
        assert!(after.files >= before.files + files.len());
        assert!(
            after.memory > before.memory + 60.0,
            "{before:?} {after:?} {}",
            memory.len()
        );
        assert!(Held::by(i32::MAX).is_none());
    }
}
