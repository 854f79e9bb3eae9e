//! Between the words of the protocol and those of the state.

use std::collections::BTreeSet;

use zipper_proto::v1;
use zipper_proto::{MissingField, v1::complete_task_request::Outcome as WireOutcome};
use zipper_types::{Rank, Step};

use crate::schedule::{EvaluationSet, Planned};
use crate::state::{Assignment, Collective, Decoded, HeldState, Origin, Outcome, Verdict};

/// What a worker holds in memory.
pub(super) fn held(wire: &v1::HeldState) -> Result<HeldState, MissingField> {
    Ok(HeldState {
        step: Step(wire.step),
        stage: zipper_proto::stage(wire.stage)?,
        shared: wire.shared,
        banks: wire
            .banks
            .iter()
            .map(|&bank| bank as usize)
            .collect::<BTreeSet<_>>(),
    })
}

/// A place in a generation, as its worker sees it.
pub(super) fn assignment(assignment: Assignment, placement: v1::Placement) -> v1::Assignment {
    use v1::assignment::Origin as Wire;
    let origin = match assignment.origin {
        Origin::Fresh => Wire::Fresh(v1::FreshOrigin {}),
        Origin::Checkpoint => Wire::Checkpoint(v1::CheckpointOrigin {}),
        Origin::Memory { shared, banks } => Wire::Memory(v1::MemoryOrigin {
            shared_rank: shared.0,
            bank_ranks: banks.into_iter().map(|rank| rank.0).collect(),
        }),
    };
    v1::Assignment {
        generation: assignment.generation.0,
        rank: assignment.rank.0,
        world_size: assignment.world_size.0,
        store_address: assignment.store_address,
        placement: Some(placement),
        step: assignment.step.0,
        origin: Some(origin),
    }
}

/// A task as workers see it.
pub(super) fn task(id: u64, planned: &Planned) -> v1::Task {
    let kind = match planned {
        Planned::Train {
            stage,
            from,
            until,
            ends_stage,
        } => v1::task::Kind::Train(v1::TrainTask {
            stage: v1::Stage::from(*stage).into(),
            from_step: from.0,
            until_step: until.0,
            checkpoint_at_end: *ends_stage,
        }),
        Planned::Evaluate { set, silenced, step } => v1::task::Kind::Evaluate(v1::EvaluateTask {
            step: step.0,
            set: Some(match set {
                EvaluationSet::Validation => v1::evaluate_task::Set::Validation(v1::ValidationSet {}),
                EvaluationSet::Test(name) => v1::evaluate_task::Set::Test(name.clone()),
            }),
            silenced: *silenced,
        }),
        Planned::Save { stage, step } => v1::task::Kind::Save(v1::SaveTask {
            step: step.0,
            stage: v1::Stage::from(*stage).into(),
        }),
    };
    v1::Task { id, kind: Some(kind) }
}

/// A verdict as everybody else sees it.
pub(super) fn verdict(verdict: &Verdict) -> v1::Verdict {
    use v1::verdict::Outcome;
    let (outcome, reason) = match verdict {
        Verdict::Done => (Outcome::Done, String::new()),
        Verdict::Failed(reason) => (Outcome::Failed, reason.clone()),
        Verdict::Config(reason) => (Outcome::Config, reason.clone()),
        Verdict::Stopped(reason) => (Outcome::Stopped, reason.clone()),
    };
    v1::Verdict {
        outcome: outcome.into(),
        reason,
    }
}

/// The collective operation that a worker waits in.
pub(super) fn collective(wire: v1::CollectiveState) -> Collective {
    Collective {
        group: wire.group,
        sequence: wire.sequence,
        operation: wire.operation,
        what: wire.what,
        finished: wire.finished,
        age: zipper_proto::duration(wire.age).unwrap_or_default(),
        missing: wire.missing.into_iter().map(Rank).collect(),
        arrived: wire.arrived.into_iter().map(Rank).collect(),
    }
}

/// What came of a task.
pub(super) fn outcome(outcome: WireOutcome) -> Outcome {
    match outcome {
        WireOutcome::Trained(trained) => Outcome::Trained {
            reached: Step(trained.reached_step),
        },
        WireOutcome::Stopped(stopped) => Outcome::Stopped {
            reached: Step(stopped.reached_step),
        },
        WireOutcome::Yielded(yielded) => Outcome::Yielded {
            reached: Step(yielded.reached_step),
        },
        WireOutcome::Saved(v1::Saved {}) => Outcome::Saved,
        WireOutcome::Evaluated(evaluated) => {
            let utterances = evaluated.utterances.into_iter().map(|utterance| Decoded {
                id: utterance.id,
                lang: utterance.lang,
                reference: utterance.reference,
                hypothesis: utterance.hypothesis,
                nll: utterance.nll.zip(utterance.tokens),
            });
            Outcome::Evaluated(utterances.collect())
        }
    }
}
