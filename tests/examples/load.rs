//! The coordinator with thousands of simulated workers, `cargo xtask load`: how long they take to come together, how fast their
//! heartbeats are answered, and what that takes. Fails if a figure is beyond its limit.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use zipper_tests::load::{Limits, Load};

#[derive(Debug, Parser)]
struct Arguments {
    /// How many workers.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    workers: u32,
    /// Workers of each node.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    workers_per_node: u32,
    /// Connections that they share.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// For how long heartbeats are measured, one of each worker a second.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Longest that the rendezvous may take, in seconds.
    #[arg(long, default_value_t = 10.0)]
    rendezvous: f64,
    /// Longest that 99 of 100 heartbeats may take, in milliseconds.
    #[arg(long, default_value_t = 100.0)]
    heartbeat_p99: f64,
    /// Most memory that the coordinator may have, in MB.
    #[arg(long, default_value_t = 500)]
    memory: u64,
    /// Where the figures go, as JSON.
    #[arg(long)]
    output: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match measure(&Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(arguments: &Arguments) -> Result<(), String> {
    let load = Load {
        workers: arguments.workers,
        workers_per_node: arguments.workers_per_node,
        connections: arguments.connections,
        interval: Duration::from_secs(1),
        lasts: Duration::from_secs(arguments.seconds),
    };
    let limits = Limits {
        rendezvous: arguments.rendezvous,
        heartbeat_p99: arguments.heartbeat_p99,
        memory: arguments.memory * 1_000_000,
    };
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let figures = load.play(folder.path()).await?;
    println!("{figures}");
    if let Some(output) = &arguments.output {
        let json = serde_json::to_string_pretty(&figures).map_err(|error| error.to_string())?;
        std::fs::write(output, json + "\n").map_err(|error| format!("{}: {error}", output.display()))?;
    }
    match figures.missed(&limits) {
        missed if missed.is_empty() => Ok(()),
        missed => Err(missed.join("; ")),
    }
}
