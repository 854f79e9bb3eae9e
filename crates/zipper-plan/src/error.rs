//! What can go wrong with a plan.

use zipper_types::WorldSize;

/// Why no global batch can be drawn, or not one that feeds all ranks; or why banks cannot be placed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// There is nothing to draw from.
    #[error("there is no training utterance in any language")]
    NoUtterances,
    /// The state belongs to other data.
    #[error(
        "the sampler state of the checkpoint does not fit the training data: {0}; the manifests have changed since it was written: \
         give those again, or begin a new run (`--run`)"
    )]
    State(String),
    /// The banks do not fit into the memory of all ranks together.
    #[error(
        "the banks of {languages} languages do not fit: {banks_per_rank} of them fit into the memory for banks of each of \
         {world_size} workers; give each worker room for {banks_needed} (`runtime.bank_memory_mib`){}",
        .ranks_needed.map_or_else(String::new, |ranks| format!(", or take {ranks} workers"))
    )]
    TooLittleMemory {
        /// Languages with a bank.
        languages: usize,
        /// Workers.
        world_size: WorldSize,
        /// Banks that fit into one worker.
        banks_per_rank: usize,
        /// Workers that would be enough, if any number is.
        ranks_needed: Option<usize>,
        /// Banks that each worker would have to hold.
        banks_needed: usize,
    },
    /// A placement names owners that cannot be.
    #[error(
        "the placement gives language {language} the owners {first} to {last} in a world of {world_size} ranks"
    )]
    BadPlacement {
        /// Ordinal of the language.
        language: usize,
        /// Its first owner.
        first: u32,
        /// Its last owner.
        last: u32,
        /// Number of ranks.
        world_size: WorldSize,
    },
    /// Some ranks would have nothing to do.
    #[error(
        "{world_size} workers are more than the batch can feed: `training.batch_audio_seconds` = {batch_seconds} holds \
         about {utterances:.0} utterances of {mean_seconds:.1} s; use at most {largest} workers or a larger batch"
    )]
    TooManyWorkers {
        /// Workers asked for.
        world_size: WorldSize,
        /// Size of the global batch.
        batch_seconds: f64,
        /// Expected number of utterances in it.
        utterances: f64,
        /// Expected length of a drawn utterance.
        mean_seconds: f64,
        /// The largest world size that would do.
        largest: u32,
    },
}
