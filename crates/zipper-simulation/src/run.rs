//! One simulated run.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::RngSeed;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, sleep, sleep_until};
use zipper_checkpoint::layout;
use zipper_cli::ExitStatus;

use crate::checks;
use crate::faults::{Fault, Planned, plan};
use crate::invariants::ENDS;
use crate::launch::{Launch, Verdict};
use crate::node::Node;
use crate::truth::Violation;
use crate::world::{World, after, nodes};

/// Longest that a run may take, by the virtual clock.
const LIMIT: Duration = Duration::from_mins(30);
/// How long whoever looks after an agent takes to start another.
const RESTART: Duration = Duration::from_secs(1);
/// How long whoever is left after the end has to hear of it.
const FAREWELL: Duration = Duration::from_secs(30);

/// How a simulated run went.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// What did not hold.
    pub violations: Vec<Violation>,
    /// How it ended: `done`, or the first line of why not.
    pub ended: String,
    /// Virtual time.
    pub lasted: Duration,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// Coordinators that took the run over from another one.
    pub takeovers: u64,
    /// Generations that ended before their time.
    pub losses: u64,
    /// Generations that were formed.
    pub generations: u64,
    /// Checkpoints at the end, every byte of which was compared.
    pub checkpoints: u64,
    /// Hash of everything that happened and when.
    pub trace: String,
}

/// What goes wrong in the run of a seed.
#[must_use]
pub fn plan_of(seed: u64) -> Vec<Planned> {
    plan(seed, nodes(seed))
}

/// Simulates the run of a seed: the same one each time. With `told`, prints all that happens.
///
/// # Panics
/// If the runtime cannot be made.
#[must_use]
pub fn simulate(seed: u64, told: bool) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        // `select!` and `watch` choose by a random number whom they serve first.
        .rng_seed(RngSeed::from_bytes(&seed.to_le_bytes()))
        .build()
        .expect("a runtime needs nothing but memory");
    let local = LocalSet::new();
    runtime.block_on(local.run_until(run(seed, told)))
}

/// The launches of a run and its nodes.
struct Cast {
    world: Rc<World>,
    launches: RefCell<Vec<Rc<Launch>>>,
    nodes: Vec<Node>,
}

async fn run(seed: u64, told: bool) -> Outcome {
    let world = World::new(seed, told);
    let begun = Instant::now();
    prepare(&world).await;
    let cast = Rc::new(Cast {
        launches: RefCell::new(vec![Launch::start(&world, 0)]),
        nodes: (0..world.nodes).map(|number| Node::new(&world, number)).collect(),
        world: Rc::clone(&world),
    });
    for node in &cast.nodes {
        node.start();
    }
    let plan = plan_of(seed);
    let mut faults: BTreeMap<&'static str, u64> = BTreeMap::new();
    for planned in &plan {
        *faults.entry(planned.fault.kind()).or_default() += 1;
    }
    let causing = spawn_local(cause(Rc::clone(&cast), plan.clone(), begun));
    while !cast.is_over() && begun.elapsed() < LIMIT {
        sleep(Duration::from_millis(500)).await;
    }
    let lasted = begun.elapsed();
    causing.abort();
    sleep(FAREWELL).await;
    let history = checks::journal(&world).await;
    let ended = cast.ended(&plan);
    if ended == "done" {
        checks::last_checkpoint(&world).await;
    }
    let checkpoints = checks::checkpoints(&world).await;
    checks::metrics(&world, plan.is_empty() && world.is_peaceful()).await;
    let (trace, violations) = world.truth.outcome();
    Outcome {
        violations,
        ended,
        lasted,
        faults,
        takeovers: history.coordinators.saturating_sub(1),
        losses: history.broken,
        generations: history.generations,
        checkpoints,
        trace,
    }
}

impl Cast {
    /// The oldest launch that goes on.
    fn first(&self) -> Option<Rc<Launch>> {
        let launches = self.launches.borrow();
        let mut going = launches.iter().filter(|launch| launch.verdict.borrow().is_none());
        going.next().cloned()
    }

    /// A launch has ended in order, or all have ended. What others might do after that is another run.
    fn is_over(&self) -> bool {
        let launches = self.launches.borrow();
        let ended = |launch: &Rc<Launch>| matches!(&*launch.verdict.borrow(), Some(Verdict::Ended(..)));
        launches.iter().any(ended) || launches.iter().all(|launch| launch.verdict.borrow().is_some())
    }

    /// How the run ended, and whether it may have ended so.
    fn ended(&self, plan: &[Planned]) -> String {
        let truth = &self.world.truth;
        let launches = self.launches.borrow();
        let verdicts: Vec<Option<Verdict>> = launches
            .iter()
            .map(|launch| launch.verdict.borrow().clone())
            .collect();
        let ended = verdicts.iter().flatten().find_map(|verdict| match verdict {
            Verdict::Ended(status, reason) => Some((*status, reason)),
            _ => None,
        });
        match ended {
            Some((ExitStatus::Done, _)) => "done".to_owned(),
            Some((status, why)) => {
                let why = why.lines().next().unwrap_or_default();
                let (reason, allowed) = reason(status, why, plan);
                if !allowed {
                    let seen = format!("it ended ({status:?}) for no good reason: {why}");
                    truth.violated(ENDS, seen);
                }
                reason
            }
            None if self.is_over() => {
                truth.violated(
                    ENDS,
                    format!("every launch was refused, or gave up: {verdicts:?}"),
                );
                "nobody had the run".to_owned()
            }
            None => {
                truth.violated(ENDS, format!("it goes on after {LIMIT:?}: {verdicts:?}"));
                "never".to_owned()
            }
        }
    }
}

/// The reason of an end in a few words, and whether a run with these faults may have it.
fn reason(status: ExitStatus, why: &str, plan: &[Planned]) -> (String, bool) {
    let had = |kind: &[&str]| plan.iter().any(|planned| kind.contains(&planned.fault.kind()));
    let table = [
        ("the simulation", ExitStatus::Stopped, had(&["stop requested"])),
        (
            "outage_limit",
            ExitStatus::Stopped,
            had(&[
                "store away",
                "worker cut off from the store",
                "coordinator cut off from the store",
                "coordinator suspended",
            ]),
        ),
        ("restarts_per_node", ExitStatus::Failed, plan.len() > 3),
        ("too few workers are left", ExitStatus::Failed, plan.len() > 3),
        ("restarts_per_run", ExitStatus::Failed, plan.len() > 3),
    ];
    let found = table
        .into_iter()
        .find(|(word, of, _)| *of == status && why.contains(word));
    match found {
        Some((word, _, allowed)) => (format!("{status:?}: {word}").to_lowercase(), allowed),
        None => (format!("{status:?}: {why}").to_lowercase(), false),
    }
}

/// What zipper-launch leaves in a run before it starts anything.
async fn prepare(world: &World) {
    let report = serde_json::json!({"languages": [
        {"lang": "en", "utterances": 300, "seconds": 3000.0, "characters": 9000},
        {"lang": "de", "utterances": 100, "seconds": 1000.0, "characters": 4000},
        {"lang": "vi", "utterances": 50, "seconds": 500.0, "characters": 1500},
    ]});
    let report = Bytes::from(report.to_string());
    let stored = world.clean_store().put(layout::CORPUS_REPORT, report).await;
    stored.expect("this store has no faults");
}

/// Lets the faults happen.
async fn cause(cast: Rc<Cast>, faults: Vec<Planned>, begun: Instant) {
    for Planned { at, fault } in faults {
        sleep_until(begun + at).await;
        cast.world.truth.happened(&format!("fault: {fault:?}"));
        cast.befall(fault);
    }
}

impl Cast {
    fn befall(self: &Rc<Self>, fault: Fault) {
        match fault {
            Fault::KillWorker { node } => self.nodes[node as usize].kill_worker(),
            Fault::KillAgent { node } => {
                self.nodes[node as usize].kill();
                let cast = Rc::clone(self);
                after(RESTART, move || cast.nodes[node as usize].start());
            }
            Fault::SuspendWorker { node, lasting } => self.nodes[node as usize].suspend_worker(lasting),
            Fault::CutWorker {
                node,
                out,
                back,
                lasting,
            } => self.nodes[node as usize].cut_worker(out, back, lasting),
            Fault::CutStore { node, lasting } => self.nodes[node as usize].cut_store(lasting),
            Fault::StoreAway { lasting } => {
                self.world.store_away.store(true, Ordering::Relaxed);
                let away = Arc::clone(&self.world.store_away);
                after(lasting, move || away.store(false, Ordering::Relaxed));
            }
            Fault::ClockStep { seconds } => {
                self.world.clock_step.fetch_add(seconds, Ordering::Relaxed);
            }
            Fault::SecondLaunch => {
                let mut launches = self.launches.borrow_mut();
                let launch = Launch::start(&self.world, launches.len() as u64);
                launches.push(launch);
            }
            Fault::KillCoordinator => self.first().into_iter().for_each(|launch| launch.kill()),
            Fault::SuspendCoordinator { lasting } => {
                self.first()
                    .into_iter()
                    .for_each(|launch| launch.suspend(lasting));
            }
            Fault::CutCoordinator { lasting } => {
                self.first().into_iter().for_each(|launch| launch.cut(lasting));
            }
            Fault::Stop => self
                .launches
                .borrow()
                .iter()
                .for_each(|launch| launch.request_stop()),
        }
    }
}
