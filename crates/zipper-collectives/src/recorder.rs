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
    /// `all_reduce`, `broadcast`, `all_gather`, `exchange`, `barrier`.
    pub operation: &'static str,
    /// What it was for.
    pub what: String,
    /// Bytes of this rank's tensor; 0 for an exchange and a barrier.
    pub bytes: u64,
    /// Element type and shape of this rank's tensor, `Float [2, 3]`; empty for an exchange and a barrier.
    pub tensor: String,
    /// Seconds after the recorder was made; absent while it waits for the backward pass to get there.
    pub started: Option<f64>,
    /// Likewise; absent while it is under way or if it failed.
    pub finished: Option<f64>,
    /// Why it failed.
    pub error: Option<String>,
}

/// Which collective a record is of: for changing the record later, and for telling of it when it is kept no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RecordId {
    group: String,
    pub(crate) sequence: u64,
    pub(crate) operation: &'static str,
    pub(crate) what: String,
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

    /// The collective that this process is in, and for how long: the oldest that has not ended. If all have, the last that
    /// was begun.
    #[must_use]
    pub fn latest(&self) -> Option<(FlightRecord, Duration)> {
        let records = self.lock();
        let mut begun = records.iter().filter(|record| record.started.is_some());
        let under_way = |record: &&FlightRecord| record.finished.is_none() && record.error.is_none();
        let latest = begun.clone().find(under_way).or_else(|| begun.next_back())?;
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
            operation: record.operation,
            what: record.what.clone(),
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

    /// Goal: the oldest records go, clones see the same, and what is not begun yet is not the latest. Of those under way
    /// the oldest is: the others wait for it.
    #[test]
    fn the_last_two_hundred_are_kept() {
        let recorder = FlightRecorder::default();
        assert!(recorder.latest().is_none());
        let clone = recorder.clone();
        for sequence in 1..=250 {
            let id = clone.add(record(sequence, Some(0.0)));
            clone.change(&id, |record| record.finished = Some(0.0));
        }
        let waiting = recorder.add(record(251, None));
        let records = recorder.records();
        assert_eq!((records.len(), records[0].sequence), (KEPT, 52));
        assert_eq!(recorder.latest().map(|(record, _)| record.sequence), Some(250));
        recorder.change(&waiting, |record| record.started = Some(0.0));
        clone.add(record(252, Some(0.0)));
        assert_eq!(clone.latest().map(|(record, _)| record.sequence), Some(251));
        recorder.change(&waiting, |record| record.error = Some("lost".to_owned()));
        assert_eq!(clone.latest().map(|(record, _)| record.sequence), Some(252));
    }
}
