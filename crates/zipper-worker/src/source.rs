//! The checkpoint of a run that a tool was pointed at.

use std::num::NonZeroUsize;

use anyhow::Context;
use tokio::runtime::Runtime;
use zipper_checkpoint::{CheckpointError, ErrorKind, Manifest, RunStore, layout};
use zipper_cli::{UserError, unusable};
use zipper_config::RunConfig;
use zipper_types::Step;

use crate::best::best;
use crate::checkpoint::Parts;

/// Which checkpoint of which run.
#[derive(Debug, clap::Args)]
pub(crate) struct Choice {
    /// Run URL: a folder, `file:///dir` or `s3://bucket/prefix`.
    #[arg(long)]
    pub(crate) run: String,
    /// Checkpoint, `step-00000500` or `500`. Left out: the newest that is whole.
    #[arg(long, value_parser = parse_checkpoint, conflicts_with = "average")]
    checkpoint: Option<Step>,
    /// Take the mean of the parameters of the N checkpoints with the lowest validation loss, of those in the stage of the newest.
    /// Usual is 3. The run must have kept them: `checkpoint.keep_best`.
    #[arg(long, value_name = "N")]
    average: Option<NonZeroUsize>,
}

fn parse_checkpoint(text: &str) -> Result<Step, String> {
    let digits = text.strip_prefix("step-").unwrap_or(text);
    digits
        .parse()
        .map(Step)
        .map_err(|_| "expected a step such as `step-00000500` or `500`".to_owned())
}

/// A run and one of its checkpoints, or the mean of several.
pub(crate) struct Source {
    pub(crate) store: RunStore,
    pub(crate) config: RunConfig,
    /// The checkpoint's; of a mean that of the best one.
    pub(crate) step: Step,
    /// Those that `parts` is the mean of, best first; or the one that it is.
    pub(crate) steps: Vec<Step>,
    pub(crate) parts: Parts,
    /// What `parts` reads by.
    runtime: Runtime,
}

impl Source {
    /// Finds the run and its checkpoint.
    ///
    /// # Errors
    /// The user's to mend if there is no such run or checkpoint.
    pub(crate) fn open(choice: &Choice) -> anyhow::Result<Self> {
        let runtime = Runtime::new().context("the async runtime cannot start")?;
        let store = RunStore::open(&choice.run).map_err(unusable)?;
        let config = match runtime.block_on(store.get(layout::RUN_CONFIG)) {
            Err(CheckpointError::NotFound { object }) => {
                let error = UserError::new(format!(
                    "`{}` is not a run: `{object}` does not exist",
                    choice.run
                ));
                return Err(error.hint("give the URL that zipper-launch printed").into());
            }
            read => read.map_err(unusable)?,
        };
        let config = String::from_utf8(config.to_vec()).context("run.yaml is not UTF-8")?;
        let config = zipper_config::from_str(&config, layout::RUN_CONFIG, &[])
            .map_err(|error| UserError::new(error.to_string()))?;
        let (manifest, others) = match choice.average {
            Some(count) => {
                let mut best = runtime.block_on(best(&store, &config, count.get()))?;
                let others = best.split_off(1);
                (best.remove(0), others)
            }
            None => (runtime.block_on(choose(&store, choice))?, Vec::new()),
        };
        let all = std::iter::once(&manifest).chain(&others);
        Ok(Self {
            step: manifest.step,
            steps: all.map(|manifest| manifest.step).collect(),
            parts: Parts::mean(runtime.handle().clone(), store.checkpoints(), manifest, others),
            store,
            config,
            runtime,
        })
    }

    /// Names of the checkpoints in [`Source::steps`].
    pub(crate) fn checkpoints(&self) -> Vec<String> {
        self.steps
            .iter()
            .map(|&step| layout::checkpoint_id(step))
            .collect()
    }

    /// An object of the run; nothing if it is not there.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) fn object(&self, path: &str) -> anyhow::Result<Option<Vec<u8>>> {
        let object = self.runtime.block_on(self.store.get_if_there(path))?;
        Ok(object.map(Vec::from))
    }
}

/// The checkpoint that was asked for, or the newest that is whole.
async fn choose(store: &RunStore, choice: &Choice) -> anyhow::Result<Manifest> {
    if let Some(step) = choice.checkpoint {
        return match store.checkpoints().load_manifest(step).await {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Damaged) => {
                let hint = "`zipper-launch checkpoints --run ..` lists what is there";
                Err(UserError::of(&error).hint(hint).into())
            }
            read => read.map_err(unusable),
        };
    }
    let latest = store.checkpoints().latest_readable().await.map_err(unusable)?;
    for (step, error) in &latest.damaged {
        tracing::warn!("checkpoint of step {step} is damaged, trying an older one: {error}");
    }
    latest
        .manifest
        .ok_or_else(|| UserError::new(format!("run `{}` has no checkpoint yet", choice.run)).into())
}
