//! Generations: how they are formed from those who are ready, how they end, how far they come.

use std::collections::BTreeSet;
use std::time::Duration;

use zipper_config::schema::OnLoss;
use zipper_plan::{Placement, succession};
use zipper_types::{Generation, Rank, Step, Variant, WorkerId, WorldSize};

use super::accounts::Activity;
use super::diagnosis::Loss;
use super::members::{Member, Status};
use super::recovery::{self, HeldState, Origin};
use super::{Effect, Now, Phase, RESERVED_AT_A_TIME, Recovery, State, Verdict};

/// Workers that a message names; the others are counted.
const NAMED: usize = 8;

/// Workers come together.
#[derive(Debug)]
pub(super) struct Gathering {
    since: Now,
    why: Why,
    /// When enough were ready for the first time.
    enough_since: Option<Now>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// The run begins.
    Start,
    /// A worker was lost.
    Loss,
    /// Others are to take part.
    Growth,
}

/// One generation at work.
#[derive(Debug)]
pub(super) struct Together {
    pub(super) since: Now,
    pub(super) world_size: WorldSize,
    pub(super) step: Step,
    pub(super) origin: Origin,
    /// When the last step was completed, or the task begun.
    pub(super) progress: Now,
    /// The newest step of any rank.
    pub(super) newest: Step,
    /// The longest of the recent steps; nothing before the first.
    pub(super) recent: Vec<Duration>,
    /// Where the time of a loss counts from, until the first step after it.
    pub(super) recovering_since: Option<(Now, u64)>,
    /// Ranks that were told of as stragglers.
    pub(super) stragglers: BTreeSet<Rank>,
    /// Others wait to take part.
    pub(super) grow: bool,
}

impl Together {
    /// A generation of `world_size` ranks that starts from `step`.
    pub(super) fn new(now: Now, world_size: WorldSize, step: Step, origin: Origin) -> Self {
        Self {
            since: now,
            world_size,
            step,
            origin,
            progress: now,
            newest: step,
            recent: Vec::new(),
            recovering_since: None,
            stragglers: BTreeSet::new(),
            grow: false,
        }
    }
}

impl Gathering {
    pub(super) fn at_start() -> Self {
        Self {
            since: Now::ZERO,
            why: Why::Start,
            enough_since: None,
        }
    }

    pub(super) fn is_start(&self) -> bool {
        self.why == Why::Start
    }
}

impl State {
    /// For how long workers have been coming together.
    pub(super) fn gathering_for(&self, now: Now) -> Duration {
        match &self.phase {
            Phase::Gathering(gathering) => now.saturating_sub(gathering.since),
            Phase::Together(_) => Duration::ZERO,
        }
    }

    /// A process is gone, or not to come back; if it was a member, its generation is over.
    pub(super) fn drop_member(&mut self, now: Now, worker: &WorkerId) {
        let Some(member) = self.members.get(worker) else {
            return;
        };
        if member.rank().is_some() {
            self.break_generation(now);
        }
        if let Some(member) = self.members.remove(worker) {
            self.given_up.insert((worker.clone(), member.incarnation));
        }
    }

    /// Ends the generation: whoever is left joins again.
    pub(super) fn break_generation(&mut self, now: Now) {
        let Phase::Together(together) = &self.phase else {
            return;
        };
        let recovering_since = together.recovering_since.map_or(now, |(since, _)| since);
        let loss = Loss::of(self, together, now, recovering_since);
        self.accounts.losses += 1;
        self.accounts.begin(together.progress, Activity::Recovering);
        self.loss = Some(loss);
        self.leave_generation(now, Why::Loss);
        let counts_until = now.saturating_add(self.config.elastic.restart_window);
        self.failures.push(counts_until);
        self.fruitless += 1;
        self.failed += 1;
    }

    /// A worker has left: if it is a member of the generation, that is over.
    pub(super) fn break_generation_of(&mut self, now: Now, worker: &WorkerId) {
        if self
            .members
            .get(worker)
            .is_some_and(|member| member.rank().is_some())
        {
            self.break_generation(now);
        }
    }

    fn leave_generation(&mut self, now: Now, why: Why) {
        self.running = None;
        // What its ranks were to write and have not finished is made anew when it is due again.
        self.pending.clear();
        self.expected.clear();
        self.closing = None;
        for member in self.members.values_mut() {
            if member.rank().is_some() {
                member.status = Status::Leaving;
            }
        }
        self.phase = Phase::Gathering(Gathering {
            since: now,
            why,
            enough_since: None,
        });
    }

    /// Between two tasks: lets those in that wait.
    pub(super) fn regroup(&mut self, now: Now) {
        self.accounts.begin(now, Activity::Regrouping);
        self.leave_generation(now, Why::Growth);
    }

    /// One more worker is ready: asks the ranks to let it in, if there is room.
    pub(super) fn want_growth(&mut self) {
        if let Phase::Together(together) = &mut self.phase
            && together.world_size.0 < self.crew.max_workers
        {
            together.grow = true;
        }
    }

    fn ready(&self) -> impl Iterator<Item = (&WorkerId, &Member)> {
        let ready = |(_, member): &(&WorkerId, &Member)| member.status == Status::Ready;
        self.members.iter().filter(ready)
    }

    /// Forms the next generation if everyone is there who should be.
    pub(super) fn try_form(&mut self, now: Now, effects: &mut Vec<Effect>) {
        // This is asked at every event: whoever is together is not counted.
        if matches!(self.phase, Phase::Together(_)) {
            return;
        }
        let ready = self.ready().count() as u32;
        let leaving = self
            .members
            .values()
            .any(|member| member.status == Status::Leaving);
        let enough = ready >= self.crew.min_workers || (self.stop_requested.is_some() && ready > 0);
        let (on_loss, config) = (self.config.elastic.on_loss, &self.config.elastic);
        let Phase::Gathering(gathering) = &mut self.phase else {
            return;
        };
        // GEN-2: a number that is not reserved could be used again by the next coordinator.
        let numbered = self.highest < self.reserved;
        if self.verdict.is_some() || leaving || !enough || !numbered {
            if !enough {
                gathering.enough_since = None;
            }
            return;
        }
        let waited = now.saturating_sub(*gathering.enough_since.get_or_insert(now));
        let patience = match (gathering.why, on_loss) {
            _ if ready >= self.crew.max_workers || self.stop_requested.is_some() => Duration::ZERO,
            (Why::Start, _) => config.join_wait,
            (Why::Loss, OnLoss::Wait) => config.replacement_wait,
            (Why::Loss | Why::Growth, _) => Duration::ZERO,
        };
        if waited >= patience {
            self.form(now, effects);
        }
    }

    fn form(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.tell_loss_now(now, effects);
        let (chosen, spares) = self.choose();
        let world_size = WorldSize(chosen.len() as u32);
        let placement = match self.basis.place(world_size) {
            Ok(placement) => placement,
            Err(error) => {
                self.end(now, Verdict::Config(error.to_string()), effects);
                return;
            }
        };
        let (step, from_memory) = self.start(&chosen);
        let order = self.order(chosen, step, placement.as_ref());
        let origin = match (from_memory, step) {
            (true, _) => self.memory_origin(&order, step),
            (false, Step(0)) => Origin::Fresh,
            (false, _) => Origin::Checkpoint,
        };
        self.highest = Generation(self.highest.0 + 1);
        self.generation = self.highest;
        if self.reserved.0 - self.highest.0 < RESERVED_AT_A_TIME / 2 {
            let more = Generation(self.reserved.0 + RESERVED_AT_A_TIME);
            effects.push(Effect::Reserve(more));
        }
        self.placement = placement;
        let mut seats = Vec::with_capacity(order.len());
        for (rank, worker) in (0..).map(Rank).zip(order) {
            if let Some(member) = self.members.get_mut(&worker) {
                member.take_seat(rank, step, now);
                seats.push(member.seat(worker));
            }
        }
        effects.push(Effect::FormGeneration {
            generation: self.generation,
            seats,
            placement: self.placement.clone(),
            step,
            origin: origin.clone(),
            spares,
        });
        self.accounts.rewind(self.furthest, step);
        self.accounts.begin(now, Activity::Working);
        let repeated = self.furthest.0.saturating_sub(step.0);
        let recovering_since = self.loss.take().map(|loss| (loss.recovering_since, repeated));
        self.phase = Phase::Together(Together {
            recovering_since,
            ..Together::new(now, world_size, step, origin)
        });
        self.go_on_from(step);
        self.begin_next(now, effects);
    }

    /// Who of those that are ready takes part, in the order of nodes; and how many are spares.
    fn choose(&self) -> (Vec<WorkerId>, u32) {
        let mut chosen: Vec<(WorkerId, u32, u32, bool)> = self
            .ready()
            .map(|(worker, member)| {
                let knows_nothing = member.held.is_empty();
                (worker.clone(), member.node_rank, member.local_rank, knows_nothing)
            })
            .collect();
        // Who remembers something comes before newcomers, as some of these are spares.
        chosen.sort_by_key(|(_, node, local, knows_nothing)| (*knows_nothing, *node, *local));
        let spares = chosen.len().saturating_sub(self.crew.max_workers as usize);
        chosen.truncate(self.crew.max_workers as usize);
        chosen.sort_by_key(|(_, node, local, _)| (*node, *local));
        let chosen = chosen.into_iter().map(|(worker, ..)| worker).collect();
        (chosen, spares as u32)
    }

    /// The step that `workers` start from, and whether they remember it.
    fn start(&self, workers: &[WorkerId]) -> (Step, bool) {
        let held: Vec<&[HeldState]> = workers
            .iter()
            .filter_map(|worker| Some(self.members.get(worker)?.held.as_slice()))
            .collect();
        let published = self.published.last().copied().unwrap_or_default();
        match recovery::newest_common(&held, self.config.data.languages.len(), self.has_banks()) {
            Some(step) if step >= published => (step, true),
            _ => (published, false),
        }
    }

    fn has_banks(&self) -> bool {
        self.config.adapter.variant != Variant::Shared
    }

    /// Who takes which rank: in the order of nodes, but so that few banks have to move.
    fn order(&self, workers: Vec<WorkerId>, step: Step, placement: Option<&Placement>) -> Vec<WorkerId> {
        let Some(placement) = placement else {
            return workers;
        };
        let holds = |worker: WorkerId| {
            let member = self.members.get(&worker);
            let banks = member.map_or_else(Vec::new, |member| recovery::banks_at(&member.held, step));
            (banks, worker)
        };
        let mut workers: Vec<(Vec<usize>, WorkerId)> = workers.into_iter().map(holds).collect();
        // In the order of the ruler, newcomers last.
        workers.sort_by_key(|(banks, _)| banks.first().copied().unwrap_or(usize::MAX));
        let (had, workers): (Vec<Vec<usize>>, Vec<WorkerId>) = workers.into_iter().unzip();
        let places = succession::places(&had, placement);
        let mut rest = (0..workers.len()).filter(|index| !places.contains(&Some(*index)));
        let order: Vec<usize> = places
            .iter()
            .filter_map(|place| place.or_else(|| rest.next()))
            .collect();
        order.into_iter().map(|index| workers[index].clone()).collect()
    }

    fn memory_origin(&self, order: &[WorkerId], step: Step) -> Origin {
        let held: Vec<&[HeldState]> = order
            .iter()
            .filter_map(|worker| Some(self.members.get(worker)?.held.as_slice()))
            .collect();
        let rank = |index: usize| Rank(index as u32);
        match recovery::sources(&held, step, self.config.data.languages.len(), self.has_banks()) {
            Some((shared, banks)) => Origin::Memory {
                shared: rank(shared),
                banks: banks.into_iter().map(rank).collect(),
            },
            None => Origin::Checkpoint,
        }
    }

    /// A rank has completed a step.
    pub(super) fn progressed(&mut self, now: Now, step: Step, idle: Duration, effects: &mut Vec<Effect>) {
        if step > self.furthest {
            self.furthest = step;
            self.fruitless = 0;
        }
        let Phase::Together(together) = &mut self.phase else {
            return;
        };
        if step <= together.newest {
            return;
        }
        let at = now.saturating_sub(idle).max(together.progress);
        let (steps, time) = (step.0 - together.newest.0, at.saturating_sub(together.progress));
        together
            .recent
            .push(time / u32::try_from(steps).unwrap_or(u32::MAX));
        if together.recent.len() > super::health::RECENT_STEPS {
            together.recent.remove(0);
        }
        together.newest = step;
        together.progress = at;
        self.accounts.stepped(steps, time);
        if let Some((since, repeated_steps)) = together.recovering_since.take() {
            let reads = self.members.values().filter(|member| member.rank().is_some());
            let store_reads = reads.map(|member| member.store_reads).sum();
            effects.push(Effect::Recovered(Recovery {
                generation: self.generation,
                world_size: together.world_size,
                from: together.step,
                from_checkpoint: together.origin == Origin::Checkpoint,
                repeated_steps,
                took: at.saturating_sub(since),
                store_reads,
            }));
        }
    }

    /// How the run ends if too few come together.
    pub(super) fn late_gathering(&self, now: Now) -> Option<Verdict> {
        let Phase::Gathering(gathering) = &self.phase else {
            return None;
        };
        let timeout = self.config.runtime.rendezvous_timeout;
        let ready: Vec<String> = self.ready().map(|(worker, _)| worker.to_string()).collect();
        if now.saturating_sub(gathering.since) <= timeout || ready.len() >= self.crew.min_workers as usize {
            return None;
        }
        let joined = if ready.is_empty() {
            "none".to_owned()
        } else {
            name_some(ready.iter().cloned()).join(", ")
        };
        let others = self.awaited();
        let others = if others.is_empty() {
            String::new()
        } else {
            format!("; {}", others.join("; "))
        };
        let before = self.loss.as_ref().map_or_else(String::new, |loss| {
            format!(". Before: {}", loss.diagnose(now, self.generation))
        });
        Some(Verdict::Failed(format!(
            "waited {} for {} workers, but only {} joined: {joined}{others}{before}",
            humantime::format_duration(timeout),
            self.crew.min_workers,
            ready.len(),
        )))
    }

    /// Workers that live and are not ready, with what they do.
    fn awaited(&self) -> Vec<String> {
        let others = self.members.iter();
        let others = others
            .filter(|(_, member)| member.status != Status::Ready)
            .map(|(worker, member)| match member.status {
                Status::Leaving => format!("`{worker}` has not come back yet"),
                _ => format!("`{worker}` is {}", member.doing),
            });
        name_some(others)
    }

    /// Tells who is waited for, when that changes.
    pub(super) fn tell_waiting(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let Phase::Gathering(gathering) = &self.phase else {
            self.waiting_told.clear();
            return;
        };
        // Coming together again usually takes less.
        if now.saturating_sub(gathering.since) < Duration::from_secs(2) {
            return;
        }
        let ready = self.ready().count();
        let mut words = vec![format!("{ready} of {} workers are ready", self.crew.max_workers)];
        words.extend(self.awaited());
        let words = words.join("; ");
        if words != self.waiting_told {
            self.waiting_told.clone_from(&words);
            effects.push(Effect::Waiting(words));
        }
    }
}

/// The first of `all`, and how many more there are.
pub(super) fn name_some(all: impl Iterator<Item = String>) -> Vec<String> {
    let mut all = all.fuse();
    let mut named: Vec<String> = all.by_ref().take(NAMED).collect();
    let more = all.count();
    if more > 0 {
        named.push(format!("{more} more"));
    }
    named
}
