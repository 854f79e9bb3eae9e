//! Checkpoints on their way: written by ranks, published when all parts are there, awaited at the end, retired later.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use zipper_checkpoint::PartRecord;
use zipper_checkpoint::retention::{Kept, RetentionPolicy, retire};
use zipper_types::{Rank, Stage, Step};

use super::accounts::Activity;
use super::generations::name_some;
use super::{Effect, Now, Outcome, Phase, State, Verdict};
use crate::schedule;
use crate::seeded::{self, Bug};

/// How long a checkpoint may take after the last step before the run fails.
pub(super) const CHECKPOINT_TIMEOUT: Duration = Duration::from_mins(10);

/// Parts of a checkpoint that is not published yet.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pending {
    pub(super) stage: Stage,
    pub(super) parts: BTreeMap<Rank, Vec<PartRecord>>,
    /// All parts are there, and the manifest is being written.
    publishing: bool,
}

/// The run will end so when its checkpoints are published.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Closing {
    pub(super) verdict: Verdict,
    pub(super) since: Now,
}

impl State {
    /// Notes how far the ranks have come, and the checkpoints that they have written on the way.
    pub(super) fn trained(&mut self, from: Step, ends_stage: bool, outcomes: &BTreeMap<Rank, Outcome>) {
        let any = |is: fn(&Outcome) -> bool| outcomes.values().any(is);
        let stopped = any(|outcome| matches!(outcome, Outcome::Stopped { .. }));
        let yielded = any(|outcome| matches!(outcome, Outcome::Yielded { .. }));
        let Some(reached) = outcomes.values().find_map(Outcome::reached) else {
            return;
        };
        let at_end = (ends_stage && !yielded) || stopped;
        let mut written = schedule::checkpoints(&self.config, from, reached, at_end);
        written.retain(|step| !self.was_published(*step));
        self.expected.extend(written);
        self.furthest = self.furthest.max(reached);
        if yielded || stopped {
            self.go_on_from(reached);
            // It has just been written.
            if matches!(self.left.last(), Some(schedule::Planned::Save { .. })) {
                self.left.pop();
            }
        }
        self.reached = reached;
    }

    /// A rank has stored its parts of a checkpoint; those of the last one complete it (CKPT-4).
    pub(super) fn parts_stored(
        &mut self,
        rank: Rank,
        step: Step,
        stage: Stage,
        parts: Vec<PartRecord>,
        effects: &mut Vec<Effect>,
    ) {
        let Phase::Together(together) = &self.phase else {
            return;
        };
        if self.was_published(step) {
            return;
        }
        let pending = self.pending.entry(step).or_insert_with(|| Pending {
            stage,
            parts: BTreeMap::new(),
            publishing: false,
        });
        pending.parts.insert(rank, parts);
        let complete =
            pending.parts.len() == together.world_size.0 as usize || seeded::is_planted(Bug::EarlyManifest);
        if complete && !pending.publishing {
            pending.publishing = true;
            self.expected.insert(step);
            effects.push(Effect::Publish {
                step,
                stage: pending.stage,
                generation: self.generation,
                world_size: together.world_size,
                parts: pending.parts.values().flatten().cloned().collect(),
            });
        }
    }

    /// A manifest is there, or cannot be written: then the run fails.
    pub(super) fn published(
        &mut self,
        now: Now,
        step: Step,
        error: Option<String>,
        effects: &mut Vec<Effect>,
    ) {
        // Older ones are not needed any more: a rank may tell of its part of one late, to another coordinator, or may have left it
        // out while the store was away.
        self.pending.retain(|&other, _| other > step);
        self.expected.retain(|&other| other > step);
        if let Some(error) = error {
            let reason = format!("the checkpoint of step {step} cannot be published: {error}");
            self.end(now, Verdict::Failed(reason), effects);
            return;
        }
        self.published.insert(step);
        let retire = self.retire();
        for step in &retire {
            self.published.remove(step);
        }
        effects.push(Effect::Committed { step, retire });
    }

    /// Whether there is a checkpoint of `step`, or a newer one: then no other one of `step` is published.
    pub(super) fn was_published(&self, step: Step) -> bool {
        self.committed().is_some_and(|newest| step <= newest)
    }

    /// Checkpoints from `from` on and up to `reached` that a generation has written on its way and that were not published.
    pub(super) fn unpublished(&self, from: Step, reached: Step) -> BTreeSet<Step> {
        let due = |step: &Step| schedule::is_checkpoint(&self.config, *step) && !self.was_published(*step);
        (from.0.max(1)..=reached.0).map(Step).filter(due).collect()
    }

    /// Checkpoints that are not kept any longer.
    fn retire(&self) -> Vec<Step> {
        let checkpoint = &self.config.checkpoint;
        let stages = schedule::stages(&self.config);
        let policy = RetentionPolicy {
            keep_last: checkpoint.keep_last,
            keep_every: checkpoint.keep_every,
            keep_best: checkpoint.keep_best,
        };
        let kept: Vec<Kept> = self
            .published
            .iter()
            .map(|&step| Kept {
                step,
                stage_end: stages.is_stage_end(step),
                validation_loss: self.validation_losses.get(&step).copied(),
            })
            .collect();
        retire(&policy, &kept)
    }

    /// How the run ends if its last checkpoints do not come.
    pub(super) fn late_checkpoints(&self, now: Now) -> Option<Verdict> {
        let closing = self.closing.as_ref()?;
        (now.saturating_sub(closing.since) > CHECKPOINT_TIMEOUT)
            .then(|| Verdict::Failed(self.missing_parts()))
    }

    /// Who the coordinator waited for when a checkpoint did not come.
    fn missing_parts(&self) -> String {
        let Phase::Together(together) = &self.phase else {
            return "the ranks are lost".to_owned();
        };
        let missing = self.expected.iter().map(|step| {
            let stored = self.pending.get(step).map(|pending| &pending.parts);
            let ranks = (0..together.world_size.0)
                .filter(|rank| stored.is_none_or(|stored| !stored.contains_key(&Rank(*rank))))
                .map(|rank| self.describe(Rank(rank)));
            format!("step {step}: {}", name_some(ranks).join(", "))
        });
        format!(
            "waited {} for parts of checkpoints, of {}",
            humantime::format_duration(CHECKPOINT_TIMEOUT),
            missing.collect::<Vec<_>>().join("; ")
        )
    }

    /// Ends the run when nothing is awaited any more (END-1).
    pub(super) fn close_if_ready(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.closing.is_none() {
            return;
        }
        self.accounts.begin(now, Activity::Ending);
        if self.expected.is_empty()
            && let Some(closing) = self.closing.take()
        {
            self.end(now, closing.verdict, effects);
        }
    }
}
