//! What watchers are told: the newest of it is kept, so that a late one catches up and a long run does not fill the memory.

use std::collections::VecDeque;

use tokio::sync::watch;
use zipper_proto::v1::watch_response::Event as Watched;

/// Events that are kept. Whoever is further behind goes on with the oldest of them.
const KEPT: usize = 1024;

/// The newest events, and how many there were before them.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    forgotten: usize,
    kept: VecDeque<Watched>,
}

impl Recent {
    /// How many events there were in all.
    pub(crate) fn count(&self) -> usize {
        self.forgotten + self.kept.len()
    }

    /// What came after the first `seen` events, as far as it is kept.
    pub(crate) fn after(&self, seen: usize) -> Vec<Watched> {
        let known = seen.saturating_sub(self.forgotten);
        self.kept.iter().skip(known).cloned().collect()
    }

    fn add(&mut self, event: Watched) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
            self.forgotten += 1;
        }
        self.kept.push_back(event);
    }
}

/// Where watchers are told.
#[derive(Debug, Clone, Default)]
pub(super) struct History(watch::Sender<Recent>);

impl History {
    /// Tells watchers, unless the run has ended: the verdict is the last thing that they are told.
    pub(super) fn add(&self, event: Watched) {
        self.0.send_if_modified(|told| {
            let ended = matches!(told.kept.back(), Some(Watched::Verdict(_)));
            if !ended {
                told.add(event);
            }
            !ended
        });
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Recent> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use zipper_proto::v1;

    use super::*;

    fn step(step: u64) -> Watched {
        Watched::Step(v1::StepMetrics {
            step,
            ..v1::StepMetrics::default()
        })
    }

    /// Goal: a run of many steps keeps a bounded number of events, and who has seen some gets exactly the others.
    #[test]
    fn the_newest_events_are_kept() {
        let history = History::default();
        let events = 2 * KEPT as u64 + 3;
        (0..events).for_each(|number| history.add(step(number)));
        let told = history.subscribe();
        let told = told.borrow();
        assert_eq!(told.count() as u64, events);
        assert_eq!(told.after(0).len(), KEPT);
        assert_eq!(told.after(0)[0], step(events - KEPT as u64));
        assert_eq!(told.after(told.count() - 2), [step(events - 2), step(events - 1)]);
        assert!(told.after(told.count()).is_empty());
    }

    /// Goal: whoever has heard the verdict has heard everything.
    #[test]
    fn nothing_is_told_after_the_verdict() {
        let history = History::default();
        let mut told = history.subscribe();
        let mut tell = |event| {
            history.add(event);
            let woken = told.has_changed().expect("the history is there");
            (woken, told.borrow_and_update().count())
        };
        assert_eq!(tell(step(1)), (true, 1));
        assert_eq!(tell(Watched::Verdict(v1::Verdict::default())), (true, 2));
        assert_eq!(tell(step(2)), (false, 2));
    }
}
