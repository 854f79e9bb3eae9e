//! Where the wall-clock time of a launch goes: effective training time, and lost time by cause.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zipper_types::Step;

use super::Now;

/// What the time between two changes was spent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activity {
    /// Waiting for the first generation.
    #[default]
    Starting,
    /// Training and evaluating.
    Working,
    /// From the last step before a loss until training goes on.
    Recovering,
    /// Taking in workers that came later.
    Regrouping,
    /// Steps that had been made before.
    Repeating,
    /// Waiting for the last checkpoints.
    Ending,
}

impl Activity {
    /// Its name in summaries.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Working => "working",
            Self::Recovering => "recovering",
            Self::Regrouping => "regrouping",
            Self::Repeating => "repeating",
            Self::Ending => "ending",
        }
    }
}

/// The time of a launch, by what it was spent on.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Accounts {
    spent: BTreeMap<Activity, Duration>,
    current: Activity,
    since: Now,
    /// Generations that were broken.
    pub losses: u32,
    /// Steps that were made again.
    pub repeated_steps: u64,
    /// Steps and time of the generation, for the price of repeating them.
    steps: u64,
    stepping: Duration,
}

impl Accounts {
    /// What an earlier coordinator of the launch has spent.
    pub(super) fn of(
        spent: impl Iterator<Item = (Activity, Duration)>,
        losses: u32,
        repeated_steps: u64,
    ) -> Self {
        Self {
            spent: spent.collect(),
            losses,
            repeated_steps,
            ..Self::default()
        }
    }

    /// These accounts as they stand at `now`.
    pub(super) fn until(&self, now: Now) -> Self {
        let mut accounts = self.clone();
        accounts.begin(now, accounts.current);
        accounts
    }

    /// `time` was spent on `activity` while nobody kept accounts.
    pub(super) fn add(&mut self, activity: Activity, time: Duration) {
        *self.spent.entry(activity).or_default() += time;
    }

    /// Time by what it was spent on.
    pub(super) fn spent(&self) -> impl Iterator<Item = (Activity, Duration)> {
        self.spent.iter().map(|(&activity, &time)| (activity, time))
    }

    /// From `at` on, time is spent on `activity`. `at` may lie before the last change: then that one was shorter.
    pub(super) fn begin(&mut self, at: Now, activity: Activity) {
        *self.spent.entry(self.current).or_default() += at.saturating_sub(self.since);
        self.current = activity;
        self.since = at.max(self.since);
    }

    /// Steps were completed in `time`.
    pub(super) fn stepped(&mut self, steps: u64, time: Duration) {
        self.steps += steps;
        self.stepping += time;
    }

    /// The generation goes back from `furthest` to `step`: what was done in between is lost.
    pub(super) fn rewind(&mut self, furthest: Step, step: Step) {
        let repeated = furthest.0.saturating_sub(step.0);
        self.repeated_steps += repeated;
        if self.steps > 0 {
            let price = self.stepping.mul_f64(repeated as f64 / self.steps as f64);
            let worked = self.spent.entry(Activity::Working).or_default();
            let price = price.min(*worked);
            *worked -= price;
            *self.spent.entry(Activity::Repeating).or_default() += price;
        }
    }

    pub(super) fn end(&mut self, now: Now) {
        self.begin(now, Activity::Ending);
    }

    /// Time since the launch.
    pub fn total(&self) -> Duration {
        self.spent.values().sum()
    }

    /// Time of steps that counted and of evaluations.
    pub fn productive(&self) -> Duration {
        self.spent.get(&Activity::Working).copied().unwrap_or_default()
    }

    /// The rest, by cause.
    pub fn lost(&self) -> impl Iterator<Item = (Activity, Duration)> {
        let causes = self.spent();
        causes.filter(|(activity, time)| *activity != Activity::Working && !time.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_second_is_in_one_account() {
        let at = Duration::from_secs;
        let mut accounts = Accounts::default();
        accounts.begin(at(3), Activity::Working);
        accounts.stepped(10, at(20));
        // The last step was completed at 23 s, which becomes known at 25 s.
        accounts.begin(at(23), Activity::Recovering);
        accounts.rewind(Step(10), Step(8));
        accounts.begin(at(27), Activity::Working);
        accounts.end(at(30));
        let lost: Vec<_> = accounts
            .lost()
            .map(|(activity, time)| (activity.name(), time))
            .collect();
        assert_eq!(
            lost,
            [("starting", at(3)), ("recovering", at(4)), ("repeating", at(4))]
        );
        assert_eq!((accounts.productive(), accounts.total()), (at(19), at(30)));
        assert_eq!(accounts.repeated_steps, 2);
    }
}
