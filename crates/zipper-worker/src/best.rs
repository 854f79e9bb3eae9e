//! The best checkpoints of a run by validation, for their mean.

use serde::Deserialize;
use zipper_checkpoint::{ErrorKind, Manifest, RunStore, layout};
use zipper_cli::{UserError, unusable};
use zipper_config::RunConfig;
use zipper_types::Step;

/// What is read of `eval/validation-step-00000500.json`.
#[derive(Deserialize)]
struct Validation {
    /// Nats per token.
    loss: Option<f64>,
}

/// The `count` whole checkpoints with the lowest validation loss in the stage of the newest one, best first. Of two that are equally
/// good the older one comes first, as it does when it is decided which are kept.
///
/// # Errors
/// The user's to mend if there are not so many.
pub(crate) async fn best(
    store: &RunStore,
    config: &RunConfig,
    count: usize,
) -> anyhow::Result<Vec<Manifest>> {
    let checkpoints = store.checkpoints();
    let list = checkpoints.list().await.map_err(unusable)?;
    for (step, error) in &list.unreadable {
        tracing::warn!("checkpoint of step {step} is damaged and left out: {error}");
    }
    let manifests = list.checkpoints.into_iter().map(|summary| summary.manifest);
    let mut manifests: Vec<Manifest> = manifests.collect();
    manifests.sort_by_key(|manifest| manifest.step);
    let Some(stage) = manifests.last().map(|newest| newest.stage) else {
        return Err(UserError::new(format!("run `{}` has no checkpoint yet", store.url())).into());
    };
    let mut measured = Vec::new();
    for manifest in manifests.into_iter().filter(|manifest| manifest.stage == stage) {
        if let Some(loss) = validation_loss(store, manifest.step).await? {
            measured.push((loss, manifest));
        }
    }
    measured.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut best = Vec::new();
    for (loss, manifest) in measured {
        if best.len() == count {
            break;
        }
        let id = layout::checkpoint_id(manifest.step);
        match checkpoints.verify(manifest.step).await {
            Ok(manifest) => {
                tracing::info!("{id} has validation loss {loss:.4}");
                best.push(manifest);
            }
            Err(error) if matches!(error.kind(), ErrorKind::Damaged | ErrorKind::NotFound) => {
                tracing::warn!("{id} is damaged and left out: {error}");
            }
            Err(error) => return Err(unusable(error)),
        }
    }
    if best.len() < count {
        let (checkpoint, evaluation) = (&config.checkpoint, &config.evaluation);
        return Err(UserError::new(format!(
            "`--average {count}` needs so many whole checkpoints of stage `{stage}` with a validation of their step; run `{}` has {}",
            store.url(),
            best.len()
        ))
        .hint(format!(
            "a run validates every `evaluation.every_steps` (here {}) and writes a checkpoint every `checkpoint.every_steps` (here {}): \
             let them fall on the same steps, with a manifest in `data.validation`",
            evaluation.every_steps, checkpoint.every_steps
        ))
        .hint(format!(
            "it keeps `checkpoint.keep_best` (here {}) of the best and `checkpoint.keep_last` (here {}) of the newest",
            checkpoint.keep_best, checkpoint.keep_last
        ))
        .into());
    }
    Ok(best)
}

/// The validation loss of exactly this step, if it was measured and is a number.
async fn validation_loss(store: &RunStore, step: Step) -> anyhow::Result<Option<f64>> {
    let name = layout::evaluation("validation", false, step);
    let bytes = store.get_if_there(&format!("{name}.json")).await?;
    let validation: Option<Validation> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let loss = validation.and_then(|validation| validation.loss);
    Ok(loss.filter(|loss| loss.is_finite()))
}
