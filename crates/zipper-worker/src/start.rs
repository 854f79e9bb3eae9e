//! What `training.start_from` names, read from a run's storage or from files.

use anyhow::Context;
use tokio::runtime::Handle;
use zipper_checkpoint::{RunStore, layout};
use zipper_cli::UserError;
use zipper_config::RunConfig;
use zipper_train::start::Start;
use zipper_train::state::{SHARED_PART, read_part};
use zipper_types::{Stage, Step};

use crate::checkpoint::Parts;
use crate::model::user_error_if_config;

/// What the run begins with; nothing if it begins with values from its seed.
///
/// # Errors
/// The user's to mend if it is not there, or is not the result of stage 1 of such a model.
pub(crate) fn read(config: &RunConfig, runtime: &Handle) -> anyhow::Result<Option<Start>> {
    let Some(start) = &config.training.start_from else {
        return Ok(None);
    };
    let start = match (&start.run, start.step, &start.peft) {
        (Some(url), Some(step), _) => of_run(config, url, Step(step), runtime)?,
        (_, _, Some(folder)) => {
            Start::of_peft(config, folder, start.projector.as_deref()).map_err(user_error_if_config)?
        }
        _ => anyhow::bail!("`training.start_from` names neither a run's step nor a PEFT adapter"),
    };
    Ok(Some(start))
}

fn of_run(config: &RunConfig, url: &str, step: Step, runtime: &Handle) -> anyhow::Result<Start> {
    let unusable = |problem: String| UserError::new(format!("`training.start_from`: run `{url}`: {problem}"));
    let store = RunStore::open(url).map_err(|error| unusable(error.to_string()))?;
    let text = runtime
        .block_on(store.get(layout::RUN_CONFIG))
        .map_err(|error| unusable(error.to_string()))?;
    let text = std::str::from_utf8(&text).context("run.yaml is not UTF-8")?;
    let other = zipper_config::from_str(text, layout::RUN_CONFIG, &[])
        .map_err(|error| unusable(error.to_string()))?;
    let manifest = runtime
        .block_on(store.checkpoints().load_manifest(step))
        .map_err(|error| unusable(error.to_string()))?;
    if manifest.stage != Stage::Align {
        return Err(unusable(format!(
            "its checkpoint of step {step} is of stage `{}`: give one of stage `{}`",
            manifest.stage.name(),
            Stage::Align.name()
        ))
        .into());
    }
    let parts = Parts::new(runtime.clone(), store.checkpoints(), manifest);
    let shared = read_part(SHARED_PART, |names| parts.read(names))?;
    let source = format!("{url}, step {step}");
    Start::of_checkpoint(config, &source, &shared, &other).map_err(user_error_if_config)
}
