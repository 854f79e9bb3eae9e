//! Writes what the coordinator decides, in order, beside it: the state never waits for the run's store.
//!
//! What cannot be written is tried again for as long as the coordinator lives; how long that has lasted is told to the state,
//! which raises the alarm and ends the run when it lasts too long. Before each write the lease is checked: a coordinator that
//! was cut off writes nothing any more.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};
use zipper_checkpoint::lease::{Lease, LeaseLost};
use zipper_checkpoint::{CheckpointError, ErrorKind, Manifest, RunStore, layout};
use zipper_config::RunConfig;
use zipper_types::{Advised, Generation, Step};

use crate::clock::Clock;
use crate::evaluation::{self, Scored};
use crate::journal::JournalEntry;
use crate::schedule;
use crate::seeded::{self, Bug};
use crate::state::{Decoded, Event, Trouble};

/// First pause after a failed write; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Something to write.
pub(super) enum Work {
    /// The journal's next entry, and what becomes true when it is written.
    Note(Box<JournalEntry>, Option<Box<Event>>),
    /// A checkpoint's manifest.
    Publish(Manifest),
    /// Checkpoints to delete, and leftovers before the newest one.
    Retire(Vec<Step>, Step),
    /// `metrics/train.jsonl`; of several that wait only the newest is written.
    Metrics(Bytes),
    /// An evaluation.
    Evaluation(Box<Scored>, Vec<Decoded>),
    /// The table of results, made of the evaluations that were written.
    Table(Box<RunConfig>),
    /// Answer when everything before is written.
    Flush(oneshot::Sender<()>),
}

impl Work {
    /// Reserves numbers of generations up to `reserved` for the coordinator with claim `epoch`. The state may use them when that is
    /// written (GEN-2).
    pub(super) fn reserve(reserved: Generation, epoch: u64, clock: &Clock) -> Self {
        let entry = JournalEntry::Coordinator {
            epoch,
            reserved,
            at: clock.text(),
        };
        Self::Note(Box::new(entry), Some(Box::new(Event::Reserved(reserved))))
    }
}

/// What the scribe tells the owner of the state.
pub(super) enum Told {
    /// Something happened that the state is to know.
    Event(Box<Event>),
    /// Another coordinator has the run.
    Fenced(String),
    /// The journal has an entry that was not there when this coordinator read it.
    Behind(String),
}

/// The task that writes.
pub(super) struct Scribe {
    store: RunStore,
    lease: Arc<Lease>,
    /// Number of the journal's next entry.
    sequence: u64,
    inbox: mpsc::UnboundedReceiver<Work>,
    told: mpsc::UnboundedSender<Told>,
    queue: VecDeque<Work>,
    troubled_since: Option<Instant>,
}

/// Why something was not written.
enum Failure {
    /// Later it may be.
    Later(String),
    /// Never.
    Never(String),
    /// Not by this coordinator: what it tells before it ends.
    Ends(Told),
}

impl Scribe {
    pub(super) fn new(
        store: RunStore,
        lease: Arc<Lease>,
        sequence: u64,
        inbox: mpsc::UnboundedReceiver<Work>,
        told: mpsc::UnboundedSender<Told>,
    ) -> Self {
        Self {
            store,
            lease,
            sequence,
            inbox,
            told,
            queue: VecDeque::new(),
            troubled_since: None,
        }
    }

    /// Writes until nobody has anything more to write, or the lease is lost.
    pub(super) async fn run(mut self) {
        loop {
            if self.queue.is_empty() {
                match self.inbox.recv().await {
                    Some(work) => self.queue.push_back(work),
                    None => return,
                }
            }
            self.gather();
            let Some(work) = self.queue.pop_front() else {
                continue;
            };
            if let Err(told) = self.write(work).await {
                self.tell(told);
                return;
            }
        }
    }

    /// Takes in what waits, the metrics only once.
    fn gather(&mut self) {
        while let Ok(work) = self.inbox.try_recv() {
            if matches!(work, Work::Metrics(_)) {
                self.queue.retain(|waiting| !matches!(waiting, Work::Metrics(_)));
            }
            self.queue.push_back(work);
        }
    }

    /// Tries until it succeeds, or never will.
    async fn write(&mut self, work: Work) -> Result<(), Told> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.try_write(&work).await {
                Ok(()) => {
                    if self.troubled_since.take().is_some() {
                        self.tell(Told::Event(Box::new(Event::StoreTrouble(None))));
                    }
                    self.done(work);
                    return Ok(());
                }
                Err(Failure::Ends(told)) => return Err(told),
                Err(Failure::Never(message)) => {
                    tracing::error!("{message}");
                    if let Work::Publish(manifest) = work {
                        let error = Some(message);
                        let step = manifest.step;
                        self.tell(Told::Event(Box::new(Event::Published { step, error })));
                    }
                    return Ok(());
                }
                Err(Failure::Later(message)) => {
                    let lasting = self.troubled_since.get_or_insert_with(Instant::now).elapsed();
                    tracing::warn!("{message}; trying again");
                    let trouble = Some(Trouble { lasting, message });
                    self.tell(Told::Event(Box::new(Event::StoreTrouble(trouble))));
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    self.gather();
                }
            }
        }
    }

    async fn try_write(&mut self, work: &Work) -> Result<(), Failure> {
        if !matches!(work, Work::Flush(_)) && !seeded::is_planted(Bug::UncheckedLease) {
            self.lease.check().await.map_err(lost)?;
        }
        let checkpoints = self.store.checkpoints();
        match work {
            Work::Note(entry, _) => match self.store.journal().append(self.sequence, entry).await {
                Ok(()) => {
                    self.sequence += 1;
                    Ok(())
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    Err(self.number_taken(&error).await)
                }
                Err(error) => Err(classify(error)),
            },
            Work::Publish(manifest) => match checkpoints.publish(manifest).await {
                // Another generation has published this step: one checkpoint of it is enough.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    tracing::info!("{error}");
                    Ok(())
                }
                result => result.map_err(classify),
            },
            Work::Retire(steps, newest) => {
                for &step in steps {
                    checkpoints.remove(step).await.map_err(classify)?;
                }
                let collected = checkpoints.collect(*newest).await.map_err(classify)?;
                if collected.objects + collected.uploads > 0 {
                    tracing::info!(
                        "removed {} objects ({} bytes) and {} interrupted uploads of checkpoints that were never finished",
                        collected.objects,
                        collected.bytes,
                        collected.uploads
                    );
                }
                Ok(())
            }
            Work::Metrics(text) => {
                let stored = self.store.put(layout::TRAIN_METRICS, text.clone()).await;
                stored.map_err(classify)
            }
            Work::Evaluation(scored, utterances) => {
                let written = scored.write(&self.store, utterances).await;
                written.map_err(classify)
            }
            Work::Table(config) => {
                let last_step = schedule::stages(config).last_step();
                let written = evaluation::write_table(&self.store, config, last_step).await;
                written.map(drop).map_err(classify)
            }
            Work::Flush(_) => Ok(()),
        }
    }

    /// Why the journal's next number is taken. Either another coordinator has the run, or the last write of the one before was
    /// on its way when it ended, and has arrived since this one read the journal: then that has to be read again.
    async fn number_taken(&self, error: &CheckpointError) -> Failure {
        match self.lease.renew().await {
            Ok(()) => Failure::Ends(Told::Behind(format!(
                "the coordinator before this one has written to the journal meanwhile: {error}"
            ))),
            Err(superseded) => lost(superseded),
        }
    }

    fn done(&self, work: Work) {
        match work {
            Work::Note(_, Some(event)) => self.tell(Told::Event(event)),
            Work::Publish(manifest) => {
                let step = manifest.step;
                self.tell(Told::Event(Box::new(Event::Published { step, error: None })));
            }
            Work::Flush(done) => {
                // Nobody waits any more if that took too long.
                let _ = done.send(());
            }
            _ => {}
        }
    }

    fn tell(&self, told: Told) {
        // Without an owner the coordinator is ending.
        let _ = self.told.send(told);
    }
}

fn lost(lost: LeaseLost) -> Failure {
    match lost {
        LeaseLost::Store(error) => classify(error),
        lost @ LeaseLost::Superseded { .. } => Failure::Ends(Told::Fenced(lost.to_string())),
    }
}

fn classify(error: CheckpointError) -> Failure {
    let later = error.is_retryable();
    let message = format!("{:#}", anyhow::Error::new(error));
    if later {
        Failure::Later(message)
    } else {
        Failure::Never(message)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use async_trait::async_trait;
    use zipper_checkpoint::FORMAT_VERSION;
    use zipper_checkpoint::lease::{Holder, LeaseOptions};
    use zipper_simstore::{Backing, Faults, FaultyStore, Request, RequestKind, Switch, faults};
    use zipper_types::{Stage, WorldSize};

    use super::*;

    /// The first request to the journal is lost, and no other one.
    #[derive(Default)]
    struct OneEntryLost(AtomicBool);

    #[async_trait]
    impl Faults for OneEntryLost {
        async fn before(&self, request: &Request) -> object_store::Result<()> {
            if request.path.starts_with("journal/") && !self.0.swap(true, Ordering::Relaxed) {
                return Err(faults::lost("the connection broke"));
            }
            Ok(())
        }
    }

    fn view(backing: &Arc<Backing>, faults: Arc<dyn Faults>) -> RunStore {
        RunStore::over(
            Arc::new(FaultyStore::new(Arc::clone(backing), faults)),
            "test://run",
        )
    }

    /// The claim of process `pid`; `supersede` is that of one that is known to have ended.
    pub(crate) async fn claim(
        store: &RunStore,
        pid: u32,
        ttl: Duration,
        supersede: Option<u64>,
    ) -> Arc<Lease> {
        let holder = Holder {
            host: "host".to_owned(),
            pid,
            since: "2026-01-02T03:04:05Z".to_owned(),
            address: "http://127.0.0.1:1".to_owned(),
        };
        let claimed = Lease::acquire(store, holder, LeaseOptions { ttl }, supersede).await;
        let claimed = claimed.expect("the store answers");
        Arc::new(claimed.expect("nobody has the run"))
    }

    fn note() -> Work {
        Work::reserve(Generation(8), 1, &Clock::system())
    }

    fn metrics(text: &'static str) -> Work {
        Work::Metrics(Bytes::from_static(text.as_bytes()))
    }

    struct Desk {
        works: mpsc::UnboundedSender<Work>,
        telling: mpsc::UnboundedReceiver<Told>,
        scribe: Scribe,
    }

    fn desk(store: &RunStore, lease: &Arc<Lease>) -> Desk {
        let (works, inbox) = mpsc::unbounded_channel();
        let (told, telling) = mpsc::unbounded_channel();
        let scribe = Scribe::new(store.clone(), Arc::clone(lease), 0, inbox, told);
        Desk {
            works,
            telling,
            scribe,
        }
    }

    impl Desk {
        fn with(self, works: impl IntoIterator<Item = Work>) -> Self {
            for work in works {
                assert!(self.works.send(work).is_ok(), "the scribe listens");
            }
            self
        }

        /// Writes everything; what was told.
        async fn done(self) -> Vec<Told> {
            let Self {
                works,
                mut telling,
                scribe,
            } = self;
            drop(works);
            scribe.run().await;
            let mut told = Vec::new();
            while let Some(word) = telling.recv().await {
                told.push(word);
            }
            told
        }
    }

    /// Goal: metrics that were overtaken while they waited are not written, and nothing else is left out.
    #[tokio::test]
    async fn of_waiting_metrics_only_the_newest_are_written() {
        let backing = Backing::new();
        let faulty = Arc::new(FaultyStore::new(
            Arc::clone(&backing),
            Arc::new(Switch::default()),
        ));
        let store = RunStore::over(faulty.clone(), "test://run");
        let lease = claim(&store, 1, Duration::from_hours(1), None).await;
        let works = [metrics("1"), note(), metrics("1, 2"), note(), metrics("1, 2, 3")];
        desk(&store, &lease).with(works).done().await;
        let requests = faulty.requests();
        let written = requests
            .iter()
            .filter(|request| request.kind == RequestKind::Put && request.path == layout::TRAIN_METRICS);
        assert_eq!(written.count(), 1);
        let text = store.get(layout::TRAIN_METRICS).await.expect("it was written");
        assert_eq!(text, "1, 2, 3");
        let entries = store.journal().read_all::<JournalEntry>().await;
        assert_eq!(entries.expect("they are readable").len(), 2);
    }

    /// Goal: a store that is away is asked ever more rarely, up to every ten seconds; how long that lasts is told, and when it is over.
    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_away_is_asked_ever_more_rarely() {
        let backing = Backing::new();
        let switch = Arc::new(Switch::default());
        let store = view(&backing, switch.clone());
        let lease = claim(&store, 1, Duration::from_hours(24), None).await;
        switch.set_away(true);
        let mut desk = desk(&store, &lease).with([metrics("1")]);
        let writing = tokio::spawn(desk.scribe.run());
        let mut times = Vec::new();
        while times.len() < 9 {
            match desk.telling.recv().await {
                Some(Told::Event(event)) => match *event {
                    Event::StoreTrouble(Some(trouble)) => times.push(trouble.lasting),
                    other => panic!("it tells {other:?}"),
                },
                _ => panic!("it tells of nothing else"),
            }
        }
        let pauses: Vec<u128> = times
            .windows(2)
            .map(|pair| pair[1].saturating_sub(pair[0]).as_millis() / 10 * 10)
            .collect();
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
        switch.set_away(false);
        drop(desk.works);
        writing.await.expect("the scribe does not panic");
        let Some(Told::Event(event)) = desk.telling.recv().await else {
            panic!("it tells that it is over");
        };
        assert!(matches!(*event, Event::StoreTrouble(None)), "{event:?}");
        assert!(desk.telling.recv().await.is_none(), "and nothing more");
        assert_eq!(
            store.get(layout::TRAIN_METRICS).await.expect("it was written"),
            "1"
        );
    }

    /// Goal: who has lost the run, and has not heard of it yet, writes nothing; who only waits for the end of what was written
    /// before gets an answer all the same.
    #[tokio::test(start_paused = true)]
    async fn who_has_lost_the_run_writes_nothing() {
        let store = RunStore::in_memory();
        let ttl = Duration::from_secs(15);
        let lease = claim(&store, 1, ttl, None).await;
        claim(&store, 2, ttl, Some(1)).await;
        sleep(ttl).await;
        let (done, answer) = oneshot::channel();
        let works = [Work::Flush(done), metrics("1"), note()];
        let told = desk(&store, &lease).with(works).done().await;
        answer.await.expect("it is answered");
        assert!(
            matches!(told.as_slice(), [Told::Fenced(_)]),
            "{} words",
            told.len()
        );
        let written = store.get_if_there(layout::TRAIN_METRICS).await;
        assert_eq!(written.expect("the store answers"), None);
    }

    /// Goal: an entry that was lost on its way is written again, and is no sign of another coordinator.
    #[tokio::test(start_paused = true)]
    async fn a_lost_entry_is_written_again() {
        let store = view(&Backing::new(), Arc::new(OneEntryLost::default()));
        let lease = claim(&store, 1, Duration::from_hours(1), None).await;
        let told = desk(&store, &lease).with([note(), note()]).done().await;
        let told: Vec<String> = told
            .into_iter()
            .map(|told| match told {
                Told::Event(event) => match *event {
                    Event::StoreTrouble(trouble) => format!("trouble: {}", trouble.is_some()),
                    Event::Reserved(reserved) => format!("reserved {reserved}"),
                    other => format!("{other:?}"),
                },
                Told::Fenced(message) | Told::Behind(message) => message,
            })
            .collect();
        assert_eq!(
            told,
            ["trouble: true", "trouble: false", "reserved 8", "reserved 8"]
        );
        let entries = store.journal().read_all::<JournalEntry>().await;
        let numbers: Vec<u64> = entries
            .expect("they are readable")
            .iter()
            .map(|(number, _)| *number)
            .collect();
        assert_eq!(numbers, [0, 1]);
    }

    /// Goal: a step that another generation has published is published; one without its parts never will be.
    #[tokio::test]
    async fn a_step_is_published_once() {
        let store = RunStore::in_memory();
        let lease = claim(&store, 1, Duration::from_hours(1), None).await;
        let checkpoints = store.checkpoints();
        let part = checkpoints
            .put_part(Step(2), "", "part0", Bytes::from_static(b"weights"))
            .await
            .expect("the store answers");
        let manifest = |generation, step| Manifest {
            format_version: FORMAT_VERSION,
            step,
            stage: Stage::Align,
            created: "2026-01-02T03:04:05Z".to_owned(),
            world_size: WorldSize(1),
            generation,
            parts: vec![part.clone()],
        };
        let works = [
            Work::Publish(manifest(Generation(1), Step(2))),
            Work::Publish(manifest(Generation(2), Step(2))),
            Work::Publish(manifest(Generation(2), Step(3))),
        ];
        let told = desk(&store, &lease).with(works).done().await;
        let published: Vec<(Step, bool)> = told
            .into_iter()
            .map(|told| match told {
                Told::Event(event) => match *event {
                    Event::Published { step, error } => (step, error.is_none()),
                    other => panic!("it tells {other:?}"),
                },
                Told::Fenced(message) | Told::Behind(message) => panic!("{message}"),
            })
            .collect();
        assert_eq!(published, [(Step(2), true), (Step(2), true), (Step(3), false)]);
    }
}
