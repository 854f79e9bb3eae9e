//! The main job: check, start, watch, end.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tokio::sync::mpsc;
use tonic::transport::Channel;
use zipper_checkpoint::RunStore;
use zipper_cli::ExitStatus;
use zipper_proto::v1;
use zipper_proto::v1::run_service_client::RunServiceClient;
use zipper_proto::v1::watch_response::Event;
use zipper_score::{RESULT_TABLE, ResultTable};

use crate::devices::NodeRange;
use crate::display::Display;
use crate::preflight::{self, Prepared};
use crate::processes::{Place, Processes};
use crate::signals::{GivenUp, Signals, attend};
use crate::slurm::Allocation;
use crate::slurm::submit::absolute;
use crate::stop;
use crate::table;

/// How long processes may take to end after the verdict.
const FAREWELL: Duration = Duration::from_secs(20);
/// The same if the run failed: workers give up on each other within 10 s, and one that is stopped never ends by itself.
const FAREWELL_AFTER_FAILURE: Duration = Duration::from_secs(13);

#[derive(Debug, clap::Args)]
#[group(skip)]
pub(crate) struct Arguments {
    /// Nodes of the run, `4` or `MIN:MAX`. Inside a Slurm allocation they are its nodes, and left out all of them; elsewhere each
    /// is a group of processes on this machine, and left out there is one. With a range the run goes on with fewer nodes when
    /// some are lost, and takes them in again when they come back.
    #[arg(long, value_name = "N|MIN:MAX")]
    pub(crate) nodes: Option<NodeRange>,
    /// Inside a Slurm allocation, too: nodes are groups of processes on this machine.
    #[arg(long)]
    pub(crate) local: bool,
    /// Workers more than needed, with their models loaded, that take the place of lost ones at once.
    #[arg(long, default_value_t = 0)]
    pub(crate) spares: u32,
    /// Workers (ranks) on each node. Left out: one for each GPU that Slurm or `CUDA_VISIBLE_DEVICES` shows, one where there is
    /// none.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) workers_per_node: Option<u32>,
    /// What sums gradients: `nccl` between GPUs, one for each worker; `gloo` over TCP, where workers share a GPU or use the CPU;
    /// `auto` takes NCCL where it can. Short for `--set runtime.backend=..`.
    #[arg(long, value_enum)]
    pub(crate) backend: Option<BackendName>,
    /// The run's YAML file. Left out: the configuration of the run that `--run` names.
    #[arg(long, required_unless_present = "run")]
    pub(crate) config: Option<PathBuf>,
    /// Where the run is kept: a folder, `file:///dir` or `s3://bucket/prefix`. Left out: `./runs/<name>`.
    #[arg(long)]
    pub(crate) run: Option<String>,
    /// What to do if the run is there already: go on from its newest checkpoint, refuse, or refuse to begin anew.
    #[arg(long, value_enum, default_value_t = Resume::Auto)]
    pub(crate) resume: Resume,
    /// Change a key of the file: `training.align.lr=1e-3`. Can be given several times.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// Do not look whether store, disk, memory and limits will do before anything is started.
    #[arg(long)]
    pub(crate) no_preflight: bool,
    /// Print the result as one JSON document on stdout.
    #[arg(long)]
    pub(crate) json: bool,
    /// Address of this machine that all nodes reach. Left out: that of `cluster.interface`, in a Slurm allocation that on the way
    /// to its nodes, elsewhere 127.0.0.1.
    #[arg(long)]
    pub(crate) listen: Option<IpAddr>,
    /// Words before the command of each node's agent; `{node}` is its number.
    #[arg(long, hide = true)]
    pub(crate) node_command: Option<String>,
}

/// Values of `runtime.backend`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum BackendName {
    Auto,
    Gloo,
    Nccl,
}

impl Arguments {
    /// The command that makes this run from elsewhere, with these changes of the configuration and without `--resume`.
    ///
    /// # Errors
    /// If a path in it is not UTF-8.
    pub(crate) fn command(
        &self,
        program: &Path,
        run: &str,
        changes: &[String],
    ) -> anyhow::Result<Vec<String>> {
        let mut command = vec![absolute(program)?];
        let mut add = |name: &str, value: String| command.extend([name.to_owned(), value]);
        if let Some(NodeRange { min, max }) = self.nodes {
            add("--nodes", format!("{min}:{max}"));
        }
        if self.spares > 0 {
            add("--spares", self.spares.to_string());
        }
        if let Some(workers) = self.workers_per_node {
            add("--workers-per-node", workers.to_string());
        }
        if let Some(config) = &self.config {
            add("--config", absolute(config)?);
        }
        add("--run", run.to_owned());
        for change in changes {
            add("--set", change.clone());
        }
        if let Some(listen) = self.listen {
            add("--listen", listen.to_string());
        }
        command.extend(self.no_preflight.then(|| "--no-preflight".to_owned()));
        command.extend(self.json.then(|| "--json".to_owned()));
        Ok(command)
    }

    /// All changes to keys of the file.
    pub(crate) fn all_overrides(&self) -> Vec<String> {
        let backend = self.backend.map(|backend| match backend {
            BackendName::Auto => "runtime.backend=auto",
            BackendName::Gloo => "runtime.backend=gloo",
            BackendName::Nccl => "runtime.backend=nccl",
        });
        let backend = backend.map(ToOwned::to_owned);
        self.overrides.iter().cloned().chain(backend).collect()
    }
}

/// What to do with a run that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Resume {
    /// Go on from the newest checkpoint if there is one, else begin.
    Auto,
    /// Begin; refuse if the run exists.
    Never,
    /// Go on; refuse if there is no checkpoint.
    Require,
}

impl Resume {
    /// As it is typed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Never => "never",
            Self::Require => "require",
        }
    }
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<ExitStatus> {
    let mut signals = Signals::new()?;
    let starting = async {
        let allocation = if arguments.local {
            None
        } else {
            Allocation::find().await?
        };
        let prepared = preflight::prepare(&arguments, allocation.as_ref()).await?;
        let place = Place::new(&arguments, &prepared.config.cluster, allocation.as_ref()).await?;
        let processes = Processes::start(&prepared, place).await?;
        anyhow::Ok((prepared, processes, allocation))
    };
    let (prepared, processes, allocation) = tokio::select! {
        started = starting => started?,
        signal = signals.next() => {
            let reason = format!("{} to zipper-launch", signal.name());
            eprintln!("Stopped ({reason}) before the run went on.");
            if arguments.json {
                let ended = Ended::unsaid(v1::verdict::Outcome::Stopped, reason);
                print(&document(known_url(&arguments).as_deref(), &ended, None).to_string())?;
            }
            return Ok(ExitStatus::Stopped);
        }
    };
    let ended = match watch(&prepared, processes, &mut signals).await {
        Ok(ended) => ended,
        Err(error) => {
            if arguments.json {
                let ended = Ended::by_error(&error);
                print(&document(Some(prepared.store.url()), &ended, None).to_string())?;
            }
            return Err(error);
        }
    };
    if let Some(allocation) = allocation
        && ended.verdict.outcome() == v1::verdict::Outcome::Stopped
        && stop::was_asked_for(&prepared.store).await?
        && let Err(error) = allocation.stay_ended().await
    {
        eprintln!("warning: Slurm may queue this job again: {error:#}");
    }
    let done = ended.verdict.outcome() == v1::verdict::Outcome::Done;
    if arguments.json {
        let results = if done {
            Some(results(&prepared.store).await?)
        } else {
            None
        };
        print(&document(Some(prepared.store.url()), &ended, results).to_string())?;
    } else if done {
        let table: ResultTable =
            serde_json::from_value(results(&prepared.store).await?).context(RESULT_TABLE)?;
        print(&table::render(&table))?;
    }
    Ok(end(&prepared, &ended.verdict))
}

/// How a run ended.
struct Ended {
    verdict: v1::Verdict,
    /// Where its time went, if its coordinator said so.
    summary: Option<v1::Summary>,
}

impl Ended {
    /// Not by a verdict of the coordinator.
    fn unsaid(outcome: v1::verdict::Outcome, reason: String) -> Self {
        Self {
            verdict: v1::Verdict {
                outcome: outcome.into(),
                reason,
            },
            summary: None,
        }
    }

    /// By an error that zipper-launch will end with.
    fn by_error(error: &anyhow::Error) -> Self {
        // It is printed at the very end.
        let outcome = match zipper_cli::report(error, &mut std::io::sink()) {
            ExitStatus::Usage => v1::verdict::Outcome::Config,
            _ => v1::verdict::Outcome::Failed,
        };
        Self::unsaid(outcome, zipper_cli::in_words(error.as_ref()))
    }
}

/// Shows the run until its verdict, passing signals on, keeps its processes going, and sees them off.
async fn watch(
    prepared: &Prepared,
    mut processes: Processes,
    signals: &mut Signals,
) -> anyhow::Result<Ended> {
    zipper_cli::describe_process(prepared.store.url(), "zipper-launch", &[]);
    let client = RunServiceClient::new(processes.channel()?);
    let (lines, shown) = mpsc::unbounded_channel();
    let display = Display::new(&prepared.config);
    if let Some(page) = processes.page().announcement(std::io::stderr().is_terminal()) {
        display.line(&page);
    }
    let grace = prepared.config.runtime.grace;
    // Dropping the processes ends them.
    let ended = tokio::select! {
        ended = follow(&mut processes, client.clone(), display, shown) => ended?,
        given_up = attend(signals, &client, grace, &lines) => match given_up {
            GivenUp::Interrupted => return Ok(Ended::unsaid(
                v1::verdict::Outcome::Failed,
                "ended by a second Ctrl-C: what was done since the last checkpoint is lost".to_owned(),
            )),
            GivenUp::Overdue(reason) => return Ok(Ended::unsaid(
                v1::verdict::Outcome::Stopped,
                format!("{reason}; the coordinator did not end the run within the grace time"),
            )),
        },
    };
    let patience = match ended.verdict.outcome() {
        v1::verdict::Outcome::Done | v1::verdict::Outcome::Stopped => FAREWELL,
        _ => FAREWELL_AFTER_FAILURE,
    };
    tokio::select! {
        () = processes.wait(patience) => {}
        _ = signals.next() => {}
    }
    Ok(ended)
}

/// Shows what happens until the verdict, and keeps the processes going.
async fn follow(
    processes: &mut Processes,
    mut client: RunServiceClient<Channel>,
    mut display: Display,
    mut lines: mpsc::UnboundedReceiver<String>,
) -> anyhow::Result<Ended> {
    let mut summary = None;
    let mut seen = v1::WatchRequest::default();
    loop {
        if seen.epoch != processes.epoch() {
            seen = v1::WatchRequest {
                epoch: processes.epoch(),
                seen: 0,
            };
        }
        let mut events = match client.watch(seen).await {
            Ok(events) => events.into_inner(),
            Err(status) => {
                tracing::debug!("the run cannot be watched: {status}");
                processes.mend_coordinator(&display).await?;
                continue;
            }
        };
        loop {
            let event = tokio::select! {
                event = events.message() => event,
                Some(line) = lines.recv() => {
                    display.line(&line);
                    continue;
                }
                tended = processes.tend_agents(&display) => {
                    tended?;
                    continue;
                }
            };
            seen.seen += u64::from(matches!(event, Ok(Some(_))));
            match event.ok().flatten().and_then(|response| response.event) {
                Some(Event::Verdict(verdict)) => {
                    display.finish();
                    return Ok(Ended { verdict, summary });
                }
                Some(event) => {
                    display.show(&event);
                    if let Event::Summary(told) = event {
                        summary = Some(told);
                    }
                }
                // The coordinator has ended, or the connection.
                None => break,
            }
        }
        processes.mend_coordinator(&display).await?;
    }
}

async fn results(store: &RunStore) -> anyhow::Result<serde_json::Value> {
    let bytes = store
        .get(RESULT_TABLE)
        .await
        .context("the run has no table of results")?;
    serde_json::from_slice(&bytes).context(RESULT_TABLE)
}

/// The URL of the run, if it is told by the arguments, or a configuration that can be used.
fn known_url(arguments: &Arguments) -> Option<String> {
    let config = arguments.config.as_deref();
    let config = config.and_then(|file| zipper_config::load(file, &arguments.all_overrides()).ok());
    let url = preflight::run_url(arguments, config.as_ref()).ok()?;
    Some(RunStore::open(&url).ok()?.url().to_owned())
}

/// What `--json` prints; `run` is null where not even that is known.
fn document(url: Option<&str>, ended: &Ended, results: Option<serde_json::Value>) -> serde_json::Value {
    let mut document = serde_json::json!({"outcome": word(ended.verdict.outcome()), "run": url});
    if let Some(results) = results {
        document["results"] = results;
    } else {
        document["reason"] = ended.verdict.reason.clone().into();
    }
    if let Some(summary) = &ended.summary {
        let seconds = |duration| zipper_proto::duration(duration).unwrap_or_default().as_secs_f64();
        let (total, productive) = (seconds(summary.total), seconds(summary.productive));
        let lost = summary.lost.iter();
        let lost: BTreeMap<&String, f64> = lost.map(|(cause, &time)| (cause, seconds(Some(time)))).collect();
        document["summary"] = serde_json::json!({
            "total_seconds": total,
            "productive_seconds": productive,
            "effective_training_time": productive / total.max(f64::MIN_POSITIVE),
            "lost_seconds": lost,
            "losses": summary.losses,
            "repeated_steps": summary.repeated_steps,
        });
    }
    document
}

fn end(prepared: &Prepared, verdict: &v1::Verdict) -> ExitStatus {
    let url = prepared.store.url();
    match verdict.outcome() {
        v1::verdict::Outcome::Done => {
            eprintln!("Done. Checkpoints, metrics and transcripts: {url}");
            ExitStatus::Done
        }
        v1::verdict::Outcome::Stopped => {
            eprintln!(
                "Stopped ({}). The same command with `--resume auto` goes on: {url}",
                verdict.reason
            );
            ExitStatus::Stopped
        }
        v1::verdict::Outcome::Config => {
            eprintln!("error: {}", verdict.reason);
            ExitStatus::Usage
        }
        v1::verdict::Outcome::Failed | v1::verdict::Outcome::Unspecified => {
            eprintln!(
                "error: {}\n\nhint: the logs of all processes are in `{}`",
                verdict.reason,
                prepared.logs.display()
            );
            eprintln!("hint: `--resume auto` goes on from the newest checkpoint");
            ExitStatus::Failed
        }
    }
}

fn word(outcome: v1::verdict::Outcome) -> &'static str {
    match outcome {
        v1::verdict::Outcome::Done => "done",
        v1::verdict::Outcome::Stopped => "stopped",
        v1::verdict::Outcome::Config => "config",
        v1::verdict::Outcome::Failed | v1::verdict::Outcome::Unspecified => "failed",
    }
}

/// Prints a document on stdout.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout().lock(), "{text}").context("stdout is closed")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: whoever scripts against `--json` gets one document of the same shape however a run ends.
    #[test]
    fn the_document_says_how_it_ended_and_where_time_went() {
        let url = "s3://bucket/runs/a";
        let seconds = |seconds| zipper_proto::wire_duration(Duration::from_secs(seconds));
        let summary = v1::Summary {
            total: Some(seconds(200)),
            productive: Some(seconds(190)),
            lost: [("recovering".to_owned(), seconds(10))].into(),
            losses: 2,
            repeated_steps: 9,
        };
        let ended = |outcome: v1::verdict::Outcome, summary| Ended {
            verdict: v1::Verdict {
                outcome: outcome.into(),
                reason: "because".to_owned(),
            },
            summary,
        };
        let done = ended(v1::verdict::Outcome::Done, Some(summary));
        assert_eq!(
            document(Some(url), &done, Some(serde_json::json!({"sets": []}))),
            serde_json::json!({
                "outcome": "done", "run": url, "results": {"sets": []},
                "summary": {
                    "total_seconds": 200.0, "productive_seconds": 190.0, "effective_training_time": 0.95,
                    "lost_seconds": {"recovering": 10.0}, "losses": 2, "repeated_steps": 9,
                },
            })
        );
        let failed = ended(v1::verdict::Outcome::Failed, None);
        assert_eq!(
            document(Some(url), &failed, None),
            serde_json::json!({"outcome": "failed", "run": url, "reason": "because"})
        );
    }

    #[test]
    fn an_end_without_a_verdict_has_the_outcome_of_its_exit_code() {
        let stopped = Ended::unsaid(v1::verdict::Outcome::Stopped, "because".to_owned());
        assert_eq!(
            document(None, &stopped, None),
            serde_json::json!({"outcome": "stopped", "run": null, "reason": "because"})
        );
        let of = |error: anyhow::Error| document(None, &Ended::by_error(&error), None);
        assert_eq!(
            of(anyhow::anyhow!("no room").context("the disk")),
            serde_json::json!({"outcome": "failed", "run": null, "reason": "the disk: no room"})
        );
        assert_eq!(
            of(zipper_cli::UserError::new("no such key").into()),
            serde_json::json!({"outcome": "config", "run": null, "reason": "no such key"})
        );
    }
}
