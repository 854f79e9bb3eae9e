//! What can be wrong with a model directory.

use std::path::PathBuf;

/// A model that cannot be loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file is missing or unreadable.
    #[error("cannot read `{path}`: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is there but does not hold what it should.
    #[error("`{path}`: {problem}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do where that is not obvious.
        problem: String,
    },
    /// A tensor has another shape than config.json says.
    #[error("`{path}`: tensor `{name}` has shape {found:?}, but {expected:?} follows from config.json")]
    Shape {
        /// The safetensors file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape in the file.
        found: Vec<i64>,
        /// The shape that config.json asks for.
        expected: Vec<i64>,
    },
    /// A configured layer name that no layer of the model has.
    #[error("`adapter.{key}`: no linear layer of the model is called `{target}`; choose from {choices}")]
    UnknownTarget {
        /// `targets` or `encoder_targets`.
        key: &'static str,
        /// The name.
        target: String,
        /// The names that exist.
        choices: String,
    },
    /// A language without a name for the prompt.
    #[error(
        "language `{0}` is not one of the languages of Whisper, nor has it a name in `model.prompt.language_names`"
    )]
    UnknownLanguage(String),
    /// An utterance is too long for the encoder.
    #[error("{frames} encoder frames are more than the {positions} positions of the encoder (50 a second)")]
    TooLong {
        /// Frames of the utterance.
        frames: i64,
        /// Positions that the encoder knows.
        positions: i64,
    },
    /// The tokenizer failed.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// Libtorch failed.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
}

impl ModelError {
    /// Whether the user's configuration or files are at fault, so that trying again cannot help.
    pub fn is_config(&self) -> bool {
        !matches!(self, Self::Torch(_) | Self::TooLong { .. })
    }
}
