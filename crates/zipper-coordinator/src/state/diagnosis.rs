//! Whose fault it is: ranks that end, fall silent, or do not come to a collective operation.
//!
//! A failed collective is seldom the fault of the rank that notices. So its report opens a [`Suspicion`], and the run ends when
//! the cause is known, or has not become known in a few seconds.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use zipper_types::Rank;

use super::members::Member;
use super::{Effect, Ended, Now, Planned, State, Verdict};

/// How long to wait, after a collective failed, for the report that says who caused it; and after a process ended, for what
/// the others were doing with it. Survivors take up to 3 s to find out who came.
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

/// Something is wrong with the ranks that train together; who caused it is not known yet, or not what it did to the others.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Suspicion {
    since: Now,
    /// Ranks that reported a failed collective and so did not cause it by ending, in the order of their reports.
    victims: Vec<Victim>,
    /// Processes that ended by themselves.
    ended: Vec<(Rank, Ended)>,
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
    /// A collective failed on `rank`.
    pub(super) fn blamed_others(
        &mut self,
        now: Now,
        rank: Rank,
        message: String,
        collective: Option<Collective>,
        effects: &mut Vec<Effect>,
    ) {
        let suspicion = self.suspicion.get_or_insert_with(|| Suspicion::new(now));
        if suspicion.victims.iter().all(|victim| victim.rank != rank) {
            suspicion.victims.push(Victim {
                rank,
                message,
                collective,
            });
        }
        self.end_if_explained(now, effects);
    }

    /// A worker process ended by itself.
    pub(super) fn exited(&mut self, now: Now, ended: Ended, effects: &mut Vec<Effect>) {
        let rank = self.members.get(&ended.worker).and_then(|member| member.rank);
        let is_victim =
            |suspicion: &Suspicion| suspicion.victims.iter().any(|victim| Some(victim.rank) == rank);
        if self.suspicion.as_ref().is_some_and(is_victim) {
            return;
        }
        let training = self
            .running
            .as_ref()
            .is_some_and(|running| matches!(running.planned, Planned::Train { .. }));
        if let Some(rank) = rank
            && (training || self.suspicion.is_some())
            && self.world_size.0 > 1
            && !ended.is_config()
        {
            let suspicion = self.suspicion.get_or_insert_with(|| Suspicion::new(now));
            suspicion.ended.push((rank, ended));
            self.end_if_explained(now, effects);
            return;
        }
        let who = match rank {
            Some(rank) => self.describe(rank),
            None => format!("worker `{}`", ended.worker),
        };
        let reason = format!("{who} {}{}", ended.how(), ended.end_of_log());
        let verdict = if ended.is_config() {
            Verdict::Config(reason)
        } else {
            Verdict::Failed(reason)
        };
        self.end(verdict, effects);
    }

    /// A process that ended, and a rank that tells what it did to the others: that is the whole story.
    fn end_if_explained(&mut self, now: Now, effects: &mut Vec<Effect>) {
        if let Some(suspicion) = &self.suspicion
            && !suspicion.ended.is_empty()
            && !suspicion.victims.is_empty()
        {
            let reason = self.diagnose(now);
            self.end(Verdict::Failed(reason), effects);
        }
    }

    /// How the run ends if a rank is silent for too long, or nobody explains a failure.
    pub(super) fn lost_ranks(&self, now: Now) -> Option<Verdict> {
        let unexplained = self
            .suspicion
            .as_ref()
            .is_some_and(|suspicion| now.saturating_sub(suspicion.since) > BLAME_TIMEOUT);
        (unexplained || !self.silent(now).is_empty()).then(|| Verdict::Failed(self.diagnose(now)))
    }

    /// Ranks of which nothing was heard for too long.
    fn silent(&self, now: Now) -> BTreeSet<Rank> {
        let timeout = self.config.runtime.heartbeat_timeout;
        self.members
            .values()
            .filter(|member| now.saturating_sub(member.last_heartbeat) > timeout)
            .filter_map(|member| member.rank)
            .collect()
    }

    /// One paragraph: who is at fault and what is known of it, at which operation the others missed it, and where to read on.
    fn diagnose(&self, now: Now) -> String {
        let nothing = Suspicion::new(now);
        let suspicion = self.suspicion.as_ref().unwrap_or(&nothing);
        let silent = self.silent(now);
        let lost: BTreeSet<Rank> = suspicion
            .ended
            .iter()
            .map(|(rank, _)| *rank)
            .chain(silent.iter().copied())
            .collect();
        let meeting = self.meeting(suspicion, &lost);
        let mut suspects = lost;
        suspects.extend(meeting.iter().flat_map(|meeting| &meeting.missing));
        for victim in &suspicion.victims {
            suspects.remove(&victim.rank);
        }
        let mut sentences = Vec::new();
        if suspects.is_empty() {
            let told = |victim: &Victim| format!("{}: {}", self.describe(victim.rank), victim.message);
            sentences.extend(suspicion.victims.first().map(told));
        } else {
            let suspect = |&rank: &Rank| self.describe_suspect(now, rank, suspicion, &silent);
            let mut told: Vec<String> = suspects.iter().take(NAMED).map(suspect).collect();
            told.extend(and_more(suspects.len()));
            sentences.push(told.join("; "));
        }
        sentences.extend(meeting.map(|meeting| self.describe_meeting(&meeting, !suspects.is_empty())));
        if !suspicion.victims.is_empty() || self.waits_in_collective(&silent) {
            let folder = zipper_checkpoint::layout::flight_dir(self.generation);
            sentences.push(format!("The ranks' flight records are in `{folder}` of the run"));
        }
        let logs = suspicion.ended.iter().map(|(_, ended)| ended.end_of_log());
        sentences.join(". ") + &logs.collect::<String>()
    }

    /// The operation that failed because of a rank in `lost`, or of one that did not come; as far as reports, or else
    /// heartbeats, show it.
    fn meeting<'a>(&'a self, suspicion: &'a Suspicion, lost: &BTreeSet<Rank>) -> Option<Meeting<'a>> {
        let victims: BTreeSet<Rank> = suspicion.victims.iter().map(|victim| victim.rank).collect();
        let at_fault = |rank: &Rank| !victims.contains(rank);
        let reported = || {
            suspicion
                .victims
                .iter()
                .filter_map(|victim| victim.collective.as_ref())
        };
        let chosen = reported()
            .find(|collective| collective.missing.iter().any(at_fault))
            .or_else(|| reported().next());
        if let Some(collective) = chosen {
            let mut arrived = collective.arrived.clone();
            arrived.extend(suspicion.victims.iter().filter_map(|victim| {
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
            .members
            .values()
            .filter_map(|member| Some((member.rank?, member.last_collective.as_ref()?)))
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

    fn waits_in_collective(&self, silent: &BTreeSet<Rank>) -> bool {
        self.members.values().any(|member| {
            let waits = |collective: &Collective| !collective.finished;
            member.rank.is_some_and(|rank| !silent.contains(&rank))
                && member.last_collective.as_ref().is_some_and(waits)
        })
    }

    fn describe_suspect(
        &self,
        now: Now,
        rank: Rank,
        suspicion: &Suspicion,
        silent: &BTreeSet<Rank>,
    ) -> String {
        let who = self.describe(rank);
        let Some(member) = self.member_of(rank) else {
            return who;
        };
        let silence = now.saturating_sub(member.last_heartbeat).as_secs_f64();
        let ended = suspicion.ended.iter().find(|(ended, _)| *ended == rank);
        let known = last_known(member);
        match ended {
            Some((_, ended)) => {
                format!(
                    "{who} {}; at its last heartbeat, {silence:.1}s ago, {known}",
                    ended.how()
                )
            }
            None if silent.contains(&rank) => {
                format!("{who}: no heartbeat for {silence:.1}s; at the last one {known}")
            }
            None => {
                format!(
                    "{who} did not come, although it lives: at its last heartbeat, {silence:.1}s ago, {known} (if its part \
                     of a step may take so long, raise `runtime.collective_timeout`)"
                )
            }
        }
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

impl Suspicion {
    fn new(since: Now) -> Self {
        Self {
            since,
            victims: Vec::new(),
            ended: Vec::new(),
        }
    }
}

/// What stands for the ranks that are not named.
fn and_more(ranks: usize) -> Option<String> {
    (ranks > NAMED).then(|| format!("{} more ranks", ranks - NAMED))
}

/// `it had completed step 3 and was in ..`.
fn last_known(member: &Member) -> String {
    let step = format!("it had completed step {}", member.last_step);
    match &member.last_collective {
        None => step,
        Some(collective) if collective.finished => format!("{step} and last finished {collective}"),
        Some(collective) => format!("{step} and was in {collective}"),
    }
}
