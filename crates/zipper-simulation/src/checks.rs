//! What is looked at after a run: the checkpoints, the journal, the metrics.

use std::collections::BTreeMap;

use zipper_checkpoint::layout;
use zipper_coordinator::journal::JournalEntry;
use zipper_types::{Generation, Step};

use crate::invariants::{COMMITTED, COMPLETE, ENDS, EXACT, GENERATIONS, METRICS};
use crate::model::LANGUAGES;
use crate::world::World;

/// What the journal tells.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// Coordinators that began.
    pub(crate) coordinators: u64,
    /// Generations that were formed.
    pub(crate) generations: u64,
    /// Those that ended before their time.
    pub(crate) broken: u64,
}

/// Every checkpoint is whole, and holds the state of its step. Returns how many there are.
pub(crate) async fn checkpoints(world: &World) -> u64 {
    let store = world.clean_store();
    let checkpoints = store.checkpoints();
    let truth = &world.truth;
    let list = checkpoints
        .list()
        .await
        .expect("the store has no faults any more");
    for (step, error) in &list.unreadable {
        truth.violated(COMPLETE, format!("the manifest of step {step}: {error}"));
    }
    for checkpoint in &list.checkpoints {
        let step = checkpoint.manifest.step;
        if let Err(error) = checkpoints.verify(step).await {
            truth.violated(COMPLETE, format!("step {step}: {error}"));
            continue;
        }
        let model = world.model(step);
        let mut expected: BTreeMap<String, &String> = model
            .shared
            .iter()
            .map(|shared| (layout::SHARED.to_owned(), shared))
            .collect();
        for language in 0..LANGUAGES {
            let bank = layout::bank(&world.config.data.languages[language]);
            expected.insert(bank, &model.banks[&language]);
        }
        for part in &checkpoint.manifest.parts {
            let bytes = checkpoints.read_part(step, part).await.unwrap_or_default();
            if expected
                .remove(&part.path)
                .is_none_or(|expected| expected.as_bytes() != bytes)
            {
                truth.violated(
                    EXACT,
                    format!("`{}` of step {step} is of another state", part.path),
                );
            }
        }
        if !expected.is_empty() {
            let missing: Vec<&String> = expected.keys().collect();
            truth.violated(COMPLETE, format!("the manifest of step {step} lacks {missing:?}"));
        }
    }
    list.checkpoints.len() as u64
}

/// A run that is done has the checkpoint of its last step.
pub(crate) async fn last_checkpoint(world: &World) {
    let last = world.last_step();
    match world.clean_store().checkpoints().latest().await {
        Ok(Some(step)) if step == last => {}
        other => {
            let seen = format!("the run is done, and its newest checkpoint is {other:?} instead of {last}");
            world.truth.violated(COMMITTED, seen);
        }
    }
}

/// The numbers in the journal only grow. Returns what else it tells.
pub(crate) async fn journal(world: &World) -> History {
    let mut history = History::default();
    let entries = match world.clean_store().journal().read_all::<JournalEntry>().await {
        Ok(entries) => entries,
        Err(error) => {
            world
                .truth
                .violated(ENDS, format!("the journal cannot be read: {error}"));
            return history;
        }
    };
    let mut newest = Generation(0);
    for (_, entry) in entries {
        match entry {
            JournalEntry::Coordinator { .. } => history.coordinators += 1,
            JournalEntry::Generation { generation, .. } => {
                history.generations += 1;
                if generation <= newest {
                    let seen = format!("the journal has generation {generation} after {newest}");
                    world.truth.violated(GENERATIONS, seen);
                }
                newest = newest.max(generation);
            }
            JournalEntry::Broken { .. } => history.broken += 1,
            _ => {}
        }
    }
    history
}

/// There is one line of metrics for each step; with `all` for every step.
pub(crate) async fn metrics(world: &World, all: bool) {
    let bytes = world
        .clean_store()
        .get(layout::TRAIN_METRICS)
        .await
        .unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let step_of = |line: &str| {
        serde_json::from_str::<serde_json::Value>(line).ok()?["step"]
            .as_u64()
            .map(Step)
    };
    let steps: Vec<Option<Step>> = text.lines().map(step_of).collect();
    let ordered = steps.is_sorted_by(|a, b| a.is_some() && a < b);
    let last = world.last_step().0 as usize;
    if !ordered || (all && steps.len() != last) {
        world
            .truth
            .violated(METRICS, format!("of {last} steps there are lines for {steps:?}"));
    }
}
