//! The roll call: when a collective fails, the ranks tell each other through the store where they were, so that the error
//! names those who had not come.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use zipper_collectives_sys as sys;
use zipper_types::Rank;

use crate::ffi::{Failure, RawStore};
use crate::store::Store;

/// How long a rank waits for the others to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How much longer it waits for a store that does not answer.
const GRACE: Duration = Duration::from_secs(1);
/// Too short to wait for an answer over the network.
const MOMENT: Duration = Duration::from_millis(100);
/// How often a waiting rank looks whether it still has to.
const GLANCE: Duration = Duration::from_millis(20);

/// Where the ranks of a generation say where they were when a collective failed. One for all groups of a generation.
#[derive(Clone)]
pub struct RollCall {
    store: Arc<RawStore>,
}

/// Who had come to a collective that failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attendance {
    /// Ranks that had come, this one among them.
    pub(crate) arrived: Vec<Rank>,
    /// Ranks that had failed at another collective, and which.
    pub(crate) elsewhere: Vec<(Rank, String)>,
    /// Ranks that did not answer.
    pub(crate) missing: Vec<Rank>,
    /// The store itself did not answer: then nothing is known of others than rank 0, which serves it.
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

    /// Says where `rank` was, and asks for all `members`; nothing if `is_over` before they have answered: then it is known elsewhere
    /// that somebody is lost, and those who remain are waited for.
    ///
    /// Takes up to four seconds. The questions are asked by a thread of their own, which is left behind if the store
    /// never answers.
    pub(crate) fn call(
        &self,
        rank: Rank,
        members: &[Rank],
        place: &str,
        is_over: impl Fn() -> bool,
    ) -> Option<Attendance> {
        let (answers, inbox) = mpsc::channel();
        let others: Vec<Rank> = members.iter().copied().filter(|&member| member != rank).collect();
        let (store, own_place, asked) = (Arc::clone(&self.store), place.to_owned(), others.clone());
        thread::spawn(move || {
            if store.set(&rank.to_string(), &own_place).is_err() {
                return;
            }
            let deadline = Instant::now() + PATIENCE;
            for member in asked {
                // A store that fails, or an asker that has given up, ends the questions.
                let Ok(answer) = ask(&store, member, deadline) else {
                    return;
                };
                if answers.send((member, answer)).is_err() {
                    return;
                }
            }
        });
        let mut attendance = Attendance {
            arrived: vec![rank],
            ..Attendance::default()
        };
        let deadline = Instant::now() + PATIENCE + GRACE;
        for _ in &others {
            let Ok((member, answer)) = next_answer(&inbox, deadline, &is_over)? else {
                let server = members
                    .iter()
                    .copied()
                    .filter(|&member| member == Rank(0) && member != rank);
                return Some(Attendance {
                    arrived: vec![rank],
                    missing: server.collect(),
                    store_lost: true,
                    ..Attendance::default()
                });
            };
            match answer {
                Some(answer) if answer == place => attendance.arrived.push(member),
                Some(answer) => attendance.elsewhere.push((member, answer)),
                None => attendance.missing.push(member),
            }
        }
        attendance.arrived.sort();
        Some(attendance)
    }
}

/// What a rank says of itself, or that there is no answer by the deadline; nothing if `is_over` before.
fn next_answer<T>(
    inbox: &mpsc::Receiver<T>,
    deadline: Instant,
    is_over: &impl Fn() -> bool,
) -> Option<Result<T, RecvTimeoutError>> {
    loop {
        if is_over() {
            return None;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match inbox.recv_timeout(left.min(GLANCE)) {
            Err(RecvTimeoutError::Timeout) if left > GLANCE => {}
            answer => return Some(answer),
        }
    }
}

/// Where `member` says that it was; nothing if it has not said so by the deadline.
fn ask(store: &RawStore, member: Rank, deadline: Instant) -> Result<Option<String>, Failure> {
    let key = member.to_string();
    let mut patience = deadline.saturating_duration_since(Instant::now());
    if patience < MOMENT {
        // Without patience left, too, an answer that is there is taken.
        if !store.has(&key)? {
            return Ok(None);
        }
        patience = GRACE;
    }
    match store.get(&key, patience) {
        Ok(place) => Ok(Some(place)),
        // The store's own error is that it waited in vain; a store that has gone is an error of the network.
        Err(failure) if failure.status == sys::STORE => Ok(None),
        Err(failure) => Err(failure),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Goal: many ranks that do not answer cost no more time than one, and are not taken for a lost store; who answered
    /// counts also behind them, at the same place or elsewhere.
    #[test]
    fn many_ranks_may_be_missing() {
        let patience = Duration::from_secs(30);
        let (store, _) = Store::serve("127.0.0.1", patience).unwrap();
        let roll_call = RollCall::new(&store).unwrap();
        roll_call.store.set("58", "here").unwrap();
        roll_call.store.set("59", "elsewhere").unwrap();
        let members: Vec<Rank> = (0..60).map(Rank).collect();
        let attendance = roll_call.call(Rank(0), &members, "here", || false);
        let expected = Attendance {
            arrived: vec![Rank(0), Rank(58)],
            elsewhere: vec![(Rank(59), "elsewhere".to_owned())],
            missing: (1..58).map(Rank).collect(),
            store_lost: false,
        };
        assert_eq!(attendance, Some(expected));
    }

    /// Goal: a rank that is told that the generation is over does not wait for those who will not answer.
    #[test]
    fn it_ends_when_the_generation_is_over() {
        let patience = Duration::from_secs(30);
        let (store, _) = Store::serve("127.0.0.1", patience).unwrap();
        let roll_call = RollCall::new(&store).unwrap();
        let looks = Cell::new(0);
        let is_over = || {
            looks.set(looks.get() + 1);
            looks.get() > 3
        };
        assert_eq!(
            roll_call.call(Rank(0), &[Rank(0), Rank(1)], "here", is_over),
            None
        );
    }
}
