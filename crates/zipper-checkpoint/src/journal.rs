//! The coordinator's journal: numbered entries, each written once.

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::layout;
use crate::store::RunStore;
use crate::{CheckpointError, Result};

/// How many entries are read at the same time.
const PARALLEL_READS: usize = 16;

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
    /// Repeating an entry that was written, though its writer does not know it, succeeds.
    ///
    /// # Errors
    /// [`crate::ErrorKind::AlreadyExists`] when the number is taken.
    pub async fn append(&self, sequence: u64, entry: &impl Serialize) -> Result<()> {
        let path = entry_path(sequence);
        let json = serde_json::to_vec(entry).map_err(|error| CheckpointError::Path {
            path: path.clone(),
            problem: format!("its entry cannot be written as JSON: {error}"),
        })?;
        let json = Bytes::from(json);
        match self.run.create_or_get(&path, json.clone()).await? {
            Some(there) if there != json => Err(CheckpointError::AlreadyExists {
                object: self.run.object_url(&path),
                detail: " and is another entry",
            }),
            _ => Ok(()),
        }
    }

    /// All entries with their numbers, in order.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Damaged`] when an entry cannot be read as a `T`, or one between others is missing.
    pub async fn read_all<T: DeserializeOwned>(&self) -> Result<Vec<(u64, T)>> {
        let paths = self.run.list(layout::JOURNAL).await?;
        let sequences: Vec<u64> = paths.iter().filter_map(|path| sequence_of(path)).collect();
        for pair in sequences.windows(2) {
            let expected = pair[0] + 1;
            if pair[1] != expected {
                return Err(CheckpointError::Damaged {
                    object: self.run.object_url(&entry_path(expected)),
                    expected: format!("entry {expected}"),
                    found: "no object".to_owned(),
                });
            }
        }
        stream::iter(sequences)
            .map(|sequence| self.read(sequence))
            .buffered(PARALLEL_READS)
            .try_collect()
            .await
    }

    async fn read<T: DeserializeOwned>(&self, sequence: u64) -> Result<(u64, T)> {
        let path = entry_path(sequence);
        let bytes = self.run.get(&path).await?;
        let entry = serde_json::from_slice(&bytes).map_err(|error| CheckpointError::Damaged {
            object: self.run.object_url(&path),
            expected: "a journal entry".to_owned(),
            found: format!("{} bytes that are not one ({error})", bytes.len()),
        })?;
        Ok((sequence, entry))
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
