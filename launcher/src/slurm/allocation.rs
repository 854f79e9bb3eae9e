//! What Slurm gave this process: nodes, GPUs, CPUs, addresses.

use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::process::Command;
use zipper_cli::UserError;

use crate::devices::{NodeRange, count};
use crate::route::own_address_towards;

/// How long Slurm's controller may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_mins(1);
/// Any port: nothing is sent there.
const DISCARD: u16 = 9;

/// The allocation that this process runs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Allocation {
    pub(crate) job: String,
    pub(crate) nodes: u32,
    /// The same number on each node; 0: none, or Slurm does not know of them.
    pub(crate) gpus_per_node: u32,
    /// The fewest CPUs of a node.
    pub(crate) cpus_per_node: usize,
    /// As Slurm writes it: `node[0-3]`.
    node_list: String,
}

impl Allocation {
    /// The allocation of this process; nothing outside Slurm.
    ///
    /// # Errors
    /// If it is of a kind that no run can be made in, or Slurm does not answer.
    pub(crate) async fn find() -> anyhow::Result<Option<Self>> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let Some(job) = job(variable)? else {
            return Ok(None);
        };
        let said = scontrol(&["show", "job", "--details", "--oneliner", &job]).await?;
        Ok(Some(Self::parse(&job, &said)?))
    }

    /// Has Slurm, and the script of the job, not queue it again when it ends.
    ///
    /// # Errors
    /// If Slurm's controller refuses or does not answer.
    pub(crate) async fn stay_ended(&self) -> anyhow::Result<()> {
        scontrol(&["update", &format!("JobId={}", self.job), "Requeue=0"]).await?;
        Ok(())
    }

    /// Reads what `scontrol show job --details --oneliner` says.
    fn parse(job: &str, said: &str) -> anyhow::Result<Self> {
        let field = |name: &str| {
            let mut words = said.split_whitespace();
            words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        let nodes = field("NumNodes").and_then(|number| number.split('-').next()?.parse().ok());
        let (Some(nodes), Some(node_list)) = (nodes, field("NodeList")) else {
            bail!(
                "`scontrol show job {job}` says nothing about its nodes: {}",
                said.trim()
            );
        };
        let groups = groups(said);
        let gpus: Vec<u32> = groups.iter().map(|group| group.gpus).collect();
        if gpus.iter().any(|&count| count != gpus[0]) {
            let error = UserError::new(format!(
                "the nodes of Slurm job {job} have different numbers of GPUs: {}",
                groups
                    .iter()
                    .map(|group| format!("{} on {}", group.gpus, group.nodes))
                    .collect::<Vec<_>>()
                    .join(", ")
            ));
            return Err(error
                .hint("ask for the same on each with `--gpus-per-node N`")
                .into());
        }
        Ok(Self {
            job: job.to_owned(),
            nodes,
            gpus_per_node: gpus.first().copied().unwrap_or(0),
            cpus_per_node: groups.iter().map(|group| group.cpus).min().unwrap_or(1).max(1),
            node_list: node_list.to_owned(),
        })
    }

    /// The nodes that train, where `spare` more stand by: all of them, or as many as were asked for.
    ///
    /// # Errors
    /// If that is not what Slurm gave: a run never has another size than it was asked to have.
    pub(crate) fn training_nodes(
        &self,
        asked: Option<NodeRange>,
        spare: u32,
    ) -> Result<NodeRange, UserError> {
        let job = &self.job;
        let and_spares = match spare {
            0 => String::new(),
            spare => format!(" and {spare} for spare workers"),
        };
        let there = self.nodes.checked_sub(spare).filter(|&nodes| nodes > 0);
        let Some(there) = there else {
            let error = UserError::new(format!(
                "Slurm job {job} has {} ({}), and {spare} are needed for spare workers alone",
                count(self.nodes, "node"),
                self.node_list
            ));
            return Err(error.hint("ask Slurm for more nodes, or for fewer `--spares`"));
        };
        match asked {
            None => Ok(NodeRange::exactly(there)),
            Some(range) if (range.min..=range.max).contains(&there) => Ok(NodeRange {
                min: range.min,
                max: there,
            }),
            Some(range) => {
                let asked = if range.min == range.max {
                    count(range.max, "node")
                } else {
                    format!("{} to {}", range.min, count(range.max, "node"))
                };
                let error = UserError::new(format!(
                    "the run was asked to have {asked}{and_spares}, but Slurm job {job} has {} ({})",
                    count(self.nodes, "node"),
                    self.node_list
                ));
                Err(error
                    .hint("leave `--nodes` out to take what Slurm gives, or ask Slurm for the same number")
                    .hint("`--local` ignores the allocation: all nodes are then groups of processes on this machine"))
            }
        }
    }

    /// The address of this machine that all nodes of the allocation reach.
    ///
    /// # Errors
    /// If Slurm's address of a node leads nowhere from here.
    pub(crate) async fn own_address(&self) -> anyhow::Result<IpAddr> {
        let said = scontrol(&["show", "node", "--oneliner", &self.node_list]).await?;
        // The last one: this process is on the first, or on none.
        let last = said.lines().rev().find(|line| line.starts_with("NodeName="));
        let word = |name: &str| {
            let mut words = last.unwrap_or_default().split_whitespace();
            words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        let (Some(node), Some(address)) = (word("NodeName"), word("NodeAddr")) else {
            bail!(
                "`scontrol show node {}` names no address: {}",
                self.node_list,
                said.trim()
            );
        };
        own_address_towards(address, DISCARD).map_err(|error| {
            UserError::new(format!(
                "there is no way from here to `{address}`, which is Slurm's address of {node}: {error}"
            ))
            .hint("name the address of this machine that the nodes reach: `--listen ADDRESS`")
            .into()
        })
    }
}

/// The job of this process, by Slurm's variables.
fn job(variable: impl Fn(&str) -> Option<String>) -> Result<Option<String>, UserError> {
    let Some(job) = variable("SLURM_JOB_ID") else {
        return Ok(None);
    };
    if let Some(task) = variable("SLURM_ARRAY_TASK_ID") {
        let error = UserError::new(format!(
            "Slurm job {job} is task {task} of a job array: all of its tasks would make the same run"
        ));
        return Err(error.hint("submit one job for each run: `zipper-launch submit`"));
    }
    if let Some(parts) = variable("SLURM_HET_SIZE") {
        let error = UserError::new(format!(
            "Slurm job {job} is heterogeneous ({parts} components), and the nodes of a run must be alike"
        ));
        return Err(error.hint("submit a job of one component: `zipper-launch submit`"));
    }
    let tasks = variable("SLURM_STEP_NUM_TASKS").and_then(|tasks| tasks.parse::<u32>().ok());
    if let Some(tasks) = tasks.filter(|&tasks| tasks > 1) {
        let error = UserError::new(format!(
            "srun has started zipper-launch {tasks} times: each would begin the same run"
        ));
        return Err(
            error.hint("call it once, without srun: it starts what it needs on the other nodes itself")
        );
    }
    Ok(Some(job))
}

/// Nodes of one kind.
#[derive(Debug, Default, PartialEq, Eq)]
struct Group<'a> {
    nodes: &'a str,
    cpus: usize,
    gpus: u32,
}

/// `Nodes=node[0-1] CPU_IDs=0-7 Mem=0 GRES=gpu:h100:2(IDX:0-1)`, as often as there are kinds.
fn groups(said: &str) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for word in said.split_whitespace() {
        let Some((name, value)) = word.split_once('=') else {
            continue;
        };
        match (name, groups.last_mut()) {
            ("Nodes", _) => groups.push(Group {
                nodes: value,
                ..Group::default()
            }),
            ("CPU_IDs", Some(group)) => group.cpus = count_ids(value),
            ("GRES", Some(group)) => group.gpus = count_gpus(value),
            _ => {}
        }
    }
    groups
}

/// How many `0-3,8` are.
fn count_ids(ids: &str) -> usize {
    let number = |text: &str| text.parse::<usize>().ok();
    let ranges = ids.split(',').filter_map(|range| match range.split_once('-') {
        Some((first, last)) => Some(number(last)?.checked_sub(number(first)?)? + 1),
        None => number(range).map(|_| 1),
    });
    ranges.sum()
}

/// The GPUs of `gpu:a100:2(IDX:0,3),gpu:1(IDX:1),nic:1`.
fn count_gpus(gres: &str) -> u32 {
    let mut depth = 0;
    // Commas inside parentheses part indices, not resources.
    let resources = gres.split(|c: char| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    });
    let counts = resources.filter_map(|resource| {
        let name = resource.split('(').next()?;
        let count = name.strip_prefix("gpu:")?.rsplit(':').next()?;
        count.parse::<u32>().ok()
    });
    counts.sum()
}

/// What `scontrol` says.
async fn scontrol(arguments: &[&str]) -> anyhow::Result<String> {
    let asked = Command::new("scontrol")
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(ASK_TIMEOUT, asked).await;
    let output = output.with_context(|| format!("zipper-launch waited {ASK_TIMEOUT:?} for `scontrol`"))?;
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            let error = UserError::new(format!(
                "SLURM_JOB_ID is set, but `scontrol` cannot be started: {error}"
            ));
            return Err(error
                .hint("inside a container: call zipper-launch outside of it; `cluster.container` runs the workers in one")
                .hint("`--local` ignores the allocation")
                .into());
        }
    };
    if !output.status.success() {
        bail!(
            "`scontrol {}` failed ({}): {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "JobId=2 JobName=a JobState=RUNNING NodeList=node[0-3] BatchHost=node0 NumNodes=4 NumCPUs=10 \
        JOB_GRES=gpu:8 Nodes=node[0-2] CPU_IDs=0-1,4 Mem=0 GRES=gpu:2(IDX:0,3) Nodes=node3 CPU_IDs=0-7 Mem=0 \
        GRES=gpu:a100:1(IDX:0),gpu:h100:1(IDX:1) MinCPUsNode=1 Command=/tmp/a.sh";

    fn allocation(nodes: u32) -> Allocation {
        Allocation {
            job: "7".to_owned(),
            nodes,
            gpus_per_node: 0,
            cpus_per_node: 1,
            node_list: format!("node[0-{}]", nodes - 1),
        }
    }

    #[test]
    fn slurms_words_become_nodes_gpus_and_cpus() {
        let found = Allocation::parse("2", SAID).expect("it is whole");
        let expected = Allocation {
            job: "2".to_owned(),
            nodes: 4,
            gpus_per_node: 2,
            cpus_per_node: 3,
            node_list: "node[0-3]".to_owned(),
        };
        assert_eq!(found, expected);
        let without = SAID.replace("GRES=gpu:2(IDX:0,3)", "GRES=");
        let error = Allocation::parse("2", &without).expect_err("the nodes differ");
        assert!(
            error.to_string().contains("0 on node[0-2], 2 on node3"),
            "{error}"
        );
        let error = Allocation::parse("2", "slurm_load_jobs error\n").expect_err("it tells of no job");
        assert_eq!(
            error.to_string(),
            "`scontrol show job 2` says nothing about its nodes: slurm_load_jobs error"
        );
    }

    /// Goal: what was asked for and what Slurm gave agree, or there is no run.
    #[test]
    fn another_number_of_nodes_than_asked_for_is_refused() {
        let range = |min, max| Some(NodeRange { min, max });
        for (there, asked, spare, expected) in [
            (4, None, 0, Ok((4, 4))),
            (4, None, 1, Ok((3, 3))),
            (4, range(4, 4), 0, Ok((4, 4))),
            (3, range(2, 4), 0, Ok((2, 3))),
            (4, range(2, 3), 1, Ok((2, 3))),
            (
                2,
                range(4, 4),
                0,
                Err("asked to have 4 nodes, but Slurm job 7 has 2 nodes (node[0-1])"),
            ),
            (
                5,
                range(2, 4),
                0,
                Err("asked to have 2 to 4 nodes, but Slurm job 7 has 5 nodes"),
            ),
            (4, range(4, 4), 1, Err("4 nodes and 1 for spare workers, but")),
            (1, None, 1, Err("1 are needed for spare workers alone")),
        ] {
            match (allocation(there).training_nodes(asked, spare), expected) {
                (Ok(found), Ok(expected)) => assert_eq!((found.min, found.max), expected),
                (Err(found), Err(words)) => assert!(found.to_string().contains(words), "{found}"),
                (found, expected) => panic!("{found:?} instead of {expected:?}"),
            }
        }
    }

    #[test]
    fn arrays_heterogeneous_jobs_and_repeated_launches_are_refused() {
        let with = |pairs: &[(&str, &str)]| {
            let pairs = pairs.to_vec();
            job(move |name| {
                let mut pairs = pairs.iter();
                pairs
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(with(&[]).expect("outside Slurm"), None);
        let single = [("SLURM_JOB_ID", "7"), ("SLURM_STEP_NUM_TASKS", "1")];
        assert_eq!(with(&single).expect("one task"), Some("7".to_owned()));
        for (variable, value, words) in [
            ("SLURM_ARRAY_TASK_ID", "3", "task 3 of a job array"),
            ("SLURM_HET_SIZE", "2", "heterogeneous (2 components)"),
            ("SLURM_STEP_NUM_TASKS", "4", "started zipper-launch 4 times"),
        ] {
            let error = with(&[("SLURM_JOB_ID", "7"), (variable, value)]).expect_err("it is refused");
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
