//! Checkpoints on their way: written by ranks, published when all parts are there, awaited at the end.

use std::collections::BTreeMap;
use std::time::Duration;

use zipper_checkpoint::PartRecord;
use zipper_types::{Rank, Stage, Step};

use super::{Effect, Now, Outcome, State, Verdict};
use crate::schedule;

/// How long a checkpoint may take after the last step before the run fails.
pub(super) const CHECKPOINT_TIMEOUT: Duration = Duration::from_mins(10);

/// Parts of a checkpoint that is not published yet.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pending {
    pub(super) stage: Stage,
    pub(super) parts: BTreeMap<Rank, Vec<PartRecord>>,
}

/// The run will end so when its checkpoints are published.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Closing {
    pub(super) verdict: Verdict,
    pub(super) since: Now,
}

impl State {
    /// Notes the checkpoints that the ranks have written on the way.
    pub(super) fn trained(&mut self, from: Step, ends_stage: bool, outcomes: &BTreeMap<Rank, Outcome>) {
        let stopped = outcomes
            .values()
            .any(|outcome| matches!(outcome, Outcome::Stopped { .. }));
        let Some(reached) = outcomes.values().find_map(Outcome::reached) else {
            return;
        };
        self.reached = reached;
        let written = schedule::checkpoints(&self.config, from, reached, ends_stage || stopped);
        self.expected
            .extend(written.into_iter().filter(|step| !self.published.contains(step)));
    }

    pub(super) fn parts_stored(
        &mut self,
        rank: Rank,
        step: Step,
        stage: Stage,
        parts: Vec<PartRecord>,
        effects: &mut Vec<Effect>,
    ) {
        if self.published.contains(&step) {
            return;
        }
        let pending = self.pending.entry(step).or_insert_with(|| Pending {
            stage,
            parts: BTreeMap::new(),
        });
        let complete_before = pending.parts.len() == self.world_size.0 as usize;
        pending.parts.insert(rank, parts);
        if pending.parts.len() == self.world_size.0 as usize && !complete_before {
            self.expected.insert(step);
            let parts = pending.parts.values().flatten().cloned().collect();
            let stage = pending.stage;
            effects.push(Effect::Publish { step, stage, parts });
        }
    }

    pub(super) fn published(&mut self, step: Step, error: Option<String>, effects: &mut Vec<Effect>) {
        if let Some(error) = error {
            let reason = format!("the checkpoint of step {step} cannot be published: {error}");
            self.end(Verdict::Failed(reason), effects);
            return;
        }
        self.pending.remove(&step);
        self.expected.remove(&step);
        self.published.insert(step);
        effects.push(Effect::Committed(step));
    }

    /// How the run ends if its last checkpoints do not come.
    pub(super) fn late_checkpoints(&self, now: Now) -> Option<Verdict> {
        let closing = self.closing.as_ref()?;
        (now.saturating_sub(closing.since) > CHECKPOINT_TIMEOUT)
            .then(|| Verdict::Failed(self.missing_parts()))
    }

    /// Who the coordinator waited for when a checkpoint did not come.
    fn missing_parts(&self) -> String {
        let missing = self.expected.iter().map(|step| {
            let stored = self.pending.get(step).map(|pending| &pending.parts);
            let ranks: Vec<String> = (0..self.world_size.0)
                .filter(|rank| stored.is_none_or(|stored| !stored.contains_key(&Rank(*rank))))
                .map(|rank| self.describe(Rank(rank)))
                .collect();
            format!("step {step}: {}", ranks.join(", "))
        });
        format!(
            "waited {} for parts of checkpoints, of {}",
            humantime::format_duration(CHECKPOINT_TIMEOUT),
            missing.collect::<Vec<_>>().join("; ")
        )
    }

    /// Ends the run when nothing is awaited any more (END-1).
    pub(super) fn close_if_ready(&mut self, effects: &mut Vec<Effect>) {
        if self.expected.is_empty()
            && let Some(closing) = self.closing.take()
        {
            self.end(closing.verdict, effects);
        }
    }
}
