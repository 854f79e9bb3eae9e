//! `zipper-launch plan`: what a run would look like, without starting anything.
//!
//! Reading order: this file (what is asked and read), `shapes` (the model files), `estimate` (the numbers), `render` (the
//! table).

mod estimate;
mod render;
mod shapes;

use std::path::PathBuf;

use anyhow::Context;
use zipper_checkpoint::{ErrorKind, RunStore, layout};
use zipper_cli::{ExitStatus, UserError, unusable};
use zipper_config::RunConfig;
use zipper_config::schema::{Dtype, RouterGranularity};
use zipper_plan::{AdapterShape, Inventory, MeasuredStep, transformer_layers};
use zipper_types::{Stage, Variant, WorldSize};

use crate::devices::{self, Crew, Machines, NodeRange, Wishes};
use crate::preflight;
use crate::run::print;
use estimate::Estimate;
pub(crate) use estimate::remembered_bytes;
pub(crate) use render::bytes;
use shapes::{ModelShapes, Shapes};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The run's YAML file.
    #[arg(long)]
    config: PathBuf,
    /// Nodes of the run.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    nodes: u32,
    /// Workers (ranks) on each node. Left out: as many as the run would have on this machine.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    workers_per_node: Option<u32>,
    /// A run whose steps were measured: expected times are seconds and not positions of the LLM.
    #[arg(long)]
    run: Option<String>,
    /// Change a key of the file: `adapter.variant=hard`. Can be given several times.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    overrides: Vec<String>,
    /// Print one JSON document on stdout.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: &Arguments) -> anyhow::Result<ExitStatus> {
    let config = preflight::read_config(&arguments.config, &arguments.overrides)?;
    let train = preflight::read_manifests(&config, &config.data.train)?;
    let workers = if let Some(workers) = arguments.workers_per_node {
        arguments.nodes.saturating_mul(workers)
    } else {
        let wishes = Wishes {
            nodes: NodeRange::exactly(arguments.nodes),
            spares: 0,
            workers_per_node: None,
            backend: config.runtime.backend,
            machines: Machines::One,
        };
        Crew::decide(wishes, devices::ask().await?)?.workers()
    };
    let world_size = WorldSize(workers);
    let measured = match &arguments.run {
        Some(url) => measured_steps(url).await?,
        None => Vec::new(),
    };
    let estimate = Estimate::new(&config, &train, world_size, &measured)?;
    if arguments.json {
        let document = serde_json::to_string_pretty(&estimate).context("the plan")?;
        print(&document)?;
    } else {
        print(&render::render(&estimate))?;
        if !estimate.measured {
            eprintln!(
                "hint: work is in positions of the LLM; {}",
                how_to_measure(measured.len())
            );
        }
    }
    Ok(ExitStatus::Done)
}

/// What to do for times in seconds, when a run with `steps` measured steps was not enough.
fn how_to_measure(steps: usize) -> String {
    match steps {
        0 => "`--run URL` of a run with measured steps gives seconds".to_owned(),
        _ => format!("the {steps} measured steps of that run are too few for seconds"),
    }
}

/// The trainable parameters of `stage`, counted from the shapes of the model files.
///
/// # Errors
/// If a model directory is not one.
pub(crate) fn inventory(config: &RunConfig, stage: Stage) -> anyhow::Result<Inventory> {
    let adapter = &config.adapter;
    let shapes = ModelShapes::read(&config.model, &adapter.targets, &adapter.encoder_targets)?;
    let routers = match adapter.router.granularity {
        RouterGranularity::Linear => shapes.sites.len(),
        RouterGranularity::Layer => transformer_layers(&shapes.sites).len(),
        RouterGranularity::Model => 1,
    };
    let shape = AdapterShape {
        variant: match stage {
            Stage::Align => Variant::Shared,
            Stage::Zipper => adapter.variant,
        },
        rank: adapter.rank as u64,
        shared_rank: adapter.shared_columns() as u64,
        lid_dim: adapter.router.lid_dim as u64,
        routers: routers as u64,
        languages: config.data.languages.len() as u64,
    };
    let element_bytes = match config.model.dtype {
        Dtype::F32 | Dtype::Bf16 => 4,
        Dtype::F64 => 8,
    };
    let inventory = Inventory::new(shapes.projector, &shape, &shapes.sites, element_bytes);
    Ok(match config.model.lid_head {
        Some(_) => inventory.with_lid_head(shape.languages, shapes.projector.d_encoder()),
        None => inventory,
    })
}

/// Bytes that both frozen models take on a worker, at the least.
///
/// # Errors
/// If a model directory is not one.
pub(crate) fn frozen_bytes(config: &RunConfig) -> anyhow::Result<u64> {
    let model = &config.model;
    // Whisper's decoder is not loaded; a head of the LLM may be its embeddings.
    let encoder = Shapes::read(&model.encoder.path)?
        .parameters(|name| name.contains("encoder.") && !name.contains("decoder."));
    let llm = Shapes::read(&model.llm.path)?.parameters(|name| name.starts_with("model."));
    let element_bytes = match model.dtype {
        Dtype::Bf16 => 2,
        Dtype::F32 => 4,
        Dtype::F64 => 8,
    };
    Ok((encoder + llm) * element_bytes)
}

/// The steps that a run has measured.
async fn measured_steps(url: &str) -> anyhow::Result<Vec<MeasuredStep>> {
    let store = RunStore::open(url).map_err(unusable)?;
    let bytes = match store.get(layout::TRAIN_METRICS).await {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let error = UserError::new(format!("--run: `{url}` has no {}", layout::TRAIN_METRICS));
            return Err(error.hint("name a run that has made some steps").into());
        }
        Err(error) => return Err(error.into()),
    };
    let text = String::from_utf8_lossy(&bytes);
    let steps = text.lines().filter_map(|line| serde_json::from_str(line).ok());
    Ok(steps.collect())
}
