//! What can be wrong with the shape of the adapters. Every case is a fault of the configuration.

/// Adapters that cannot exist.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AdapterError {
    /// A rank that the adapted layer cannot have.
    #[error(
        "`adapter.rank` is {rank}, but layer `{site}` maps {d_in} features to {d_out} and can have a rank of at most \
         {}; lower the rank or leave the layer out of `adapter.{}`",
        d_in.min(d_out),
        targets_of(site)
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

/// The key that names the layers of the model in which `site` is.
fn targets_of(site: &str) -> &'static str {
    if site.contains("encoder.") {
        "encoder_targets"
    } else {
        "targets"
    }
}
