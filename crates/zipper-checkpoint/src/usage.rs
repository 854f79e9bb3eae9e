//! How much a run's objects were used: what proves that a recovery did not need them.

use std::sync::atomic::{AtomicU64, Ordering};

/// Requests since a run was opened, by this value and its clones. Repetitions inside the client are not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreUsage {
    /// Objects, or ranges of them, that were read or asked for.
    pub reads: u64,
    /// Objects, or pieces of them, that were written.
    pub writes: u64,
    /// Listings.
    pub lists: u64,
    /// Objects that were deleted, and uploads given up.
    pub deletes: u64,
    /// Size of what was read.
    pub bytes_read: u64,
    /// Size of what was written.
    pub bytes_written: u64,
}

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    reads: AtomicU64,
    writes: AtomicU64,
    lists: AtomicU64,
    deletes: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

impl Meter {
    pub(crate) fn read(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.bytes_read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn write(&self, bytes: usize) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.bytes_written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn list(&self) {
        self.lists.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn delete(&self) {
        self.deletes.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn usage(&self) -> StoreUsage {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StoreUsage {
            reads: value(&self.reads),
            writes: value(&self.writes),
            lists: value(&self.lists),
            deletes: value(&self.deletes),
            bytes_read: value(&self.bytes_read),
            bytes_written: value(&self.bytes_written),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::RunStore;

    #[tokio::test]
    async fn every_request_is_counted_with_its_bytes() {
        let run = RunStore::in_memory();
        run.put("a", Bytes::from_static(b"abc")).await.unwrap();
        run.put_create("b", Bytes::from_static(b"de")).await.unwrap();
        run.get("a").await.unwrap();
        assert!(run.exists("b").await.unwrap());
        assert_eq!(run.list("").await.unwrap().len(), 2);
        run.delete("a").await.unwrap();
        let expected = StoreUsage {
            reads: 2,
            writes: 2,
            lists: 1,
            deletes: 1,
            bytes_read: 3,
            bytes_written: 5,
        };
        assert_eq!(run.clone().usage(), expected);
    }
}
