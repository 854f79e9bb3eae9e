//! Speech data as files: which utterances there are, their audio, and the features the encoder reads.
//!
//! Owns JSON-lines manifests, lists of utterance ids, the layouts of published corpora, decoding and resampling of audio, cutting it at
//! pauses, Whisper's log-mel features, and what training changes about an utterance.
//! Never decides what is in a batch (`zipper-plan` does) and never touches a tensor.
//!
//! Reading order: [`manifest`], `report` (what they hold), [`audio`], [`features`], [`augment`], [`cut`](mod@cut), [`check`], [`fingerprint`],
//! `sampling` (what batches are drawn from), [`ids`], [`import`].

pub mod audio;
pub mod augment;
pub mod check;
pub mod cut;
pub mod features;
pub mod fingerprint;
pub mod ids;
pub mod import;
pub mod manifest;
mod report;
mod sampling;

pub use audio::{AudioError, AudioProblem, SAMPLE_RATE, decode};
pub use augment::Augmentation;
pub use check::{BadAudio, check_audio};
pub use cut::{CutOptions, Segment, cut};
pub use features::{Features, HOP_LENGTH, LogMel, Padding};
pub use fingerprint::{corpus_fingerprint, stored_fingerprint};
pub use ids::{IdList, IdListError, RepeatedId};
pub use manifest::{Corpus, DurationLimits, ManifestErrors, ManifestProblem, Utterance, load_corpus};
pub use report::{CorpusReport, LanguageReport};
pub use sampling::sampler_problem;
