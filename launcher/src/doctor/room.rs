//! Disk and memory, against what the run takes of them.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use zipper_checkpoint::RunStore;
use zipper_config::RunConfig;
use zipper_plan::Inventory;
use zipper_types::{Stage, Variant};

use super::finding::Finding;
use crate::devices::Crew;
use crate::plan::{self, bytes};
use crate::preflight::{local_folder, log_folder};

/// Room that logs and metrics take in a long run.
const LOGS: u64 = 100 << 20;
/// Checkpoints besides those that retention counts: the ends of both stages, and the one being written.
const MORE_CHECKPOINTS: u64 = 3;

/// Bytes of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Memory {
    /// That the machine has, or that this process may use of it.
    all: u64,
    /// That nobody uses.
    free: u64,
}

/// What the machine has, without knowing what for.
pub(super) fn of_machine() -> Vec<Finding> {
    let memory = memory().map(|memory| {
        let found = format!("{} of {} are free", bytes(memory.free), bytes(memory.all));
        Finding::fine("memory", found)
    });
    let here = std::env::current_dir().ok().and_then(free_disk);
    let disk = here.map(|(folder, free)| {
        let found = format!("{} are free in `{}`", bytes(free), folder.display());
        Finding::fine("disk", found)
    });
    memory.into_iter().chain(disk).collect()
}

/// Whether the run's models are there, and fit into the memory of this machine.
pub(super) fn models(config: &RunConfig, crew: &Crew) -> Option<Finding> {
    let frozen = match plan::frozen_bytes(config) {
        Ok(frozen) => frozen,
        Err(error) => return Some(Finding::failure("models", format!("{error:#}")).fixes_of(&error)),
    };
    let inventory = match plan::inventory(config, Stage::Zipper) {
        Ok(inventory) => inventory,
        Err(error) => return Some(Finding::warning("models", format!("{error:#}")).fixes_of(&error)),
    };
    if crew.has_gpus() {
        return None;
    }
    let state = state_of_worker(config, &inventory, u64::from(crew.min_workers()));
    let workers = u64::from(crew.workers_per_machine());
    Some(judge_memory(workers, frozen, state, memory()?))
}

/// Whether checkpoints and logs fit on the disks that they go to.
pub(super) fn disks(config: &RunConfig, store: &RunStore) -> Vec<Finding> {
    let mut findings = Vec::new();
    let kept = config.checkpoint.keep_last + config.checkpoint.keep_best + MORE_CHECKPOINTS;
    if let Ok(inventory) = plan::inventory(config, Stage::Zipper)
        && let Some((folder, free)) = local_folder(store).and_then(free_disk)
    {
        let checkpoint = inventory.checkpoint_bytes(config.data.languages.len() as u64);
        findings.push(judge_disk(&folder, free, checkpoint, kept));
    }
    if let Ok(logs) = log_folder(store, config)
        && let Some((folder, free)) = free_disk(logs)
        && free < LOGS
    {
        let found = format!(
            "{} are free in `{}`, where logs are written",
            bytes(free),
            folder.display()
        );
        findings.push(Finding::warning("disk", found).fix("make room"));
    }
    findings
}

/// Trained parameters on a worker that owns as many banks as any: weights, gradients, optimizer state, and what it can go back to.
fn state_of_worker(config: &RunConfig, inventory: &Inventory, workers: u64) -> u64 {
    let languages = config.data.languages.len() as u64;
    let banks = match config.adapter.variant {
        Variant::Shared => 0,
        _ => (languages.div_ceil(workers.max(1)) + 1).min(languages),
    };
    let weights = inventory.shared_bytes() + banks * inventory.bank_bytes();
    let gradients = weights;
    weights
        + gradients
        + Inventory::optimizer_bytes(weights)
        + plan::remembered_bytes(config, inventory, banks, workers)
}

fn judge_memory(workers: u64, frozen: u64, state: u64, memory: Memory) -> Finding {
    let Memory { all, free } = memory;
    let (models, needed) = (workers * frozen, workers * (frozen + state));
    let told = format!(
        "{workers} {} {} with the frozen models, {} with what is trained; activations come on top",
        if workers == 1 {
            "worker takes"
        } else {
            "workers take"
        },
        bytes(models),
        bytes(needed)
    );
    let has = format!(
        "this machine has {}, of which {} are free",
        bytes(all),
        bytes(free)
    );
    let fix = "use `model.dtype: bf16`, fewer workers on a machine, or a smaller model";
    if models > all {
        Finding::failure("memory", format!("{told}, but {has}")).fix(fix)
    } else if needed > free {
        Finding::warning("memory", format!("{told}, but {has}"))
            .fix(fix)
            .fix("end what else uses memory here")
    } else {
        Finding::fine("memory", format!("{told}; {has}"))
    }
}

fn judge_disk(folder: &Path, free: u64, checkpoint: u64, kept: u64) -> Finding {
    let told = format!(
        "a checkpoint takes {}, and `{}` has {} free",
        bytes(checkpoint),
        folder.display(),
        bytes(free)
    );
    let mut finding = if free < checkpoint {
        Finding::failure("disk", told)
    } else if free < kept * checkpoint {
        let all = bytes(kept * checkpoint);
        Finding::warning(
            "disk",
            format!("{told}; up to {kept} of them are kept, {all} together"),
        )
        .fix("keep fewer: `checkpoint.keep_last`")
    } else {
        return Finding::fine("disk", told);
    };
    finding.may_pass = true;
    finding.fix("make room, or choose another `--run`")
}

/// The folder, and the bytes that can be written to the disk that it is on or will be.
fn free_disk(folder: PathBuf) -> Option<(PathBuf, u64)> {
    let there = folder.ancestors().find(|folder| folder.exists())?;
    let disk = statvfs(there).ok()?;
    Some((folder, disk.blocks_available() * disk.fragment_size()))
}

/// What this process and those that it starts can use.
fn memory() -> Option<Memory> {
    let machine = parse_meminfo(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let groups = own_groups(&own);
    Some(groups.iter().fold(machine, |memory, group| within(memory, group)))
}

fn parse_meminfo(text: &str) -> Option<Memory> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib << 10)
    };
    Some(Memory {
        all: field("MemTotal:")?,
        free: field("MemAvailable:")?,
    })
}

/// The folders of this process's control group and those above, of version 2 and of version 1.
fn own_groups(own: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let group = own
        .lines()
        .find_map(|line| match line.splitn(3, ':').collect::<Vec<_>>()[..] {
            [_, "", path] => Some((root.to_owned(), path)),
            [_, controllers, path] if controllers.split(',').any(|name| name == "memory") => {
                Some((root.join("memory"), path))
            }
            _ => None,
        });
    let Some((root, path)) = group else {
        return Vec::new();
    };
    let group = root.join(path.trim_start_matches('/'));
    let inside = |folder: &&Path| folder.starts_with(&root);
    group
        .ancestors()
        .take_while(inside)
        .map(ToOwned::to_owned)
        .collect()
}

/// What is left of memory by the limit of a control group; one without says `max`, or a number beyond all memory.
fn within(memory: Memory, group: &Path) -> Memory {
    let number = |names: [&str; 2]| {
        let mut texts = names.iter().flat_map(|name| fs::read_to_string(group.join(name)));
        texts.next()?.trim().parse::<u64>().ok()
    };
    let Some(limit) = number(["memory.max", "memory.limit_in_bytes"]) else {
        return memory;
    };
    let used = number(["memory.current", "memory.usage_in_bytes"]).unwrap_or(0);
    // Files that are only cached can go.
    let cached = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cached = cached
        .lines()
        .find_map(|line| line.strip_prefix("inactive_file "));
    let cached = cached.and_then(|number| number.parse().ok()).unwrap_or(0);
    Memory {
        all: memory.all.min(limit),
        free: memory.free.min(limit.saturating_sub(used.saturating_sub(cached))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn only_what_cannot_fit_is_a_failure() {
        let memory = Memory {
            all: 64 * GIB,
            free: 40 * GIB,
        };
        let level = |workers, frozen, state| judge_memory(workers, frozen * GIB, state * GIB, memory).level;
        assert_eq!(level(2, 15, 1), Level::Ok);
        assert_eq!(
            level(2, 21, 1),
            Level::Warning,
            "the machine has it, but others use it"
        );
        assert_eq!(level(4, 17, 1), Level::Failure);

        let level = |free, checkpoint| judge_disk(Path::new("/data"), free, checkpoint, 7).level;
        assert_eq!(level(700, 100), Level::Ok);
        assert_eq!(level(699, 100), Level::Warning);
        assert_eq!(level(99, 100), Level::Failure);
    }

    /// Goal: a container's limit counts, and what it can give back is free.
    #[test]
    fn a_control_group_leaves_less_memory() {
        let meminfo = "MemTotal:       67108864 kB\nMemFree:  1 kB\nMemAvailable:   41943040 kB\n";
        let machine = parse_meminfo(meminfo).expect("it has both");
        assert_eq!(
            machine,
            Memory {
                all: 64 * GIB,
                free: 40 * GIB
            }
        );
        let group = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| fs::write(group.path().join(name), text).unwrap();
        assert_eq!(within(machine, group.path()), machine);
        write("memory.max", "max\n".to_owned());
        assert_eq!(within(machine, group.path()), machine);
        write("memory.max", format!("{}\n", 8 * GIB));
        write("memory.current", format!("{}\n", 5 * GIB));
        write("memory.stat", format!("anon 1\ninactive_file {}\n", 2 * GIB));
        assert_eq!(
            within(machine, group.path()),
            Memory {
                all: 8 * GIB,
                free: 5 * GIB
            }
        );

        let found = own_groups("12:cpu,memory:/a/b\n0::/\n");
        assert_eq!(
            found,
            ["a/b", "a", ""].map(|group| Path::new("/sys/fs/cgroup/memory").join(group))
        );
        assert_eq!(own_groups("0::/user.slice\n").len(), 2);
        assert!(own_groups("").is_empty());
    }
}
