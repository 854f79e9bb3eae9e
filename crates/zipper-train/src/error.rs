//! What can go wrong while training.

use zipper_collectives::CollectiveError;
use zipper_data::AudioError;
use zipper_model::ModelError;
use zipper_model::adapter::AdapterError;
use zipper_plan::PlanError;

/// A failure of the training thread.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A model directory cannot be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The adapters cannot have the configured shape.
    #[error("adapter: {0}")]
    Adapter(#[from] AdapterError),
    /// A global batch cannot be drawn from this data.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A collective operation failed.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// libtorch refused an operation: memory ran out, or a bug of ours.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
    /// An utterance's audio became unreadable after it was checked.
    #[error("utterance `{id}`: {source}")]
    Audio {
        /// The utterance.
        id: String,
        /// What was wrong with its audio.
        source: AudioError,
    },
    /// The encoder cache cannot be written or read.
    #[error("encoder cache `{path}`: {source}")]
    Cache {
        /// The file or folder.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The thread that reads ahead cannot be started.
    #[error("cannot start the thread that reads utterances ahead: {0}")]
    Thread(std::io::Error),
    /// A checkpoint's contents do not fit this configuration.
    #[error("{0}")]
    State(String),
    /// The state belongs to another training corpus.
    #[error(
        "the training data of run `{run}` are not those that this state was written with: the manifests of `data.train` name \
         other utterances, durations or another order; give them as they were, or begin another run (`--run`)"
    )]
    Corpus {
        /// The name of the run.
        run: String,
    },
    /// What `training.start_from` names cannot be taken over.
    #[error("`training.start_from`: `{place}`: {problem}")]
    Start {
        /// The file, folder or run.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The loss or a gradient is not finite, and the configuration says to stop.
    #[error(
        "step {step}: the {what} is not finite (languages in the batch: {languages}); set `training.on_non_finite: \
         skip` to leave such updates out, or lower the learning rate"
    )]
    NonFinite {
        /// The step that was not made.
        step: u64,
        /// `loss` or `gradient`.
        what: &'static str,
        /// The languages of its global batch.
        languages: String,
    },
    /// The loss is a spike, and the configuration says to stop.
    #[error(
        "step {step}: the loss is {loss:.3}, more than {factor} times the median of the last 32 ({median:.3}; languages in \
         the batch: {languages}); look at its utterances, set `training.on_loss_spike: skip` to leave such updates out, or \
         lower the learning rate"
    )]
    LossSpike {
        /// The step that was not made.
        step: u64,
        /// Its loss.
        loss: f64,
        /// The losses before it.
        median: f64,
        /// `training.loss_spike_factor`.
        factor: f64,
        /// The languages of its global batch.
        languages: String,
    },
}

impl TrainError {
    /// Whether the configuration says that this ends the run: every rank fails alike, and would again.
    pub fn ends_run(&self) -> bool {
        matches!(self, Self::NonFinite { .. } | Self::LossSpike { .. })
    }

    /// Whether the user's configuration or files are at fault, so that trying again cannot help.
    pub fn is_config(&self) -> bool {
        match self {
            Self::Model(error) => error.is_config(),
            Self::Adapter(_) | Self::Plan(_) | Self::Corpus { .. } | Self::Start { .. } => true,
            _ => false,
        }
    }
}
