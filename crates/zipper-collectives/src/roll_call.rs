//! The roll call: when a collective fails, the ranks tell each other through the store where they were, so that the error
//! names those who had not come.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use zipper_types::Rank;

use crate::ffi::RawStore;
use crate::store::Store;

/// How long a rank waits for the others to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How much longer it waits for a store that does not answer.
const GRACE: Duration = Duration::from_secs(1);

/// Where the ranks of a generation say where they were when a collective failed. One for all groups of a generation.
#[derive(Clone)]
pub struct RollCall {
    store: Arc<RawStore>,
}

/// Who had come to a collective that failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attendance {
    /// Ranks that had come, this one among them, with where they were.
    pub(crate) arrived: Vec<(Rank, String)>,
    /// Ranks that had not.
    pub(crate) missing: Vec<Rank>,
    /// The store itself did not answer.
    pub(crate) store_lost: bool,
}

impl RollCall {
    /// A roll call in a generation's own store.
    ///
    /// # Errors
    /// [`crate::CollectiveError`] if the store cannot be used.
    pub fn new(store: &Store) -> Result<Self, crate::CollectiveError> {
        let store = store.prefix("roll-call")?;
        Ok(Self {
            store: Arc::new(store.raw),
        })
    }

    /// Says where `rank` was, and asks for all `members`.
    ///
    /// Takes up to four seconds. The questions are asked by a thread of their own, which is left behind if the store
    /// never answers.
    pub(crate) fn call(&self, rank: Rank, members: &[Rank], place: &str) -> Attendance {
        let (answers, inbox) = mpsc::channel();
        let (store, place, members) = (Arc::clone(&self.store), place.to_owned(), members.to_vec());
        let asked = members.clone();
        let own_place = place.clone();
        thread::spawn(move || {
            if store.set(&rank.to_string(), &place).is_err() {
                return;
            }
            let began = Instant::now();
            for member in members {
                if member == rank {
                    continue;
                }
                let patience = PATIENCE.saturating_sub(began.elapsed());
                // Even without patience left an answer that is there is taken.
                let answer = store.get(&member.to_string(), patience.max(Duration::from_millis(100)));
                if answers.send((member, answer.ok())).is_err() {
                    return;
                }
            }
        });
        let mut attendance = Attendance {
            arrived: vec![(rank, own_place)],
            ..Attendance::default()
        };
        let deadline = Instant::now() + PATIENCE + GRACE;
        for _ in 1..asked.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            match inbox.recv_timeout(left) {
                Ok((member, Some(place))) => attendance.arrived.push((member, place)),
                Ok((_, None)) => {}
                Err(_) => {
                    attendance.store_lost = true;
                    break;
                }
            }
        }
        attendance.arrived.sort();
        attendance.missing = asked
            .into_iter()
            .filter(|member| attendance.arrived.iter().all(|(arrived, _)| arrived != member))
            .collect();
        attendance
    }
}
