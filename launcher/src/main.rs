//! `zipper-launch`: what people type. Checks a run's input, starts its processes, shows how it goes.
//!
//! Reading order: `run` (the main job), `preflight` (everything that can be refused before anything starts), `resume` and `data` (what a
//! run that is there goes on with), `signals`, `devices` (how many workers, on which GPUs), `plan` (who would hold what), `processes`,
//! `restarts` and `credentials` (coordinator and node agents, and what they know each other by), `agent` (one node's workers), `cores`
//! (which of the machine's each has), `slurm` and `node` (the same in an allocation, and `submit`), `container`, `route`, `doctor` (what
//! would go wrong), `display`, `page` and `table` (what people see), `logs`, `checkpoints`, `status`, `stop`, `inspect` (what the router
//! learnt), `sweep` (many runs side by side), `import` (corpora as manifests).

mod agent;
mod checkpoints;
mod container;
mod cores;
mod credentials;
mod data;
mod devices;
mod display;
mod doctor;
mod import;
mod inspect;
mod logs;
mod node;
mod page;
mod plan;
mod preflight;
mod processes;
mod restarts;
mod resume;
mod route;
mod run;
mod signals;
mod slurm;
mod status;
mod stop;
mod sweep;
mod table;

use std::io::Write;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use tokio::runtime::Runtime;
use zipper_cli::{About, ExitStatus, finish, init_tracing_as};

/// Train Zipper-LoRA adapters for multilingual speech recognition on many workers, from one YAML file.
///
/// Examples:
///   zipper-launch --nodes 2 --config configs/quickstart.yaml
///   zipper-launch --nodes 2 --workers-per-node 4 --config run.yaml --run file:///data/runs/a --resume auto
///   zipper-launch --nodes 2:4 --spares 1 --config run.yaml --run s3://bucket/runs/a
///   zipper-launch --nodes 2 --run s3://bucket/runs/a --resume require
///   zipper-launch --nodes 1 --workers-per-node 2 --backend gloo --config run.yaml
///   zipper-launch --nodes 1 --config run.yaml --set training.align.lr=1e-3 --set adapter.variant=hard
///   zipper-launch plan --nodes 4 --config run.yaml
///   zipper-launch checkpoints --run file:///data/runs/a --verify
///   zipper-launch submit --nodes 4 --gpus-per-node 8 --time 4h --config run.yaml --run s3://bucket/runs/a
///   zipper-launch doctor --config run.yaml --nodes 4 --run s3://bucket/runs/a
///   zipper-launch logs --run s3://bucket/runs/a --follow
///   zipper-launch status --run s3://bucket/runs/a
///   zipper-launch stop --run s3://bucket/runs/a
///   zipper-launch sweep --config configs/compare.yaml -- --nodes 2
///
/// Ctrl-C, SIGTERM and SIGUSR1 stop the run at the next step with a checkpoint (exit code 75); the same command goes on from
/// there. A second Ctrl-C ends it at once. Exit codes:
/// 0 done, 1 the run failed, 2 usage or configuration error, 75 stopped so that it can be resumed.
#[derive(Debug, Parser)]
#[command(
    version,
    verbatim_doc_comment,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: run::Arguments,
    /// How all processes of the run log: `text` for people, `json` with one document on each line for collectors.
    #[arg(long, global = true, value_enum, env = zipper_cli::LOG_FORMAT)]
    log_format: Option<LogFormat>,
}

/// Values of `--log-format`.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl From<LogFormat> for zipper_cli::LogFormat {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Text => Self::Text,
            LogFormat::Json => Self::Json,
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show who would hold and do what, and what it costs in memory and traffic; start nothing.
    ///
    /// Reads the configuration, the manifests and the headers of the model files. With `--run`, times are those that the
    /// steps of that run took.
    ///
    /// Examples:
    ///   zipper-launch plan --config configs/quickstart.yaml --nodes 4
    ///   zipper-launch plan --config run.yaml --nodes 8 --workers-per-node 8 --run file:///data/runs/a --json
    #[command(verbatim_doc_comment)]
    Plan(plan::Arguments),
    /// List the checkpoints of a run, and verify them.
    ///
    /// Examples:
    ///   zipper-launch checkpoints --run file:///data/runs/a
    ///   zipper-launch checkpoints --run s3://bucket/runs/a --verify --json
    #[command(verbatim_doc_comment)]
    Checkpoints(checkpoints::Arguments),
    /// Make the run as a Slurm job, which stops with a checkpoint before its time limit, queues itself again and goes on.
    ///
    /// Takes what zipper-launch takes. What Slurm is asked for is in the section `cluster` of the configuration, and in these
    /// flags. Prints the number of the job; with `--json` a document with `job`, `run`, `output` (the file that the job writes) and
    /// `script`; with `--print --json` one with `script` alone.
    ///
    /// Examples:
    ///   zipper-launch submit --nodes 4 --config run.yaml --run s3://bucket/runs/a --partition gpu --gpus-per-node 8 --time 4h
    ///   zipper-launch submit --nodes 2:4 --spares 8 --config run.yaml --run s3://bucket/runs/a --print
    #[command(verbatim_doc_comment)]
    Submit(Box<slurm::submit::Arguments>),
    /// Find what is wrong with this machine, and with the store, before a run does; start nothing.
    ///
    /// Looks at the programs, libtorch, GPUs, Slurm, limits, memory, disk, and with `--run` at the store: an object is written, read
    /// and deleted there. With `--config` it says what the run takes of them. Exit code 1 if a run would fail.
    ///
    /// Examples:
    ///   zipper-launch doctor
    ///   zipper-launch doctor --config run.yaml --nodes 4 --run s3://bucket/runs/a
    #[command(verbatim_doc_comment)]
    Doctor(doctor::Arguments),
    /// Show the logs of all processes of a run as one, each line with the process that wrote it.
    ///
    /// Logs are files in the folder that zipper-launch used: `<run>/logs` where the run is a folder, else `runs/<name>/logs` below
    /// the one that it was called in. On several machines it has to be on a shared file system, or a machine shows its own.
    ///
    /// Examples:
    ///   zipper-launch logs --run file:///data/runs/a --follow
    ///   zipper-launch logs --run s3://bucket/runs/a --rank 3
    #[command(verbatim_doc_comment)]
    Logs(logs::Arguments),
    /// Show how a run stands: state, step, time left, members, checkpoints, alarms, where the time went.
    ///
    /// Reads what the run's coordinator left in the run, every ten seconds: no process of the run has to live or be reached.
    ///
    /// Examples:
    ///   zipper-launch status --run file:///data/runs/a
    ///   zipper-launch status --run s3://bucket/runs/a --json
    ///   zipper-launch status --run s3://bucket/runs/a --page 127.0.0.1:8080
    #[command(verbatim_doc_comment)]
    Status(status::Arguments),
    /// Stop a run with a checkpoint, wherever it is made, and wait for its end; the same command as before goes on from there.
    ///
    /// Leaves a note in the run, which its coordinator finds within seconds: no process of the run has to be reached. A Slurm job does
    /// not queue itself again. Exit code 0 once nobody makes the run, 1 if it has not ended in time.
    ///
    /// Examples:
    ///   zipper-launch stop --run file:///data/runs/a
    ///   zipper-launch stop --run s3://bucket/runs/a --timeout 2m --json
    #[command(verbatim_doc_comment)]
    Stop(stop::Arguments),
    /// Make the runs of a comparison, one after another, and lay their results side by side.
    ///
    /// Its file names a configuration and the keys in which runs differ (variants, Initial-B, encoder contexts, seeds). Runs that would
    /// have the same stage 1 share one. The same command goes on after anything: runs with a result are not made again. The
    /// report (Markdown, CSV, one HTML page with charts) is in `report` below the comparison's folder. Exit codes are those of runs.
    ///
    /// Examples:
    ///   zipper-launch sweep --config configs/compare.yaml --print
    ///   zipper-launch sweep --config configs/compare.yaml -- --nodes 2
    ///   zipper-launch sweep --config configs/compare.yaml --output s3://bucket/compare --submit -- --nodes 2 --time 4h
    ///   zipper-launch sweep --config configs/compare.yaml --output s3://bucket/compare --report
    #[command(verbatim_doc_comment)]
    Sweep(sweep::Arguments),
    /// Show what a run's router learnt.
    ///
    /// How much of each layer each language shares, the gates of every layer, and which languages are alike by their gates and by
    /// their banks: printed in short, and written to `inspect/<checkpoint>/` below the run as one HTML page, Markdown with SVG pictures,
    /// and CSV.
    ///
    /// Examples:
    ///   zipper-launch inspect --run ./runs/quickstart
    ///   zipper-launch inspect --run s3://bucket/runs/a --checkpoint step-00000500 --json
    #[command(verbatim_doc_comment)]
    Inspect(inspect::Arguments),
    /// Data for runs.
    #[command(subcommand)]
    Data(import::Command),
    /// Print the JSON Schema of configurations, with which editors complete keys and show what they mean.
    ///
    /// Examples:
    ///   zipper-launch schema > zipper.schema.json
    #[command(verbatim_doc_comment)]
    Schema,
    #[command(flatten)]
    About(About),
    /// Start and watch the workers of one node; zipper-launch starts this.
    #[command(hide = true)]
    Agent(agent::Arguments),
    /// Keep the agent of this node going; the Slurm step that zipper-launch starts has one of these on each node.
    #[command(hide = true)]
    Node(node::Arguments),
}

fn main() -> ExitStatus {
    let arguments = Arguments::parse();
    init_tracing_as(
        "warn,zipper_cli::progress=info",
        arguments.log_format.map(Into::into),
    );
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return finish(Err(error.into())),
    };
    let status = finish(runtime.block_on(async {
        match arguments.command {
            None => Box::pin(run::run(arguments.run)).await,
            Some(Command::Plan(arguments)) => plan::run(&arguments).await,
            Some(Command::Checkpoints(arguments)) => checkpoints::run(&arguments).await,
            Some(Command::Submit(arguments)) => slurm::submit::run(&arguments).await,
            Some(Command::Doctor(arguments)) => doctor::run(&arguments).await,
            Some(Command::Logs(arguments)) => logs::run(&arguments).await,
            Some(Command::Status(arguments)) => status::run(&arguments).await,
            Some(Command::Stop(arguments)) => stop::run(&arguments).await,
            Some(Command::Sweep(arguments)) => sweep::run(&arguments).await,
            Some(Command::Inspect(arguments)) => inspect::run(&arguments).await,
            Some(Command::Data(command)) => import::run(command).await,
            Some(Command::Schema) => print_schema(),
            Some(Command::About(about)) => about.run(Arguments::command()),
            Some(Command::Agent(arguments)) => agent::run(&arguments).await,
            Some(Command::Node(arguments)) => node::run(&arguments).await,
        }
    }));
    // A check of audio that was given up may still be at work.
    runtime.shutdown_background();
    status
}

fn print_schema() -> anyhow::Result<ExitStatus> {
    let schema = serde_json::to_string_pretty(&zipper_config::reference::run_schema())?;
    writeln!(std::io::stdout().lock(), "{schema}").context("stdout is closed")?;
    Ok(ExitStatus::Done)
}
