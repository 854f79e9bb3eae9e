//! Who is silent, hangs or is slow; and whether the run's store can be written.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use zipper_types::{Rank, WorkerId};

use super::diagnosis::{Hang, Stuck};
use super::members::Status;
use super::{Collective, Effect, Now, Phase, Planned, State, Verdict};

/// Steps whose longest says how long the next one may take.
pub(super) const RECENT_STEPS: usize = 32;
/// A longer pause between two ticks means that the coordinator itself was asleep.
const OWN_SLEEP: Duration = Duration::from_secs(2);
/// Shorter troubles with the store are no alarm: requests are repeated.
const ALARM_AFTER: Duration = Duration::from_secs(15);

impl State {
    /// A coordinator that was stopped, or whose machine slept, has not heard anybody: that is not their fault.
    pub(super) fn forgive_own_sleep(&mut self, now: Now) {
        let asleep = now.saturating_sub(self.last_tick);
        self.last_tick = now;
        if asleep < OWN_SLEEP {
            return;
        }
        for member in self.members.values_mut() {
            member.heard = (member.heard + asleep).min(now);
            member.progress = (member.progress + asleep).min(now);
        }
        for node in self.nodes.values_mut() {
            node.heard = (node.heard + asleep).min(now);
        }
        if let Phase::Together(together) = &mut self.phase {
            together.progress = (together.progress + asleep).min(now);
        }
    }

    /// Gives up processes of which nothing was heard for too long, and survivors that do not come back.
    pub(super) fn give_up_silent(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let timeout = self.config.runtime.heartbeat_timeout;
        let regroup = self.config.elastic.regroup_timeout;
        let gathering_for = self.gathering_for(now);
        let lost: Vec<WorkerId> = self
            .members
            .iter()
            .filter(|(_, member)| {
                let silent = now.saturating_sub(member.heard) > timeout;
                let stuck = member.status == Status::Leaving && gathering_for > regroup;
                silent || stuck
            })
            .map(|(worker, _)| worker.clone())
            .collect();
        for worker in lost {
            tracing::warn!("worker `{worker}` is given up");
            self.drop_member(now, &worker);
        }
        self.end_if_hopeless(now, effects);
    }

    /// Heartbeats go on, but nothing else does: ends the generation, without the ranks that the others wait for.
    pub(super) fn find_hang(&mut self, now: Now) {
        let Some(hang) = self.hang(now) else { return };
        let culprits = hang.culprits.clone();
        self.break_generation(now);
        if let Some(loss) = &mut self.loss {
            loss.hang(hang);
        }
        for rank in culprits {
            let worker = self.loss.as_ref().and_then(|loss| loss.worker(rank).cloned());
            if let Some(worker) = worker {
                self.drop_member(now, &worker);
            }
        }
    }

    /// What has not gone on for too long, if anything.
    fn hang(&self, now: Now) -> Option<Hang> {
        let Phase::Together(together) = &self.phase else {
            return None;
        };
        let running = self.running.as_ref()?;
        let elastic = &self.config.elastic;
        // A product that is too long for a duration means never.
        let many_times = |longest: Duration| {
            let seconds = longest.as_secs_f64() * elastic.hang_factor;
            let patience = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
            patience.max(elastic.hang_min)
        };
        // Models may still be loaded, and caches are cold.
        let first = self.config.runtime.first_collective_timeout.max(elastic.hang_min);
        let stuck_in = match running.planned {
            Planned::Train { .. } => {
                let longest = together.recent.iter().max();
                let patience = longest.map_or(first, |&longest| many_times(longest));
                let is_stuck = now.saturating_sub(together.progress) > patience;
                return is_stuck.then(|| Hang {
                    stuck_in: Stuck::Training,
                    patience,
                    culprits: self.behind(),
                });
            }
            Planned::Evaluate { .. } => Stuck::Evaluating,
            Planned::Save { .. } => Stuck::Saving,
        };
        // Each rank is on its own, and how long its longest batch may take is not known before.
        let patience = many_times(running.longest_pause).max(first);
        let members = self.members.values();
        let stuck = members.filter(|member| now.saturating_sub(member.progress) > patience);
        let culprits: BTreeSet<Rank> = stuck
            .filter_map(super::Member::rank)
            .filter(|rank| !running.outcomes.contains_key(rank))
            .collect();
        (!culprits.is_empty()).then_some(Hang {
            stuck_in,
            patience,
            culprits,
        })
    }

    /// Ranks that are not where others wait: in no collective, or in an earlier one of the same group. Each group counts its own, so
    /// that numbers of two groups say nothing about each other.
    fn behind(&self) -> BTreeSet<Rank> {
        let Phase::Together(together) = &self.phase else {
            return BTreeSet::new();
        };
        let waits: BTreeMap<Rank, Option<&Collective>> = self
            .members
            .values()
            .filter_map(|member| {
                let collective = member.collective.as_ref();
                let waits = collective.filter(|collective| !collective.finished);
                Some((member.rank()?, waits))
            })
            .collect();
        let mut front: BTreeMap<&str, u64> = BTreeMap::new();
        for collective in waits.values().flatten() {
            let newest = front.entry(collective.group.as_str()).or_default();
            *newest = collective.sequence.max(*newest);
        }
        if front.is_empty() {
            return BTreeSet::new();
        }
        let is_behind = |collective: &Collective| collective.sequence < front[collective.group.as_str()];
        let behind = waits.iter().filter(|(_, waits)| waits.is_none_or(is_behind));
        let behind: BTreeSet<Rank> = behind.map(|(rank, _)| *rank).collect();
        // If nearly all are behind, nobody knows who is at fault.
        if behind.len() * 2 > together.world_size.0 as usize {
            return BTreeSet::new();
        }
        behind
    }

    /// Names ranks that take much longer for their work than the others.
    pub(super) fn find_stragglers(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let Phase::Together(together) = &mut self.phase else {
            return;
        };
        let elastic = &self.config.elastic;
        if together.newest.0 - together.step.0 < elastic.straggler_steps {
            return;
        }
        let mut paces: Vec<(f64, Rank, &WorkerId, &super::Member)> = self
            .members
            .iter()
            .filter(|(_, member)| member.work > 0.0)
            .filter_map(|(worker, member)| {
                Some((
                    member.compute_seconds / member.work,
                    member.rank()?,
                    worker,
                    member,
                ))
            })
            .collect();
        paces.sort_by(|a, b| a.0.total_cmp(&b.0));
        let Some(&(median, ..)) = paces.get(paces.len().saturating_sub(1) / 2) else {
            return;
        };
        let elapsed = now.saturating_sub(together.since).as_secs_f64();
        for (pace, rank, worker, member) in paces {
            let factor = pace / median;
            if factor > elastic.straggler_factor && together.stragglers.insert(rank) {
                effects.push(Effect::Straggler {
                    worker: worker.clone(),
                    rank,
                    hostname: member.hostname.clone(),
                    factor,
                    lost_share: (member.compute_seconds - median * member.work) / elapsed,
                });
            }
        }
    }

    /// Raises the alarm while nothing can be stored; says how the run ends if that lasts too long.
    pub(super) fn long_outage(&mut self, effects: &mut Vec<Effect>) -> Option<Verdict> {
        let troubles = self.members.values().filter_map(|member| member.trouble.as_ref());
        let worst = troubles
            .chain(&self.own_trouble)
            .max_by_key(|trouble| trouble.lasting)
            .filter(|trouble| trouble.lasting > ALARM_AFTER)
            .cloned();
        let limit = self.config.checkpoint.outage_limit;
        match worst {
            Some(trouble) if trouble.lasting > limit => Some(Verdict::Stopped(format!(
                "the run's store could not be written for {} (`checkpoint.outage_limit`): {}",
                humantime::format_duration(limit),
                trouble.message
            ))),
            Some(trouble) => {
                if !self.alarmed {
                    self.alarmed = true;
                    effects.push(Effect::Alarm {
                        message: format!(
                            "the run's store cannot be written: {}. Training goes on; the newest checkpoint is {}. The run stops \
                             if this lasts {}",
                            trouble.message,
                            self.committed().map_or_else(|| "none".to_owned(), |step| format!("that of step {step}")),
                            humantime::format_duration(limit)
                        ),
                        cleared: false,
                    });
                }
                None
            }
            None => {
                if std::mem::take(&mut self.alarmed) {
                    effects.push(Effect::Alarm {
                        message: "the run's store can be written again".to_owned(),
                        cleared: true,
                    });
                }
                None
            }
        }
    }
}
