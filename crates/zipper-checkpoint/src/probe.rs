//! Whether a run can be kept where its URL points: everything that a run asks of a store, once, with a small object.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use object_store::ObjectStoreExt;

use crate::{CheckpointError, ErrorKind, Result, RunStore, folder, layout};

/// What a store has shown that can do all that a run needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probed {
    /// How long all of it took.
    pub took: Duration,
    /// Milliseconds by which the store's clock is ahead of this machine's; 0 as long as they may be the same: stores tell
    /// whole seconds.
    pub clock_ahead_ms: i64,
}

impl RunStore {
    /// Creates an object under a name that nobody else uses, reads it, tries to create it again, lists and deletes it. Nothing is
    /// left, unless this process or the store ends meanwhile; then it is a few bytes in `probes/`.
    ///
    /// # Errors
    /// What the store does not do: as [`RunStore::put`], [`RunStore::get`] and [`RunStore::list`];
    /// [`CheckpointError::Damaged`] if it gives back something else, [`CheckpointError::Unconditional`] if it creates what is
    /// there.
    pub async fn probe(&self) -> Result<Probed> {
        let nanos = millis(SystemTime::now()).map_or(0, |(_, nanos)| nanos);
        let path = format!("{}/{}-{nanos}.json", layout::PROBES, std::process::id());
        let made = self.folders_to_be_made();
        let probed = self.probe_at(&path).await;
        // Also where the creation has failed: it may have succeeded nevertheless.
        let deleted = self.delete(&path).await;
        if let Some(folder) = &self.place().folder {
            folder::prune(&folder.join(layout::PROBES));
        }
        for folder in made {
            // One that is used meanwhile is not empty, and stays.
            let _ = fs::remove_dir(folder);
        }
        let probed = probed?;
        deleted?;
        Ok(probed)
    }

    async fn probe_at(&self, path: &str) -> Result<Probed> {
        let started = Instant::now();
        let bytes = Bytes::from_static(b"{\"probe\": true}\n");
        let before = SystemTime::now();
        // Found there already, it is from a first try whose answer was lost.
        self.create_or_get(path, bytes.clone()).await?;
        let after = SystemTime::now();
        let there = self.get(path).await?;
        if there != bytes {
            return Err(CheckpointError::Damaged {
                object: self.object_url(path),
                expected: format!("{bytes:?}"),
                found: format!("{there:?}"),
            });
        }
        match self.put_create(path, bytes).await {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
            Ok(()) => {
                return Err(CheckpointError::Unconditional {
                    url: self.url().to_owned(),
                });
            }
        }
        let listed = self.list(layout::PROBES).await?;
        if !listed.iter().any(|object| object == path) {
            return Err(CheckpointError::NotFound {
                object: self.object_url(path),
            });
        }
        let took = started.elapsed();
        let location = self.location(path)?;
        let head = self.answer("read", path, self.store().head(&location).await)?;
        let written = head.last_modified.timestamp_millis();
        Ok(Probed {
            took,
            clock_ahead_ms: ahead(written, before, after),
        })
    }

    /// The folders that the first object of the run would make, the innermost first.
    fn folders_to_be_made(&self) -> Vec<PathBuf> {
        let folder = self.place().folder.iter();
        let missing = folder.flat_map(|folder| folder.ancestors().take_while(|folder| !folder.exists()));
        missing.map(ToOwned::to_owned).collect()
    }
}

/// How far a clock is ahead that said `written`, in milliseconds or whole seconds, between our `before` and `after`.
fn ahead(written: i64, before: SystemTime, after: SystemTime) -> i64 {
    let ours = |time| millis(time).map_or(0, |(millis, _)| millis);
    // Cut off to the second, it was up to a second later than said.
    let (least, most) = (written - ours(after), written + 1000 - ours(before));
    if least > 0 { least } else { most.min(0) }
}

/// Since 1970, in milliseconds and in nanoseconds.
fn millis(time: SystemTime) -> Option<(i64, u128)> {
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    Some((i64::try_from(since.as_millis()).ok()?, since.as_nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: clocks count as different only where they must be.
    #[test]
    fn whole_seconds_are_no_difference() {
        let at = |millis| UNIX_EPOCH + Duration::from_millis(millis);
        for (written, before, after, expected) in [
            (10_000, 10_100, 10_200, 0),
            (10_000, 10_900, 11_100, 0),
            (10_000, 11_100, 11_200, -100),
            (10_150, 10_100, 10_200, 0),
            (20_000, 10_100, 10_200, 9_800),
            (0, 10_100, 10_200, -9_100),
        ] {
            assert_eq!(
                ahead(written, at(before), at(after)),
                expected,
                "{written} between {before} and {after}"
            );
        }
    }

    #[tokio::test]
    async fn nothing_is_left_of_a_probe() {
        let place = tempfile::tempdir().unwrap();
        let url = place.path().join("runs/a").display().to_string();
        let run = RunStore::open(&url).unwrap();
        let probed = run.probe().await.unwrap();
        assert_eq!(probed.clock_ahead_ms, 0, "{probed:?}");
        assert!(!place.path().join("runs").exists(), "folders stayed");

        run.put("run.yaml", Bytes::new()).await.unwrap();
        run.probe().await.unwrap();
        assert_eq!(run.list("").await.unwrap(), ["run.yaml"]);
        assert!(!place.path().join("runs/a/probes").exists());
    }
}
