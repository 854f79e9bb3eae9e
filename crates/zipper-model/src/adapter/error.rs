//! What can be wrong with the shape of the adapters. Every case is a fault of the configuration.

/// Adapters that cannot exist.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AdapterError {
    /// No language to make a bank for.
    #[error("`data.languages` is empty: adapters need at least one language")]
    NoLanguages,
    /// A setting outside of its range.
    #[error("`adapter.{key}` is {value}: expected {expected}")]
    OutOfRange {
        /// The key below `adapter`.
        key: &'static str,
        /// What it was set to.
        value: String,
        /// What it may be.
        expected: String,
    },
    /// A rank that the adapted layer cannot have.
    #[error(
        "`adapter.rank` is {rank}, but layer `{site}` maps {d_in} features to {d_out} and can have a rank of at most \
         {}; lower the rank or leave the layer out of `adapter.targets`",
        d_in.min(d_out)
    )]
    RankTooLarge {
        /// The adapted layer.
        site: String,
        /// The configured rank.
        rank: usize,
        /// Width of the layer's input.
        d_in: i64,
        /// Width of the layer's output.
        d_out: i64,
    },
    /// Stage 2 cannot start from these adapters.
    #[error("stage 2 cannot start from the adapters of stage 1: {reason}")]
    NotAStart {
        /// In what they differ.
        reason: String,
    },
}
