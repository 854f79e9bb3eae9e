//! The flight recorder: the last collectives of a process, kept for the day when one of them fails.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

/// How many collectives are kept.
const KEPT: usize = 200;

/// Records the collectives of all groups of a process. Clones share one record.
#[derive(Debug, Clone)]
pub struct FlightRecorder {
    began: Instant,
    records: Arc<Mutex<VecDeque<FlightRecord>>>,
}

/// One collective as one rank saw it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FlightRecord {
    /// Name of the process group.
    pub group: String,
    /// Its number among the collectives of that group, from 1; the same on all ranks.
    pub sequence: u64,
    /// `all_reduce`, `broadcast`, `all_gather`, `barrier`.
    pub operation: &'static str,
    /// What it was for.
    pub what: String,
    /// Bytes of this rank's tensor.
    pub bytes: u64,
    /// Element type and shape of this rank's tensor, `Float [2, 3]`; empty for a barrier.
    pub tensor: String,
    /// Seconds after the recorder was made; absent while it waits for the backward pass to get there.
    pub started: Option<f64>,
    /// Likewise; absent while it is under way or if it failed.
    pub finished: Option<f64>,
    /// Why it failed.
    pub error: Option<String>,
}

/// The place of a record, for changing it later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RecordId {
    group: String,
    sequence: u64,
}

impl Default for FlightRecorder {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            records: Arc::default(),
        }
    }
}

impl FlightRecorder {
    /// All records that are kept, oldest first.
    #[must_use]
    pub fn records(&self) -> Vec<FlightRecord> {
        self.lock().iter().cloned().collect()
    }

    /// The last collective that was begun, if any was, and how long ago.
    #[must_use]
    pub fn latest(&self) -> Option<(FlightRecord, Duration)> {
        let records = self.lock();
        let latest = records.iter().rev().find(|record| record.started.is_some())?;
        let age = self.now() - latest.started.unwrap_or_default();
        Some((latest.clone(), Duration::from_secs_f64(age.max(0.0))))
    }

    /// Seconds since the recorder was made.
    pub(crate) fn now(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    pub(crate) fn add(&self, record: FlightRecord) -> RecordId {
        let id = RecordId {
            group: record.group.clone(),
            sequence: record.sequence,
        };
        let mut records = self.lock();
        if records.len() == KEPT {
            records.pop_front();
        }
        records.push_back(record);
        id
    }

    pub(crate) fn change(&self, id: &RecordId, change: impl FnOnce(&mut FlightRecord)) {
        let mut records = self.lock();
        let found = records
            .iter_mut()
            .rev()
            .find(|record| record.sequence == id.sequence && record.group == id.group);
        if let Some(record) = found {
            change(record);
        }
    }

    /// Operation, purpose and number of a record that was added.
    pub(crate) fn identify(&self, id: &RecordId) -> (&'static str, String, u64) {
        let mut found = ("collective", String::new(), id.sequence);
        self.change(id, |record| {
            found = (record.operation, record.what.clone(), record.sequence);
        });
        found
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<FlightRecord>> {
        // A record is whole whenever the lock is free.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(sequence: u64, started: Option<f64>) -> FlightRecord {
        FlightRecord {
            group: "world".to_owned(),
            sequence,
            operation: "all_reduce",
            what: format!("step {sequence}"),
            bytes: 4,
            tensor: "Float [1]".to_owned(),
            started,
            finished: None,
            error: None,
        }
    }

    /// Goal: the oldest records go, clones see the same, and what is not begun yet is not the latest.
    #[test]
    fn the_last_two_hundred_are_kept() {
        let recorder = FlightRecorder::default();
        assert!(recorder.latest().is_none());
        let clone = recorder.clone();
        for sequence in 1..=250 {
            clone.add(record(sequence, Some(0.0)));
        }
        let waiting = recorder.add(record(251, None));
        let records = recorder.records();
        assert_eq!((records.len(), records[0].sequence), (KEPT, 52));
        assert_eq!(recorder.latest().map(|(record, _)| record.sequence), Some(250));
        recorder.change(&waiting, |record| record.started = Some(0.0));
        assert_eq!(clone.latest().map(|(record, _)| record.sequence), Some(251));
    }
}
