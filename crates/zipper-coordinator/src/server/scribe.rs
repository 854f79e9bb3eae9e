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
use zipper_types::{Generation, Step};

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
    let kind = error.kind();
    let message = format!("{:#}", anyhow::Error::new(error));
    match kind {
        ErrorKind::Damaged | ErrorKind::NotFound | ErrorKind::AlreadyExists | ErrorKind::Config => {
            Failure::Never(message)
        }
        _ => Failure::Later(message),
    }
}
