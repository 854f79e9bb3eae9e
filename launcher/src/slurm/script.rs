//! The batch script of a job, as text.

use std::time::Duration;

use zipper_config::schema::ClusterConfig;

use crate::devices::NodeRange;

/// What a script is made from.
pub(crate) struct Script<'a> {
    pub(crate) name: &'a str,
    /// Nodes that Slurm is asked for, those of spares included.
    pub(crate) nodes: NodeRange,
    /// Whether the run goes on without a node that is lost.
    pub(crate) outlives_nodes: bool,
    pub(crate) cluster: &'a ClusterConfig,
    /// Where the script's own output goes.
    pub(crate) output: String,
    /// The command of the run, without `--resume`.
    pub(crate) command: Vec<String>,
    /// The value of `--resume` in the job's first life.
    pub(crate) resume: &'a str,
}

impl Script<'_> {
    /// The lines for sbatch.
    fn options(&self) -> Vec<String> {
        let cluster = self.cluster;
        let NodeRange { min, max } = self.nodes;
        let given = |name: &str, value: Option<&dyn ToString>| {
            value.map(|value| format!("--{name}={}", value.to_string()))
        };
        let fixed = |option: &str| Some(option.to_owned());
        let nodes = if min == max {
            format!("--nodes={max}")
        } else {
            format!("--nodes={min}-{max}")
        };
        let options = [
            Some(format!("--job-name={}", self.name)),
            // Without a number of tasks: with one on each node Slurm gives a range its minimum.
            Some(nodes),
            given(
                "gpus-per-node",
                cluster.gpus_per_node.as_ref().map(|value| value as _),
            ),
            given(
                "cpus-per-task",
                cluster.cpus_per_node.as_ref().map(|value| value as _),
            ),
            given("partition", cluster.partition.as_ref().map(|value| value as _)),
            given("account", cluster.account.as_ref().map(|value| value as _)),
            given("qos", cluster.qos.as_ref().map(|value| value as _)),
            given("constraint", cluster.constraint.as_ref().map(|value| value as _)),
            cluster.time.map(|time| format!("--time={}", minutes(time))),
            // To the script alone, which passes it on: libraries in other processes may use the signal themselves.
            Some(format!("--signal=B:USR1@{}", cluster.stop_before.as_secs())),
            fixed("--requeue"),
            self.outlives_nodes.then(|| "--no-kill".to_owned()),
            fixed("--open-mode=append"),
            Some(format!("--output={}", self.output)),
            fixed("--export=ALL"),
        ];
        let options = options.into_iter().flatten();
        options.chain(cluster.sbatch.iter().cloned()).collect()
    }

    /// The whole script.
    pub(crate) fn render(&self) -> String {
        let options = self.options();
        let options = options
            .iter()
            .flat_map(|option| ["#SBATCH ".to_owned(), quoted_if_needed(option), "\n".to_owned()]);
        let options: String = options.collect();
        let command: Vec<String> = self.command.iter().map(|word| quoted_if_needed(word)).collect();
        let template = include_str!("job.sh");
        template
            .replace("#SBATCH\n", &options)
            .replace("@MAX_REQUEUES@", &self.cluster.max_requeues.to_string())
            .replace("@RESUME@", self.resume)
            .replace("@COMMAND@", &command.join(" "))
    }
}

/// Slurm's `days-hours:minutes:seconds`.
fn minutes(time: Duration) -> String {
    let minutes = time.as_secs() / 60;
    format!(
        "{}-{:02}:{:02}:00",
        minutes / 1440,
        minutes / 60 % 24,
        minutes % 60
    )
}

/// A word that a shell, and sbatch reading its lines, take as it is.
fn quoted_if_needed(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,@%+[]".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(cluster: &ClusterConfig, nodes: NodeRange) -> String {
        let script = Script {
            name: "tiny",
            nodes,
            outlives_nodes: nodes.min < nodes.max,
            cluster,
            output: "/logs/slurm-%j.log".to_owned(),
            command: ["/opt/zipper-launch", "--run", "s3://b/r", "--set", "name='it''s'"]
                .map(ToOwned::to_owned)
                .to_vec(),
            resume: "auto",
        };
        script.render()
    }

    #[test]
    fn what_is_left_out_is_slurms_to_choose() {
        let text = render(&ClusterConfig::default(), NodeRange::exactly(4));
        let options: Vec<&str> = text.lines().filter(|line| line.starts_with("#SBATCH")).collect();
        assert_eq!(
            options,
            [
                "#SBATCH --job-name=tiny",
                "#SBATCH --nodes=4",
                "#SBATCH --signal=B:USR1@180",
                "#SBATCH --requeue",
                "#SBATCH --open-mode=append",
                "#SBATCH --output=/logs/slurm-%j.log",
                "#SBATCH --export=ALL",
            ]
        );
        assert!(
            text.starts_with("#!/bin/bash\n#SBATCH"),
            "Slurm reads options before the first command"
        );
        assert!(
            !text.contains("@MAX") && !text.contains("@RES") && !text.contains("@COM"),
            "{text}"
        );
    }

    #[test]
    fn what_is_given_is_asked_for_and_words_stay_words() {
        let cluster = ClusterConfig {
            partition: Some("gpu".to_owned()),
            account: Some("asr".to_owned()),
            qos: Some("high".to_owned()),
            time: Some(Duration::from_mins(26 * 60 + 5)),
            gpus_per_node: Some(8),
            cpus_per_node: Some(64),
            constraint: Some("h100&nvlink".to_owned()),
            sbatch: vec!["--exclusive".to_owned(), "--comment=a b".to_owned()],
            ..ClusterConfig::default()
        };
        let text = render(&cluster, NodeRange { min: 2, max: 4 });
        for line in [
            "#SBATCH --nodes=2-4",
            "#SBATCH --gpus-per-node=8",
            "#SBATCH --cpus-per-task=64",
            "#SBATCH --partition=gpu",
            "#SBATCH --account=asr",
            "#SBATCH --qos=high",
            "#SBATCH '--constraint=h100&nvlink'",
            "#SBATCH --time=1-02:05:00",
            "#SBATCH --no-kill",
            "#SBATCH --exclusive",
            "#SBATCH '--comment=a b'",
        ] {
            assert!(text.lines().any(|found| found == line), "no `{line}` in:\n{text}");
        }
        assert!(
            text.contains(r"/opt/zipper-launch --run s3://b/r --set 'name='\''it'\'''\''s'\''' --resume"),
            "{text}"
        );
    }

    /// Goal: a job queues itself again only if its run stopped or failed for want of nodes, Slurm meant nothing else with it, and
    /// the budget allows it.
    /// Method: the script itself, with programs of the same names that note what they are asked.
    #[test]
    fn a_job_is_queued_again_within_its_budget() {
        let folder = tempfile::tempdir().unwrap();
        let program = |name: &str, lines: &str| {
            use std::os::unix::fs::PermissionsExt;
            let path = folder.path().join(name);
            std::fs::write(&path, format!("#!/bin/bash\n{lines}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path.display().to_string()
        };
        program(
            "scontrol",
            r#"[[ $1 == show ]] && echo "JobId=7 JobState=$STATE NumNodes=$NODES NumCPUs=8" || echo "asked: $*""#,
        );
        let cluster = ClusterConfig {
            max_requeues: 3,
            ..ClusterConfig::default()
        };
        let script = Script {
            name: "tiny",
            nodes: NodeRange::exactly(1),
            outlives_nodes: false,
            cluster: &cluster,
            output: "log".to_owned(),
            command: vec![program("run", r#"echo "resumes: $2"; exit "$CODE""#)],
            resume: "never",
        };
        let job = program("job", &script.render());
        let path = std::env::var("PATH").unwrap_or_default();
        for (requeues, code, state, nodes, expected) in [
            ("0", "75", "RUNNING", "3", (75, "never", true)),
            ("2", "75", "RUNNING", "3", (75, "auto", true)),
            ("3", "75", "RUNNING", "3", (75, "auto", false)),
            ("4", "0", "RUNNING", "3", (75, "", false)),
            ("0", "75", "COMPLETING", "3", (75, "never", false)),
            ("0", "0", "RUNNING", "3", (0, "never", false)),
            ("1", "1", "RUNNING", "3", (1, "auto", false)),
            ("1", "1", "RUNNING", "1", (1, "auto", true)),
            ("3", "1", "RUNNING", "1", (1, "auto", false)),
            ("1", "2", "RUNNING", "1", (2, "auto", false)),
        ] {
            let output = std::process::Command::new(&job)
                .env("PATH", format!("{}:{path}", folder.path().display()))
                .env("SLURM_RESTART_COUNT", requeues)
                .env("SLURM_JOB_ID", "7")
                .env("SLURM_JOB_NODELIST", "node[0-2]")
                .env("SLURM_JOB_NUM_NODES", "3")
                .env("CODE", code)
                .env("STATE", state)
                .env("NODES", nodes)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            let resumes = said.lines().find_map(|line| line.strip_prefix("resumes: "));
            let requeued = said.lines().any(|line| line == "asked: requeue 7");
            let found = (
                output.status.code().unwrap_or(-1),
                resumes.unwrap_or_default(),
                requeued,
            );
            assert_eq!(found, expected, "{requeues} {code} {state} {nodes}:\n{said}");
        }
    }
}
