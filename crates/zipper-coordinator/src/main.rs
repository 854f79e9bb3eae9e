//! `zipper-coordinator`: the one process of a run that decides; `zipper-launch` starts it.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::Parser;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use zipper_checkpoint::lease::{Holder, Lease, LeaseOptions};
use zipper_checkpoint::{RunStore, StoreOptions, layout};
use zipper_cli::{ExitStatus, UserError, finish, hostname, init_tracing, unusable, when_parent_is_gone};
use zipper_config::RunConfig;
use zipper_coordinator::clock::Clock;
use zipper_coordinator::server::{Job, serve};
use zipper_coordinator::state::{Crew, Event};
use zipper_coordinator::watching::Page;
use zipper_tls::Credentials;

/// How long a coordinator stays whose launcher is gone, to give the run back: even if the store does not answer.
const ABANDONED: Duration = Duration::from_secs(8);

/// Coordinates the workers of one run. zipper-launch starts it; when its stdin closes it stops the run.
///
/// It prints one line of JSON with its address, its claim on the run and the address of the status page,
/// `{"address":"127.0.0.1:41234","epoch":1,"page":"127.0.0.1:41235"}`, and exits as the run ends: 0 done, 1 failed, 2 configuration error
/// or another coordinator has the run, 75 stopped and resumable.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Run URL; run.yaml must be there.
    #[arg(long)]
    run: String,
    /// Fewest workers that train.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    min_workers: u32,
    /// Most workers that train; more are spares.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    max_workers: u32,
    /// Nodes that may have agents, those of spares included.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    nodes: u32,
    /// Workers of each node.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    workers_per_node: u32,
    /// Bytes of memory that a bank takes on a worker that owns it: needed if `runtime.bank_memory_mib` is set.
    #[arg(long)]
    bank_bytes: Option<u64>,
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Address of the status page instead of `watching.listen`: the one that the coordinator before had, so that open pages come back.
    #[arg(long)]
    page: Option<SocketAddr>,
    /// File with the token of the status page, which it needs outside loopback.
    #[arg(long)]
    page_token: Option<PathBuf>,
    /// Take over from the coordinator that had this claim and is known to be dead, with its workers.
    #[arg(long)]
    supersede: Option<u64>,
    /// Changes to the run's configuration that hold for this launch.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    overrides: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitStatus {
    let arguments = Arguments::parse();
    init_tracing("info");
    finish(run(arguments).await)
}

async fn run(arguments: Arguments) -> anyhow::Result<ExitStatus> {
    let store = RunStore::open(&arguments.run).map_err(unusable)?;
    let config = store.get(layout::RUN_CONFIG).await.map_err(unusable)?;
    let config = std::str::from_utf8(&config).context("run.yaml is not UTF-8")?;
    let config = zipper_config::from_str(config, layout::RUN_CONFIG, &arguments.overrides)
        .map_err(|error| UserError::new(error.to_string()))?;
    if config.runtime.bank_memory_mib.is_some() && arguments.bank_bytes.is_none() {
        return Err(UserError::new("`runtime.bank_memory_mib` needs `--bank-bytes`").into());
    }
    zipper_cli::describe_process(store.url(), "zipper-coordinator", &[]);
    let credentials = Credentials::of_this_process()?;
    let listener = TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("cannot listen on {}", arguments.listen))?;
    let address = listener.local_addr().context("the listener has no address")?;
    let lease = claim(&arguments.run, &config, address, arguments.supersede).await?;
    let (page, page_address) = listen_for_page(&arguments, &config).await.unzip();
    let line = serde_json::json!({
        "address": address.to_string(),
        "epoch": lease.epoch(),
        "page": page_address.map(|address| address.to_string()),
    });
    writeln!(std::io::stdout(), "{line}").context("stdout is closed")?;

    let job = Job {
        store,
        config,
        crew: Crew {
            min_workers: arguments.min_workers,
            max_workers: arguments.max_workers,
            nodes: arguments.nodes,
            workers_per_node: arguments.workers_per_node,
        },
        bank_bytes: arguments.bank_bytes,
        lease,
        adopt: arguments.supersede.is_some(),
        clock: Clock::system(),
    };
    serve(listener, &credentials, page, job, stop_requests()?).await
}

/// The status page, and its address; nothing if there is to be none, or it cannot be served: that is no reason not to train.
async fn listen_for_page(arguments: &Arguments, config: &RunConfig) -> Option<(Page, SocketAddr)> {
    if !config.watching.page {
        return None;
    }
    let token = arguments.page_token.as_ref();
    let token = token.and_then(|path| {
        let read = std::fs::read_to_string(path);
        read.inspect_err(|error| tracing::warn!("cannot read `{}`: {error}", path.display()))
            .ok()
    });
    let address = arguments.page.unwrap_or(config.watching.listen);
    match Page::listen(address, token.as_deref()).await {
        Ok(listening) => Some(listening),
        Err(problem) => {
            tracing::warn!("{problem}; the run goes on without it");
            None
        }
    }
}

/// Makes this coordinator the only one of the run.
async fn claim(
    run: &str,
    config: &RunConfig,
    address: SocketAddr,
    supersede: Option<u64>,
) -> anyhow::Result<Lease> {
    let holder = Holder {
        host: hostname(),
        pid: std::process::id(),
        since: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        address: format!("https://{address}"),
    };
    let options = LeaseOptions {
        ttl: config.elastic.lease_ttl,
    };
    // No request for the lease takes longer than the right that it is about.
    let patience = StoreOptions {
        retry_timeout: config.elastic.lease_ttl / 3,
        request_timeout: config.elastic.lease_ttl / 3,
        ..StoreOptions::default()
    };
    let store = RunStore::open_with(run, &patience).map_err(unusable)?;
    let acquired = Lease::acquire(&store, holder, options, supersede).await;
    match acquired.map_err(unusable)? {
        Ok(lease) => Ok(lease),
        Err(refused) => Err(UserError::new(refused.to_string())
            .hint("stop that run first, or wait for its end: two launches cannot share a run")
            .into()),
    }
}

/// What asks this process to stop the run: its launcher's end, or a signal.
fn stop_requests() -> anyhow::Result<mpsc::Receiver<Event>> {
    let (stop, stopped) = mpsc::channel(1);
    let gone = stop.clone();
    when_parent_is_gone(move || {
        // The run may be over already.
        let _ = gone.blocking_send(Event::Abandoned);
        std::thread::sleep(ABANDONED);
        let _ = kill(Pid::this(), Signal::SIGKILL);
    });
    for (kind, name) in [
        (SignalKind::terminate(), "SIGTERM"),
        (SignalKind::interrupt(), "SIGINT"),
        (SignalKind::user_defined1(), "SIGUSR1"),
    ] {
        let mut signals = signal(kind).with_context(|| format!("{name} cannot be handled"))?;
        let stop = stop.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                let reason = format!("{name} to zipper-coordinator");
                let _ = stop.send(Event::StopRequested { reason }).await;
            }
        });
    }
    Ok(stopped)
}
