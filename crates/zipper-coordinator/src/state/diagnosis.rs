//! Whose fault it is: ranks that end, fall silent, or do not come to a collective operation.
//!
//! A failed collective is seldom the fault of the rank that notices. So a generation that ends leaves a [`Loss`], which gathers
//! what survivors and node agents report, until the cause is known or nobody has explained it for a few seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use zipper_types::{Generation, Incarnation, Rank, Step, WorkerId};

use super::generations::Together;
use super::members::{Member, name_rank};
use super::{Effect, Ended, Failure, Now, Sign, State};

/// How long to wait, after a generation was broken, for the reports that say who caused it and what it did to the others.
/// Survivors take up to 3 s to find out who came.
pub(super) const BLAME_TIMEOUT: Duration = Duration::from_secs(5);

/// Ranks that a message names; the others are counted.
const NAMED: usize = 4;

/// A collective operation, as one rank saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collective {
    /// Name of the process group.
    pub group: String,
    /// Its number among the operations of that group.
    pub sequence: u64,
    /// `allreduce` and so on.
    pub operation: String,
    /// What it was for: `gradients 3 of step 17`.
    pub what: String,
    /// Whether it has ended well.
    pub finished: bool,
    /// Time since it began, when the rank told of it.
    pub age: Duration,
    /// Ranks that had not come to it when it failed.
    pub missing: BTreeSet<Rank>,
    /// Ranks that had.
    pub arrived: BTreeSet<Rank>,
}

impl Collective {
    fn is_same(&self, other: &Self) -> bool {
        (&self.group, self.sequence) == (&other.group, other.sequence)
    }
}

impl fmt::Display for Collective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` ({}; number {} of group `{}`)",
            self.operation, self.what, self.sequence, self.group
        )
    }
}

/// A generation that ended before its time, as its ranks were when it did.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Loss {
    since: Now,
    /// From when the time until the next completed step counts: of several losses in a row, that of the first.
    pub(super) recovering_since: Now,
    furthest: Step,
    ranks: BTreeMap<Rank, Known>,
    /// Ranks of which nothing was heard for too long.
    silent: BTreeSet<Rank>,
    /// Ranks that reported a failed collective and so did not cause it by ending, in the order of their reports.
    victims: Vec<Victim>,
    /// Processes that ended by themselves.
    ended: Vec<(Rank, Ended)>,
    /// Nothing was done for too long.
    hang: Option<Hang>,
    /// Watchers know.
    told: bool,
}

/// A task that did not go on, although heartbeats did.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Hang {
    pub(super) stuck_in: Stuck,
    /// For longer than this.
    pub(super) patience: Duration,
    /// Ranks that the others wait for.
    pub(super) culprits: BTreeSet<Rank>,
}

/// What a task that hangs was to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stuck {
    Training,
    Evaluating,
    Saving,
}

/// What was known of a rank when its generation ended.
#[derive(Debug, Clone, PartialEq)]
struct Known {
    worker: WorkerId,
    incarnation: Incarnation,
    hostname: String,
    heard: Now,
    step: Step,
    collective: Option<Collective>,
}

/// A rank on which a collective failed.
#[derive(Debug, Clone, PartialEq)]
struct Victim {
    rank: Rank,
    message: String,
    collective: Option<Collective>,
}

/// The operation at which ranks lost each other.
struct Meeting<'a> {
    collective: &'a Collective,
    arrived: BTreeSet<Rank>,
    missing: BTreeSet<Rank>,
}

impl State {
    /// Tells watchers of a loss as soon as it is explained.
    pub(super) fn tell_loss(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if self.loss.as_ref().is_some_and(|loss| loss.is_explained(now)) {
            self.tell_loss_now(now, effects);
        }
    }

    /// Tells watchers of a loss, with what is known of it.
    pub(super) fn tell_loss_now(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let generation = self.generation;
        if let Some(loss) = self.loss.as_mut().filter(|loss| !loss.told) {
            loss.told = true;
            effects.push(Effect::Broken {
                generation,
                step: loss.furthest,
                reason: loss.diagnose(now, generation),
            });
        }
    }
}

impl Loss {
    pub(super) fn of(state: &State, together: &Together, now: Now, recovering_since: Now) -> Self {
        let timeout = state.config.runtime.heartbeat_timeout;
        let mut ranks = BTreeMap::new();
        let mut silent = BTreeSet::new();
        for (worker, member) in &state.members {
            let Some(rank) = member.rank() else { continue };
            if now.saturating_sub(member.heard) > timeout {
                silent.insert(rank);
            }
            ranks.insert(rank, Known::of(worker, member));
        }
        Self {
            since: now,
            recovering_since,
            furthest: together.newest,
            ranks,
            silent,
            victims: Vec::new(),
            ended: Vec::new(),
            hang: None,
            told: false,
        }
    }

    /// The worker that had a rank.
    pub(super) fn worker(&self, rank: Rank) -> Option<&WorkerId> {
        self.ranks.get(&rank).map(|known| &known.worker)
    }

    fn rank_of(&self, worker: &WorkerId, incarnation: Incarnation) -> Option<Rank> {
        let is = |known: &Known| known.worker == *worker && known.incarnation == incarnation;
        self.ranks
            .iter()
            .find(|(_, known)| is(known))
            .map(|(rank, _)| *rank)
    }

    /// A worker of the generation that is over tells where it is.
    pub(super) fn heard(&mut self, now: Now, sign: &Sign) {
        if let Some(known) = self
            .rank_of(&sign.worker, sign.incarnation)
            .and_then(|rank| self.ranks.get_mut(&rank))
        {
            known.heard = now;
            known.step = sign.step;
            known.collective.clone_from(&sign.collective);
        }
    }

    /// A worker tells what the loss did to it.
    pub(super) fn reported(&mut self, failure: Failure) {
        if let Some(rank) = self.rank_of(&failure.worker, failure.incarnation)
            && self.victims.iter().all(|victim| victim.rank != rank)
        {
            self.victims.push(Victim {
                rank,
                message: failure.message,
                collective: failure.collective,
            });
        }
    }

    /// A worker process ended: the cause, unless it had reported before, or was ended because it was given up.
    pub(super) fn ended(&mut self, ended: &Ended) {
        let hung = |rank: &Rank| {
            self.hang
                .as_ref()
                .is_some_and(|hang| hang.culprits.contains(rank))
        };
        if let Some(rank) = self.rank_of(&ended.worker, ended.incarnation)
            && !self.silent.contains(&rank)
            && !hung(&rank)
            && self.victims.iter().all(|victim| victim.rank != rank)
            && self.ended.iter().all(|(other, _)| *other != rank)
        {
            self.ended.push((rank, ended.clone()));
        }
    }

    /// The generation ended because its task did not go on.
    pub(super) fn hang(&mut self, hang: Hang) {
        self.hang = Some(hang);
    }

    /// A cause, and a rank that tells what it did to the others: that is the whole story. After a while, whatever is known.
    pub(super) fn is_explained(&self, now: Now) -> bool {
        let cause = !self.ended.is_empty() || !self.silent.is_empty() || self.hang.is_some();
        let effect = !self.victims.is_empty() || self.ranks.len() < 2;
        (cause && effect) || now.saturating_sub(self.since) > BLAME_TIMEOUT
    }

    /// One paragraph: who is at fault and what is known of it, at which operation the others missed it, and where to read on.
    pub(super) fn diagnose(&self, now: Now, generation: Generation) -> String {
        let mut lost: BTreeSet<Rank> = self.ended.iter().map(|(rank, _)| *rank).collect();
        lost.extend(&self.silent);
        let meeting = self.meeting(&lost);
        let mut suspects = lost;
        suspects.extend(meeting.iter().flat_map(|meeting| &meeting.missing));
        suspects.extend(self.hang.iter().flat_map(|hang| &hang.culprits));
        for victim in &self.victims {
            suspects.remove(&victim.rank);
        }
        let mut sentences = Vec::new();
        if let Some(hang) = &self.hang {
            let patience = humantime::format_duration(Duration::from_secs(hang.patience.as_secs()));
            sentences.push(format!("{} for {patience}", hang.stuck_in.missed()));
        }
        if suspects.is_empty() {
            let told = |victim: &Victim| format!("{}: {}", self.describe(victim.rank), victim.message);
            sentences.extend(self.victims.first().map(told));
        } else {
            let suspect = |&rank: &Rank| self.describe_suspect(now, rank);
            let mut told: Vec<String> = suspects.iter().take(NAMED).map(suspect).collect();
            told.extend(and_more(suspects.len()));
            sentences.push(told.join("; "));
        }
        let all_came = meeting
            .as_ref()
            .is_some_and(|meeting| meeting.arrived.len() == self.ranks.len());
        sentences.extend(meeting.map(|meeting| self.describe_meeting(&meeting, !suspects.is_empty())));
        if self.hang.is_some() && all_came {
            sentences.push("All ranks had come, so look at the network between them".to_owned());
        }
        if sentences.is_empty() {
            sentences.push("a worker left its generation and joined again".to_owned());
        }
        if !self.victims.is_empty() || self.waits_in_collective() {
            let folder = zipper_checkpoint::layout::flight_dir(generation);
            sentences.push(format!("The ranks' flight records are in `{folder}` of the run"));
        }
        let logs = self.ended.iter().map(|(_, ended)| ended.end_of_log());
        sentences.join(". ") + &logs.collect::<String>()
    }

    /// The operation that failed because of a rank in `lost`, or of one that did not come; as far as reports, or else
    /// heartbeats, show it.
    fn meeting<'a>(&'a self, lost: &BTreeSet<Rank>) -> Option<Meeting<'a>> {
        let victims: BTreeSet<Rank> = self.victims.iter().map(|victim| victim.rank).collect();
        let at_fault = |rank: &Rank| !victims.contains(rank);
        let reported = || {
            self.victims
                .iter()
                .filter_map(|victim| victim.collective.as_ref())
        };
        let chosen = reported()
            .find(|collective| collective.missing.iter().any(at_fault))
            .or_else(|| reported().next());
        if let Some(collective) = chosen {
            let mut arrived = collective.arrived.clone();
            arrived.extend(self.victims.iter().filter_map(|victim| {
                let same = victim
                    .collective
                    .as_ref()
                    .is_some_and(|other| other.is_same(collective));
                same.then_some(victim.rank)
            }));
            let missing = collective.missing.difference(&arrived).copied().collect();
            return Some(Meeting {
                collective,
                arrived,
                missing,
            });
        }
        let waiting: Vec<(Rank, &Collective)> = self
            .ranks
            .iter()
            .filter_map(|(rank, known)| Some((*rank, known.collective.as_ref()?)))
            .filter(|(rank, collective)| !collective.finished && !lost.contains(rank))
            .collect();
        let at = |collective: &'a Collective| -> BTreeSet<Rank> {
            let same = waiting.iter().filter(|(_, other)| other.is_same(collective));
            same.map(|(rank, _)| *rank).collect()
        };
        let (_, collective) = *waiting
            .iter()
            .max_by_key(|(_, collective)| at(collective).len())?;
        Some(Meeting {
            collective,
            arrived: at(collective),
            missing: lost.clone(),
        })
    }

    fn waits_in_collective(&self) -> bool {
        self.ranks.iter().any(|(rank, known)| {
            let waits = |collective: &Collective| !collective.finished;
            !self.silent.contains(rank) && known.collective.as_ref().is_some_and(waits)
        })
    }

    /// ``worker `node1/0` (rank 1) on HOST``.
    fn describe(&self, rank: Rank) -> String {
        match self.ranks.get(&rank) {
            Some(known) => name_rank(rank, &known.worker, &known.hostname),
            None => format!("rank {rank}"),
        }
    }

    fn describe_suspect(&self, now: Now, rank: Rank) -> String {
        let who = self.describe(rank);
        let Some(known) = self.ranks.get(&rank) else {
            return who;
        };
        let silence = now.saturating_sub(known.heard).as_secs_f64();
        let ended = self.ended.iter().find(|(ended, _)| *ended == rank);
        let state = known.last_known();
        match ended {
            Some((_, ended)) => {
                format!(
                    "{who} {}; at its last heartbeat, {silence:.1}s ago, {state}",
                    ended.how()
                )
            }
            None if self.silent.contains(&rank) => {
                format!("{who}: no heartbeat for {silence:.1}s; at the last one {state}")
            }
            None if self.is_stuck_alone(rank) => {
                format!(
                    "{who} lives, but does not get on: at its last heartbeat, {silence:.1}s ago, {state} (if one batch of an \
                     evaluation may take so long, raise `runtime.first_collective_timeout`)"
                )
            }
            None => {
                format!(
                    "{who} did not come, although it lives: at its last heartbeat, {silence:.1}s ago, {state} (if its part \
                     of a step may take so long, raise `runtime.collective_timeout`)"
                )
            }
        }
    }

    /// Whether a rank hangs in something that it does by itself.
    fn is_stuck_alone(&self, rank: Rank) -> bool {
        self.hang
            .as_ref()
            .is_some_and(|hang| hang.stuck_in != Stuck::Training && hang.culprits.contains(&rank))
    }

    fn describe_meeting(&self, meeting: &Meeting<'_>, explained: bool) -> String {
        let Meeting {
            collective,
            arrived,
            missing,
        } = meeting;
        let failed = if explained {
            format!("So the collective operation {collective} failed")
        } else {
            format!("It was the collective operation {collective}")
        };
        let (arrived, missing) = (self.describe_all(arrived), self.describe_all(missing));
        match (arrived.as_str(), missing.as_str()) {
            ("", "") => failed,
            (arrived, "") => format!("{failed}: {arrived} had come to it"),
            ("", missing) => format!("{failed}: {missing} had not come to it"),
            (arrived, missing) => format!("{failed}: {arrived} had come to it, {missing} had not"),
        }
    }

    /// The first ranks by their names, the number of the others.
    fn describe_all(&self, ranks: &BTreeSet<Rank>) -> String {
        let mut names: Vec<String> = ranks
            .iter()
            .take(NAMED)
            .map(|&rank| self.describe(rank))
            .collect();
        names.extend(and_more(ranks.len()));
        names.join(", ")
    }
}

/// What stands for the ranks that are not named.
fn and_more(ranks: usize) -> Option<String> {
    (ranks > NAMED).then(|| format!("{} more ranks", ranks - NAMED))
}

impl Stuck {
    /// What should have happened.
    fn missed(self) -> &'static str {
        match self {
            Self::Training => "no step was completed",
            Self::Evaluating => "nothing was decoded",
            Self::Saving => "the state was not copied for its checkpoint",
        }
    }
}

impl Known {
    fn of(worker: &WorkerId, member: &Member) -> Self {
        Self {
            worker: worker.clone(),
            incarnation: member.incarnation,
            hostname: member.hostname.clone(),
            heard: member.heard,
            step: member.step,
            collective: member.collective.clone(),
        }
    }

    /// `it had completed step 3 and had been in .. for 0.2s`.
    fn last_known(&self) -> String {
        let step = format!("it had completed step {}", self.step);
        match &self.collective {
            None => step,
            Some(collective) if collective.finished => format!("{step} and last finished {collective}"),
            Some(collective) => {
                let waited = collective.age.as_secs_f64();
                format!("{step} and had been in {collective} for {waited:.1}s")
            }
        }
    }
}
