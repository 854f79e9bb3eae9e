//! The coordinator's journal: numbered entries, each written once.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::layout;
use crate::store::RunStore;
use crate::{CheckpointError, Result};

/// The journal of one run.
#[derive(Clone)]
pub struct Journal {
    run: RunStore,
}

impl Journal {
    pub(crate) fn new(run: RunStore) -> Self {
        Self { run }
    }

    /// Writes entry number `sequence`. Of two writers with the same number, one succeeds: that is how a coordinator
    /// learns that another one has taken over.
    ///
    /// # Errors
    /// [`crate::ErrorKind::AlreadyExists`] when the number is taken.
    pub async fn append(&self, sequence: u64, entry: &impl Serialize) -> Result<()> {
        let path = entry_path(sequence);
        let json = serde_json::to_vec(entry).map_err(|error| CheckpointError::Path {
            path: path.clone(),
            problem: format!("its entry cannot be written as JSON: {error}"),
        })?;
        self.run.put_create(&path, json.into()).await
    }

    /// All entries with their numbers, in order.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when an entry cannot be read as a `T`, or one between others is missing.
    pub async fn read_all<T: DeserializeOwned>(&self) -> Result<Vec<(u64, T)>> {
        let mut entries: Vec<(u64, T)> = Vec::new();
        for path in self.run.list(layout::JOURNAL).await? {
            let Some(sequence) = sequence_of(&path) else {
                continue;
            };
            if let Some((last, _)) = entries.last()
                && sequence != last + 1
            {
                let object = self.run.object_url(&entry_path(last + 1));
                let (expected, found) = (format!("entry {}", last + 1), "no object".to_owned());
                return Err(CheckpointError::Damaged {
                    object,
                    expected,
                    found,
                });
            }
            let bytes = self.run.get(&path).await?;
            let entry = serde_json::from_slice(&bytes).map_err(|error| CheckpointError::Damaged {
                object: self.run.object_url(&path),
                expected: "a journal entry".to_owned(),
                found: format!("{} bytes that are not one ({error})", bytes.len()),
            })?;
            entries.push((sequence, entry));
        }
        Ok(entries)
    }
}

/// Twelve digits, so that the order of names is the order of entries.
fn entry_path(sequence: u64) -> String {
    format!("{}/{sequence:012}.json", layout::JOURNAL)
}

fn sequence_of(path: &str) -> Option<u64> {
    let name = path.strip_prefix(layout::JOURNAL)?.strip_prefix('/')?;
    let sequence = name.strip_suffix(".json")?.parse().ok()?;
    (entry_path(sequence) == path).then_some(sequence)
}
