//! Which checkpoints are kept.

use std::collections::BTreeSet;

use zipper_types::Step;

/// What is kept, besides those at the end of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionPolicy {
    /// How many of the newest.
    pub keep_last: u64,
    /// Those whose step is a multiple of it; 0: none.
    pub keep_every: u64,
    /// How many of the best by validation loss.
    pub keep_best: u64,
}

/// A checkpoint as the policy sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kept {
    /// Its step.
    pub step: Step,
    /// Whether it ends a stage.
    pub stage_end: bool,
    /// Validation loss of exactly this state, if there is one.
    pub validation_loss: Option<f64>,
}

/// The checkpoints that the policy does not keep, oldest first. Never the newest one, never one that ends a stage.
pub fn retire(policy: &RetentionPolicy, checkpoints: &[Kept]) -> Vec<Step> {
    let mut sorted: Vec<&Kept> = checkpoints.iter().collect();
    sorted.sort_by_key(|kept| kept.step);
    let last = usize::try_from(policy.keep_last).unwrap_or(usize::MAX).max(1);
    let mut stay: BTreeSet<Step> = sorted.iter().rev().take(last).map(|kept| kept.step).collect();
    let mut by_loss: Vec<(f64, Step)> = sorted
        .iter()
        .filter_map(|kept| Some((kept.validation_loss.filter(|loss| loss.is_finite())?, kept.step)))
        .collect();
    // Of two that are equally good the older one: it was there first.
    by_loss.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let best = usize::try_from(policy.keep_best).unwrap_or(usize::MAX);
    stay.extend(by_loss.into_iter().take(best).map(|(_, step)| step));
    sorted
        .into_iter()
        .filter(|kept| {
            let every = policy.keep_every > 0 && kept.step.0.is_multiple_of(policy.keep_every);
            !(kept.stage_end || every || stay.contains(&kept.step))
        })
        .map(|kept| kept.step)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(step: u64, stage_end: bool, validation_loss: Option<f64>) -> Kept {
        Kept {
            step: Step(step),
            stage_end,
            validation_loss,
        }
    }

    fn retired(keep_last: u64, keep_every: u64, keep_best: u64, checkpoints: &[Kept]) -> Vec<u64> {
        let policy = RetentionPolicy {
            keep_last,
            keep_every,
            keep_best,
        };
        retire(&policy, checkpoints)
            .into_iter()
            .map(|step| step.0)
            .collect()
    }

    #[test]
    fn each_rule_keeps_its_own() {
        let checkpoints = [
            kept(10, false, Some(2.0)),
            kept(20, false, Some(1.0)),
            kept(30, true, None),
            kept(40, false, Some(1.5)),
            kept(50, false, Some(f64::NAN)),
            kept(60, false, None),
            kept(70, false, Some(1.0)),
        ];
        assert_eq!(retired(2, 0, 0, &checkpoints), [10, 20, 40, 50]);
        assert_eq!(retired(1, 0, 1, &checkpoints), [10, 40, 50, 60]);
        assert_eq!(retired(1, 20, 0, &checkpoints), [10, 50]);
        assert_eq!(retired(1, 0, 3, &checkpoints), [10, 50, 60]);
        assert_eq!(retired(100, 0, 0, &checkpoints), [0; 0]);
    }

    /// Thread 7 of docs/testing.md. Goal: whatever the policy says, there is something to resume from.
    #[test]
    fn thread_7_the_newest_one_stays() {
        assert_eq!(retired(0, 0, 0, &[kept(10, false, None)]), [0; 0]);
        assert_eq!(
            retired(0, 0, 0, &[kept(20, false, None), kept(10, false, None)]),
            [10]
        );
        assert_eq!(retired(3, 0, 1, &[]), [0; 0]);
    }
}
