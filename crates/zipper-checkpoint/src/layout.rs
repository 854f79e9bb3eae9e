//! The names under a run URL.
//!
//! ```text
//! run.yaml                        resolved configuration, immutable
//! journal/000000000042.json       the coordinator's durable state
//! metrics/train.jsonl             one line for each logged step
//! metrics/status.json             the picture of the run that people are shown
//! metrics/tensorboard/events.out.tfevents.0000000003.00000120  the same for TensorBoard, in pieces
//! eval/<set>-step-00000500.json   scores of an evaluation; with `-silenced` behind the set those of the control without speech
//! eval/<set>-step-00000500.jsonl  what the model wrote
//! eval/table.json                 the results at the end of the run
//! data/report.json                utterances and hours by language, and the fingerprint of what is trained on; written once
//! data/skipped.json               utterances that are left out; written once
//! lease/000000000001/claim.json   which coordinator has the run; the newest claim counts
//! probes/<name>.json               written and deleted to see whether the store can be used
//! uploads/<name>.json              an upload in pieces that is under way, or was interrupted
//! flight/generation-3/rank-1.json the last collective operations of a rank on which one failed
//! checkpoints/step-00000500/      the state after 500 steps
//!     shared.safetensors          projector, shared adapter parameters
//!     banks/<language>.safetensors
//!     optimizer/shared.safetensors, optimizer/banks/<language>.safetensors
//!     state.json                  sampler, fingerprint of what it draws from, schedule, counters
//!     WRITER.json                 which generation writes under these names; others under `generation-4/`
//!     MANIFEST.json               last
//! ```

use zipper_types::{Generation, Rank, Step};

/// Utterances and hours of every language, as the launcher counted them, and the fingerprint of the training corpus.
pub const CORPUS_REPORT: &str = "data/report.json";

/// The resolved configuration of the run.
pub const RUN_CONFIG: &str = "run.yaml";
/// One JSON line for each logged step.
pub const TRAIN_METRICS: &str = "metrics/train.jsonl";
/// The picture of the run that people are shown, where no coordinator runs any more.
pub const STATUS: &str = "metrics/status.json";
/// Directory of the event files that TensorBoard reads.
pub const TENSORBOARD: &str = "metrics/tensorboard";
/// Ids of the utterances that are left out because of their audio, as the launch that began the run found it.
pub const SKIPPED: &str = "data/skipped.json";
/// Directory of the coordinator's journal.
pub(crate) const JOURNAL: &str = "journal";
/// Directory of the checkpoints.
pub const CHECKPOINTS: &str = "checkpoints";

/// Part of a checkpoint: parameters that all languages share.
pub const SHARED: &str = "shared.safetensors";
/// Part of a checkpoint: optimizer state of the shared parameters.
pub const OPTIMIZER_SHARED: &str = "optimizer/shared.safetensors";
/// Part of a checkpoint: everything that is not a tensor.
pub const STATE: &str = "state.json";
/// Object of a checkpoint whose existence makes it one.
pub const MANIFEST: &str = "MANIFEST.json";

/// Object of a checkpoint's folder that says which generation uses its plain names.
pub const WRITER: &str = "WRITER.json";
/// Directory of the claims on the run.
pub const LEASE: &str = "lease";

/// Written when a run is claimed, to see whether the store refuses to write it twice.
pub(crate) const LEASE_PROBE: &str = "lease/probe.json";

/// Directory of the objects that show whether the store can be used.
pub(crate) const PROBES: &str = "probes";

/// Directory of the notes on uploads in pieces.
pub const UPLOADS: &str = "uploads";

/// Who made claim number `epoch` on the run.
#[must_use]
pub fn lease_claim(epoch: u64) -> String {
    format!("{LEASE}/{epoch:012}/claim.json")
}

/// The counter that the holder of claim `epoch` overwrites while it lives.
#[must_use]
pub(crate) fn lease_renewed(epoch: u64) -> String {
    format!("{LEASE}/{epoch:012}/renewed.json")
}

/// Its existence says that claim `epoch` was given back.
#[must_use]
pub(crate) fn lease_released(epoch: u64) -> String {
    format!("{LEASE}/{epoch:012}/released.json")
}

/// Its existence asks the holder of claim `epoch` to stop the run.
#[must_use]
pub(crate) fn lease_stop(epoch: u64) -> String {
    format!("{LEASE}/{epoch:012}/stop.json")
}

/// The number of a claim by the path of [`lease_claim`], if it is one.
#[must_use]
pub(crate) fn epoch_of_claim(path: &str) -> Option<u64> {
    let number = path.strip_prefix(LEASE)?.strip_prefix('/')?;
    let epoch = number.strip_suffix("/claim.json")?.parse().ok()?;
    (lease_claim(epoch) == path).then_some(epoch)
}

/// Whether `path`, relative to a checkpoint, is an object of it that is no part.
pub(crate) fn is_own(path: &str) -> bool {
    path == MANIFEST || path == WRITER
}

/// What the prefixes of [`generation_prefix`] begin with.
pub(crate) const GENERATION_PREFIX: &str = "generation-";

/// Prefix of the objects of a checkpoint whose plain names belong to another generation.
#[must_use]
pub(crate) fn generation_prefix(generation: Generation) -> String {
    format!("{GENERATION_PREFIX}{generation}/")
}

/// Directory of the flight records of a generation.
#[must_use]
pub fn flight_dir(generation: Generation) -> String {
    format!("flight/generation-{generation}")
}

/// The last collective operations of `rank`, written when one has failed.
#[must_use]
pub fn flight_record(generation: Generation, rank: Rank) -> String {
    format!("{}/rank-{rank}.json", flight_dir(generation))
}

/// The evaluation of `set` after `step` steps, without the ending: `.json` has the scores, `.jsonl` the hypotheses.
#[must_use]
pub fn evaluation(set: &str, silenced: bool, step: Step) -> String {
    let control = if silenced { "-silenced" } else { "" };
    format!("eval/{set}{control}-{}", checkpoint_id(step))
}

/// Part of a checkpoint: the bank of `language`.
#[must_use]
pub fn bank(language: &str) -> String {
    format!("banks/{language}.safetensors")
}

/// Part of a checkpoint: optimizer state of the bank of `language`.
#[must_use]
pub fn optimizer_bank(language: &str) -> String {
    format!("optimizer/banks/{language}.safetensors")
}

/// Name of the checkpoint after `step` steps: `step-00000500`.
#[must_use]
pub fn checkpoint_id(step: Step) -> String {
    format!("step-{:08}", step.0)
}

/// The step of a checkpoint's name, if it is one.
#[must_use]
pub(crate) fn step_of_id(id: &str) -> Option<Step> {
    let step = Step(id.strip_prefix("step-")?.parse().ok()?);
    (checkpoint_id(step) == id).then_some(step)
}

/// Directory of the checkpoint after `step` steps.
#[must_use]
pub fn checkpoint_dir(step: Step) -> String {
    format!("{CHECKPOINTS}/{}", checkpoint_id(step))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what other versions have written is found.
    #[test]
    fn evaluations_keep_their_names() {
        let trained = evaluation("validation", false, Step(500));
        assert_eq!(trained, "eval/validation-step-00000500");
        assert_eq!(evaluation("t", true, Step(0)), "eval/t-silenced-step-00000000");
    }

    /// Goal: what other versions have written, and people look for, is where it was.
    #[test]
    fn names_stay() {
        let (step, generation) = (Step(500), Generation(3));
        for (found, expected) in [
            (lease_claim(7), "lease/000000000007/claim.json"),
            (lease_renewed(7), "lease/000000000007/renewed.json"),
            (lease_released(7), "lease/000000000007/released.json"),
            (lease_stop(7), "lease/000000000007/stop.json"),
            (
                flight_record(generation, Rank(1)),
                "flight/generation-3/rank-1.json",
            ),
            (checkpoint_dir(step), "checkpoints/step-00000500"),
            (bank("de"), "banks/de.safetensors"),
            (optimizer_bank("de"), "optimizer/banks/de.safetensors"),
            (generation_prefix(generation), "generation-3/"),
        ] {
            assert_eq!(found, expected);
        }
    }

    /// Goal: names and steps convert both ways, and no second name means the same step.
    #[test]
    fn ids_and_steps_are_one_to_one() {
        for (step, id) in [
            (0, "step-00000000"),
            (500, "step-00000500"),
            (123_456_789, "step-123456789"),
        ] {
            assert_eq!(checkpoint_id(Step(step)), id);
            assert_eq!(step_of_id(id), Some(Step(step)));
        }
        assert_eq!(epoch_of_claim(&lease_claim(42)), Some(42));
        assert_eq!(epoch_of_claim("lease/42/claim.json"), None);
        assert_eq!(epoch_of_claim(&lease_renewed(42)), None);
        for id in [
            "step-500",
            "step-000000500",
            "step-+0000500",
            "step-",
            "step-0000050x",
            "00000500",
        ] {
            assert_eq!(step_of_id(id), None, "{id}");
        }
    }
}
