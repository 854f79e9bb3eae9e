//! Shows the run to people and machines while it is coordinated: the status page, `metrics/status.json`, TensorBoard's files.
//!
//! It listens to what watchers are told and looks at the state once a second. It never holds anything up: what it cannot
//! write it logs and tries again later, and a page that cannot be served is no reason to end a run.

mod recording;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use zipper_checkpoint::RunStore;
use zipper_checkpoint::lease::Lease;
use zipper_config::RunConfig;
use zipper_proto::v1;
use zipper_proto::v1::watch_response::Event as Watched;
use zipper_tls::Refusals;
use zipper_watch::page::{self, Access, Shown};
use zipper_watch::picture::{Member, Phase, Times};
use zipper_watch::{Past, Picture, Series, now_text};

use crate::server::{Recent, Watcher};
use crate::state::{Accounts, Overview};
use recording::Recording;

/// How often the state is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long the last pictures may take to be written and sent.
const FAREWELL: Duration = Duration::from_secs(3);

/// What the page is served on.
pub struct Page {
    listener: TcpListener,
    access: Access,
    address: SocketAddr,
}

impl Page {
    /// Listens on `address`; outside loopback only whoever has `token` may see the page.
    ///
    /// # Errors
    /// A sentence, if that is not possible.
    pub async fn listen(address: SocketAddr, token: Option<&str>) -> Result<(Self, SocketAddr), String> {
        let access = Access::new(address, token)?;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|error| format!("the status page cannot listen on {address}: {error}"))?;
        let address = listener
            .local_addr()
            .map_err(|error| format!("the status page has no address: {error}"))?;
        let page = Self {
            listener,
            access,
            address,
        };
        Ok((page, address))
    }
}

/// Someone who watches a run for others.
pub(crate) struct Watching {
    task: JoinHandle<()>,
    end: oneshot::Sender<()>,
}

/// What is to be shown, and where.
pub(crate) struct Assignment {
    store: RunStore,
    config: RunConfig,
    lease: Arc<Lease>,
    adopts: bool,
    page: Option<Page>,
    refusals: Refusals,
}

impl Assignment {
    /// This run, on `page`; `adopts` says that this coordinator goes on with what a crashed one left.
    pub(crate) fn new(
        store: &RunStore,
        config: &RunConfig,
        lease: &Arc<Lease>,
        adopts: bool,
        page: Option<Page>,
        refusals: Refusals,
    ) -> Self {
        Self {
            store: store.clone(),
            config: config.clone(),
            lease: Arc::clone(lease),
            adopts,
            page,
            refusals,
        }
    }
}

impl Watching {
    /// Begins to watch.
    pub(crate) fn start(assignment: Assignment, watcher: Watcher) -> Self {
        let (end, ended) = oneshot::channel();
        let task = tokio::spawn(watch(assignment, watcher, ended));
        Self { task, end }
    }

    /// The run is over: shows how it ended, and ends.
    pub(crate) async fn end(self) {
        // One that has failed has ended already.
        let _ = self.end.send(());
        if tokio::time::timeout(FAREWELL, self.task).await.is_err() {
            tracing::warn!("the last picture of the run was not written within {FAREWELL:?}");
        }
    }
}

async fn watch(assignment: Assignment, watcher: Watcher, ended: oneshot::Receiver<()>) {
    let Assignment {
        store,
        config,
        lease,
        adopts,
        page,
        refusals,
    } = assignment;
    let picture = Picture::of(&config, store.url());
    let shown = Shown::new(store.clone(), picture, Series::new(&config.data.languages));
    let page_url = page.as_ref().map(|page| format!("http://{}/", page.address));
    let server = page.map(|page| {
        let shown = shown.clone();
        tokio::spawn(async move {
            if let Err(error) = page::serve(page.listener, shown, page.access).await {
                tracing::warn!("the status page is not served any more: {error}");
            }
        })
    });
    remember(&store, &config, &shown, &watcher, adopts).await;
    shown.paint(|picture| {
        picture.began(lease.epoch(), &now_text());
        picture.coordinator.page = page_url;
    });
    let recording = Recording::new(&store, lease);
    let (over, stop_recording) = oneshot::channel();
    let recording = tokio::spawn(recording.run(config.watching.tensorboard, shown.clone(), stop_recording));
    show(&shown, &watcher, &refusals, ended).await;
    shown.close();
    // A recorder that has failed has said so.
    let _ = over.send(());
    let _ = recording.await;
    if let Some(server) = server {
        // Open pages take the last picture and go.
        let _ = server.await;
    }
}

/// Shows what happens until the run is over.
async fn show(shown: &Shown, watcher: &Watcher, refusals: &Refusals, mut ended: oneshot::Receiver<()>) {
    let mut unseen = Unseen::new(watcher.history());
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut members = v1::Membership::default();
    loop {
        tokio::select! {
            () = unseen.more() => unseen.show(shown),
            _ = ticks.tick() => {
                if let Some(overview) = watcher.overview().await {
                    let now = membership(&overview);
                    if now != members {
                        members = now;
                        watcher.tell(Watched::Membership(now));
                    }
                    shown.paint(|picture| {
                        look(picture, &overview);
                        picture.refused = refused(refusals);
                    });
                }
            }
            _ = &mut ended => break,
        }
    }
    unseen.show(shown);
}

/// Shows what an earlier coordinator left.
async fn remember(store: &RunStore, config: &RunConfig, shown: &Shown, watcher: &Watcher, adopts: bool) {
    let reached = watcher.overview().await.map(|overview| overview.step);
    let mut past = match Past::read(store, config).await {
        Ok(past) => past,
        Err(error) => {
            let why = zipper_cli::in_words(&error);
            tracing::warn!("what happened before cannot be shown: {why}");
            return;
        }
    };
    if !adopts {
        // Steps after the checkpoint that the run goes on from are made again.
        past.series.cut(reached.unwrap_or_default());
        past.picture.times_before = past.picture.times.clone();
    }
    past.show_latest();
    shown.replace(past.picture, past.series);
}

/// What watchers were told and is not shown yet.
struct Unseen {
    history: watch::Receiver<Recent>,
    shown: usize,
}

impl Unseen {
    fn new(history: watch::Receiver<Recent>) -> Self {
        Self { history, shown: 0 }
    }

    /// Waits until there is more.
    async fn more(&mut self) {
        let shown = self.shown;
        if self.history.wait_for(|told| told.count() > shown).await.is_err() {
            // Nobody tells anything any more; the end is told by others.
            std::future::pending::<()>().await;
        }
    }

    fn show(&mut self, shown: &Shown) {
        let events: Vec<Watched> = {
            let told = self.history.borrow_and_update();
            let new = told.after(self.shown);
            self.shown = told.count();
            new
        };
        let at = now_text();
        for event in &events {
            if let Watched::Step(metrics) = event {
                shown.step(metrics);
            }
            // That of the launch alone; the overview knows the others.
            if !matches!(event, Watched::Summary(_)) {
                shown.paint(|picture| picture.take(&at, event));
            }
        }
    }
}

/// How many connections were refused, by the reason.
fn refused(refusals: &Refusals) -> BTreeMap<String, u64> {
    let counts = refusals.counts().into_iter();
    counts
        .map(|(reason, count)| (reason.name().to_owned(), count))
        .collect()
}

fn membership(overview: &Overview) -> v1::Membership {
    let of = |counts: &BTreeMap<&'static str, u32>, name| counts.get(name).copied().unwrap_or_default();
    v1::Membership {
        nodes_healthy: of(&overview.nodes, "healthy"),
        nodes_silent: of(&overview.nodes, "silent"),
        nodes_left_out: of(&overview.nodes, "left_out"),
        nodes_missing: of(&overview.nodes, "missing"),
        workers_training: of(&overview.workers, "training"),
        workers_ready: of(&overview.workers, "ready"),
        workers_loading: of(&overview.workers, "loading"),
        workers_leaving: of(&overview.workers, "leaving"),
    }
}

/// Takes over what only the state knows.
fn look(picture: &mut Picture, overview: &Overview) {
    let named = |counts: &BTreeMap<&'static str, u32>| {
        let counts = counts.iter();
        counts
            .map(|(name, number)| ((*name).to_owned(), *number))
            .collect()
    };
    picture.workers = named(&overview.workers);
    picture.nodes = named(&overview.nodes);
    picture.generation = overview.generation.0;
    picture.world_size = overview.world_size.unwrap_or(picture.world_size);
    if overview.step.0 > picture.step {
        picture.reached(overview.step.0);
    }
    picture.members = overview
        .members
        .iter()
        .map(|seen| Member {
            worker: seen.worker.clone(),
            rank: seen.rank.map(|rank| rank.0),
            node: seen.node,
            hostname: seen.hostname.clone(),
            state: seen.state.to_owned(),
            step: seen.step.0,
            heard_seconds: seen.heard.as_secs_f64(),
            doing: seen.doing.clone(),
        })
        .collect();
    if overview.world_size.is_some() {
        if picture.phase == Phase::Starting {
            // Workers that a crashed coordinator left go on with what they do, of which nothing is told again.
            picture.phase = Phase::Training;
        }
        let owners = overview.banks.iter().map(|(first, last)| (first.0, last.0));
        let banks = picture.run.languages.iter().cloned().zip(owners).collect();
        picture.place(&banks);
    }
    picture
        .checkpoints
        .retain(|checkpoint| overview.kept.iter().any(|step| step.0 == checkpoint.step));
    picture.times = picture.times_before.plus(&times(&overview.accounts));
}

fn times(accounts: &Accounts) -> Times {
    Times {
        total_seconds: accounts.total().as_secs_f64(),
        productive_seconds: accounts.productive().as_secs_f64(),
        lost_seconds: accounts
            .lost()
            .map(|(activity, time)| (activity.name().to_owned(), time.as_secs_f64()))
            .collect(),
        losses: accounts.losses.into(),
        repeated_steps: accounts.repeated_steps,
    }
}

#[cfg(test)]
mod tests {
    use zipper_tls::Reason;
    use zipper_types::{Generation, Rank, Stage, Step};
    use zipper_watch::journal::Note;
    use zipper_watch::picture::Checkpoint;

    use super::*;
    use crate::journal::JournalEntry;
    use crate::schedule::{EvaluationSet, Planned};
    use crate::state::{Origin, Verdict};

    /// Goal: what the journal says is understood by those who show it, who read it in words of their own.
    #[test]
    fn the_journal_is_understood_by_those_who_show_it() {
        let at = || "2026-01-01T00:00:00Z".to_owned();
        let task = |planned| JournalEntry::Task {
            id: 1,
            planned,
            at: at(),
        };
        let entries = [
            JournalEntry::Coordinator {
                epoch: 1,
                reserved: Generation(8),
                at: at(),
            },
            JournalEntry::Generation {
                generation: Generation(2),
                seats: Vec::new(),
                banks: BTreeMap::new(),
                resume: Step(4),
                origin: Origin::Checkpoint,
                at: at(),
            },
            JournalEntry::Broken {
                generation: Generation(2),
                step: Step(5),
                reason: "a worker was lost".to_owned(),
                at: at(),
            },
            task(Planned::Train {
                stage: Stage::Align,
                from: Step(4),
                until: Step(9),
                ends_stage: true,
            }),
            task(Planned::Save {
                stage: Stage::Align,
                step: Step(9),
            }),
            task(Planned::Evaluate {
                set: EvaluationSet::Test("numbers".to_owned()),
                silenced: true,
                step: Step(9),
            }),
            JournalEntry::Checkpoint {
                step: Step(9),
                at: at(),
            },
            JournalEntry::End {
                verdict: Some(Verdict::Stopped("a signal".to_owned())),
                generation: Some(Generation(2)),
                at: at(),
            },
        ];
        for entry in entries {
            let text = serde_json::to_string(&entry).expect("an entry is JSON");
            let note: Note = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(note.at(), Some(at().as_str()), "{text}");
        }
    }

    fn overview() -> Overview {
        Overview {
            generation: Generation(3),
            world_size: Some(2),
            step: Step(7),
            workers: BTreeMap::from([("training", 2)]),
            nodes: BTreeMap::from([("healthy", 1)]),
            members: Vec::new(),
            banks: vec![(Rank(0), Rank(1))],
            kept: vec![Step(4), Step(6)],
            accounts: Accounts::default(),
        }
    }

    /// Goal: a coordinator that took a run over shows what it finds, and nothing that the picture knows better goes back.
    #[test]
    fn what_the_state_knows_is_shown() {
        let shown = |phase, step, overview: &Overview| {
            let checkpoints = [4, 5, 6].map(|step| Checkpoint {
                step,
                ..Checkpoint::default()
            });
            let mut picture = Picture {
                phase,
                step,
                checkpoints: checkpoints.into(),
                ..Picture::default()
            };
            picture.run.languages = vec!["en".to_owned()];
            look(&mut picture, overview);
            picture
        };
        let picture = shown(Phase::Starting, 5, &overview());
        assert_eq!((picture.phase, picture.step), (Phase::Training, 7));
        assert_eq!((picture.generation, picture.world_size), (3, 2));
        assert_eq!((picture.workers["training"], picture.nodes["healthy"]), (2, 1));
        assert_eq!(picture.banks[0].last_rank, 1);
        let kept: Vec<u64> = picture.checkpoints.iter().map(|one| one.step).collect();
        assert_eq!(kept, [4, 6]);

        let picture = shown(Phase::Evaluating, 8, &overview());
        assert_eq!((picture.phase, picture.step), (Phase::Evaluating, 8));
        let gathering = Overview {
            world_size: None,
            ..overview()
        };
        assert_eq!(shown(Phase::Starting, 5, &gathering).phase, Phase::Starting);
    }

    /// Goal: each reason has its name, those that nobody was refused for included.
    #[test]
    fn refusals_are_shown_by_their_reasons() {
        let expected = Reason::ALL.map(|reason| (reason.name().to_owned(), 0));
        assert_eq!(refused(&Refusals::default()), BTreeMap::from(expected));
    }
}
