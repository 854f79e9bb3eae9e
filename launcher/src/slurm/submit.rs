//! `zipper-launch submit`: the same run as a Slurm job, from a machine outside the allocation.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use zipper_checkpoint::RunStore;
use zipper_cli::{ExitStatus, UserError, unusable};
use zipper_config::RunConfig;

use super::script::Script;
use crate::container;
use crate::devices::NodeRange;
use crate::preflight;
use crate::processes::this_program;
use crate::resume::Begun;
use crate::run::{self, print};

/// Keys of `cluster` that are decided in the job, or begin so: the script has none of them.
const IN_THE_JOB: [&str; 3] = [
    "cluster.certificate_lifetime",
    "cluster.container",
    "cluster.interface",
];
/// How long sbatch may take.
const SUBMIT_TIMEOUT: Duration = Duration::from_mins(2);

#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Arguments {
    #[command(flatten)]
    run: run::Arguments,
    /// Print the batch script and hand nothing in.
    #[arg(long)]
    print: bool,
    /// Slurm partition. Short for `--set cluster.partition=..`, as all of these.
    #[arg(long, help_heading = "Slurm")]
    partition: Option<String>,
    /// Account that pays.
    #[arg(long, help_heading = "Slurm")]
    account: Option<String>,
    /// Quality of service.
    #[arg(long, help_heading = "Slurm")]
    qos: Option<String>,
    /// Time limit of one life of the job, such as `4h`: it stops before with a checkpoint, and is queued again.
    #[arg(long, help_heading = "Slurm")]
    time: Option<String>,
    /// GPUs on each node.
    #[arg(long, help_heading = "Slurm")]
    gpus_per_node: Option<u32>,
    /// CPUs on each node.
    #[arg(long, help_heading = "Slurm")]
    cpus_per_node: Option<u32>,
    /// Features that nodes must have.
    #[arg(long, help_heading = "Slurm")]
    constraint: Option<String>,
    /// One more argument for sbatch, after those of the file: `--sbatch=--exclusive`. Can be given several times.
    #[arg(
        long = "sbatch",
        value_name = "ARGUMENT",
        allow_hyphen_values = true,
        help_heading = "Slurm"
    )]
    sbatch: Vec<String>,
}

impl Arguments {
    /// The changes to the section `cluster` that the flags stand for.
    fn overrides(&self) -> Vec<String> {
        let words = [
            ("partition", &self.partition),
            ("account", &self.account),
            ("qos", &self.qos),
            ("time", &self.time),
            ("constraint", &self.constraint),
        ];
        let numbers = [
            ("gpus_per_node", self.gpus_per_node),
            ("cpus_per_node", self.cpus_per_node),
        ];
        let words = words.into_iter().filter_map(|(key, word)| {
            let word = serde_json::Value::from(word.clone()?);
            Some(format!("cluster.{key}={word}"))
        });
        let numbers = numbers
            .into_iter()
            .filter_map(|(key, number)| Some(format!("cluster.{key}={}", number?)));
        words.chain(numbers).collect()
    }
}

pub(crate) async fn run(arguments: &Arguments) -> anyhow::Result<ExitStatus> {
    let overrides = [arguments.run.all_overrides(), arguments.overrides()].concat();
    let (mut config, store) = configuration(&arguments.run, &overrides).await?;
    for argument in &arguments.sbatch {
        if !argument.starts_with('-') || argument.contains(['\n', '\r']) {
            let message =
                format!("--sbatch: `{argument}` is not an argument of sbatch such as `--exclusive`");
            return Err(UserError::new(message).into());
        }
    }
    config.cluster.sbatch.extend(arguments.sbatch.iter().cloned());
    let logs = preflight::log_folder(&store, &config)?;
    let nodes = arguments.run.nodes.unwrap_or(NodeRange::exactly(1));
    let workers_per_node = arguments.run.workers_per_node.or(config.cluster.gpus_per_node);
    let spare = arguments
        .run
        .spares
        .div_ceil(workers_per_node.unwrap_or(1).max(1));
    let this = this_program()?;
    let script = Script {
        name: &config.name,
        nodes: NodeRange {
            min: nodes.min + spare,
            max: nodes.max + spare,
        },
        outlives_nodes: spare > 0 || nodes.min < nodes.max,
        cluster: &config.cluster,
        output: logs.join("slurm-%j.log").display().to_string(),
        command: arguments
            .run
            .command(&this, store.url(), &for_the_run(&arguments.run))?,
        resume: arguments.run.resume.name(),
    };
    let text = script.render();
    let json = arguments.run.json;
    if arguments.print {
        if json {
            print(&serde_json::json!({"script": text}).to_string())?;
        } else {
            print(text.trim_end())?;
        }
        return Ok(ExitStatus::Done);
    }
    if let Some(container) = &config.cluster.container {
        // Nodes of a cluster have what its login nodes have, as a rule.
        if let Err(error) = container::check(container) {
            eprintln!("warning: here at least: {error}");
        }
    }
    preflight::make_log_folder(&logs)?;
    let job = sbatch(&text).await?;
    let output = logs.join(format!("slurm-{job}.log")).display().to_string();
    eprintln!("Slurm job {job}; its output: {output}");
    print(&if json {
        document(&job, store.url(), &output, &text).to_string()
    } else {
        job
    })?;
    Ok(ExitStatus::Done)
}

/// What `--json` prints of a job that was handed in.
fn document(job: &str, run: &str, output: &str, script: &str) -> serde_json::Value {
    // Slurm's are numbers; what another `sbatch` says is not lost.
    let job = job
        .parse::<u64>()
        .map_or_else(|_| job.into(), serde_json::Value::from);
    serde_json::json!({"job": job, "run": run, "output": output, "script": script})
}

/// The changes of the configuration that the job's own zipper-launch is given: what Slurm is asked for is in the script already.
fn for_the_run(arguments: &run::Arguments) -> Vec<String> {
    let in_the_job = |change: &String| IN_THE_JOB.iter().any(|key| change.starts_with(key));
    let mut changes = arguments.all_overrides();
    changes.retain(|change| !change.starts_with("cluster.") || in_the_job(change));
    changes
}

/// The configuration of the run: that of the file, or that of a run that was begun before.
async fn configuration(
    arguments: &run::Arguments,
    overrides: &[String],
) -> anyhow::Result<(RunConfig, RunStore)> {
    let given = arguments.config.as_deref();
    let given = given
        .map(|file| preflight::read_config(file, overrides))
        .transpose()?;
    let url = preflight::run_url(arguments, given.as_ref())?;
    let store = RunStore::open(&url).map_err(unusable)?;
    let config = match given {
        Some(config) => config,
        None => match Begun::find(&store, arguments.resume).await? {
            Some(begun) => begun.changed(overrides)?,
            None => return Err(preflight::no_run(&store).into()),
        },
    };
    Ok((config, store))
}

/// Hands a script in; the number of the job.
async fn sbatch(script: &str) -> anyhow::Result<String> {
    let child = Command::new("sbatch")
        .arg("--parsable")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = child.map_err(|error| {
        UserError::new(format!("`sbatch` cannot be started: {error}")).hint(
            "call `zipper-launch submit` where jobs are submitted, or look at the script with `--print`",
        )
    })?;
    let mut input = child.stdin.take().context("sbatch has no stdin")?;
    let handing_in = async {
        // What sbatch says matters more than that it stopped reading.
        let _ = input.write_all(script.as_bytes()).await;
        drop(input);
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(SUBMIT_TIMEOUT, handing_in).await;
    let output =
        output.with_context(|| format!("zipper-launch waited {SUBMIT_TIMEOUT:?} for `sbatch`"))??;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let lines = said
            .lines()
            .map(|line| line.trim_start_matches("sbatch: error: "));
        let said = lines.collect::<Vec<_>>().join("; ");
        if is_refusal(&said) {
            let error = UserError::new(format!("Slurm does not take the job: {said}"));
            return Err(error
                .hint("the section `cluster` of the configuration and the flags of `submit` say what is asked for")
                .into());
        }
        bail!("`sbatch` failed ({}): {said}", output.status);
    }
    // What clusters add of their own is for people.
    eprint!("{said}");
    // `123`, or `123;cluster`.
    let said = String::from_utf8_lossy(&output.stdout);
    let job = said.trim().split(';').next().unwrap_or_default();
    Ok(job.to_owned())
}

/// Whether Slurm answered and said no; other failures are its own.
fn is_refusal(said: &str) -> bool {
    let no = [
        "invalid",
        "unrecognized",
        "not available",
        "violates",
        "not permitted",
        "unable to open file",
    ];
    let (said, away) = (said.to_lowercase(), ["unable to contact", "authentication"]);
    no.iter().any(|word| said.contains(word)) && !away.iter().any(|word| said.contains(word))
}

/// The path as it is from everywhere.
pub(crate) fn absolute(path: &Path) -> anyhow::Result<String> {
    let path = std::path::absolute(path).with_context(|| format!("`{}`", path.display()))?;
    let text = path
        .to_str()
        .with_context(|| format!("`{}` is not UTF-8", path.display()))?;
    Ok(text.to_owned())
}
