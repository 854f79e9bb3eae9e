//! `zipper-coordinator`: the one process of a run that decides; `zipper-launch` starts it.

use std::io::Write;
use std::net::SocketAddr;

use anyhow::Context;
use clap::Parser;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use zipper_checkpoint::{RunStore, layout};
use zipper_cli::{ExitStatus, UserError, finish, init_tracing, when_parent_is_gone};
use zipper_coordinator::server::{Job, serve};
use zipper_types::{Step, WorldSize};

/// Coordinates the workers of one run. zipper-launch starts it; when its stdin closes it stops the run.
///
/// It prints one line of JSON with its address, `{"address":"127.0.0.1:41234"}`, and exits as the run ends: 0 done, 1
/// failed, 2 configuration error, 75 stopped and resumable.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Run URL; run.yaml must be there.
    #[arg(long)]
    run: String,
    /// Workers to wait for.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    world_size: u32,
    /// Completed steps to go on from. Left out: from the start.
    #[arg(long, default_value_t = 0)]
    resume_step: u64,
    /// Bytes of memory that a bank takes on a worker that owns it: needed if `runtime.bank_memory_mib` is set.
    #[arg(long)]
    bank_bytes: Option<u64>,
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
}

#[tokio::main]
async fn main() -> ExitStatus {
    let arguments = Arguments::parse();
    init_tracing("info");
    finish(run(arguments).await)
}

async fn run(arguments: Arguments) -> anyhow::Result<ExitStatus> {
    let store = RunStore::open(&arguments.run).map_err(|error| UserError::new(error.to_string()))?;
    let config = store
        .get(layout::RUN_CONFIG)
        .await
        .map_err(|error| UserError::new(error.to_string()))?;
    let config = std::str::from_utf8(&config).context("run.yaml is not UTF-8")?;
    let config = zipper_config::from_str(config, layout::RUN_CONFIG, &[])
        .map_err(|error| UserError::new(error.to_string()))?;
    if config.runtime.bank_memory_mib.is_some() && arguments.bank_bytes.is_none() {
        return Err(UserError::new("`runtime.bank_memory_mib` needs `--bank-bytes`").into());
    }
    let listener = TcpListener::bind(arguments.listen)
        .await
        .with_context(|| format!("cannot listen on {}", arguments.listen))?;
    let address = listener.local_addr().context("the listener has no address")?;
    let line = serde_json::json!({ "address": address.to_string() });
    writeln!(std::io::stdout(), "{line}").context("stdout is closed")?;

    let (stop, stopped) = oneshot::channel();
    when_parent_is_gone(|| {
        // The run may be over already.
        let _ = stop.send("zipper-launch is gone".to_owned());
    });
    let job = Job {
        store,
        config,
        world_size: WorldSize(arguments.world_size),
        resume: Step(arguments.resume_step),
        bank_bytes: arguments.bank_bytes,
    };
    serve(listener, job, stopped).await
}
