//! What there is to train on, as the launcher counted it.

use std::collections::BTreeMap;

use serde::Deserialize;
use zipper_checkpoint::{CheckpointError, RunStore, layout};

/// The amounts of all languages.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Corpus {
    /// In any order.
    pub languages: Vec<LanguageCorpus>,
}

/// The amounts of one language.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct LanguageCorpus {
    /// Its code.
    pub lang: String,
    /// Number of utterances.
    pub utterances: usize,
    /// Their length.
    pub seconds: f64,
    /// Characters of their texts.
    pub characters: usize,
}

impl Corpus {
    /// Reads what the launcher wrote.
    ///
    /// # Errors
    /// [`CheckpointError`] if it is not there or cannot be read.
    pub async fn read(store: &RunStore) -> Result<Self, CheckpointError> {
        let bytes = store.get(layout::CORPUS_REPORT).await?;
        serde_json::from_slice(&bytes).map_err(|error| CheckpointError::Damaged {
            object: store.object_url(layout::CORPUS_REPORT),
            expected: "the report of a corpus".to_owned(),
            found: error.to_string(),
        })
    }

    /// Hours by language.
    pub fn hours(&self) -> BTreeMap<String, f64> {
        let hours = |language: &LanguageCorpus| (language.lang.clone(), language.seconds / 3600.0);
        self.languages.iter().map(hours).collect()
    }
}
