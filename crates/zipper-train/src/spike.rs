//! Loss spikes: a step whose loss is far above what recent steps had.
//!
//! Pure: whether a loss is a spike follows from the losses before it alone, and these are part of the training state. So all ranks
//! decide alike, and a run that was resumed decides as the run that was not.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Losses that a new one is compared with.
const WINDOW: usize = 32;

/// The finite losses of the last steps, oldest first.
///
/// Kept in f32: it is read back from `state.json` as it was written, and a comparison with a median needs no more.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RecentLosses(VecDeque<f32>);

impl RecentLosses {
    /// The median of the last 32 finite losses if `loss` is more than `factor` times as high. Nothing before there are as many.
    pub fn exceeded(&self, loss: f64, factor: f64) -> Option<f64> {
        if self.0.len() < WINDOW {
            return None;
        }
        let mut sorted: Vec<f32> = self.0.iter().copied().collect();
        sorted.sort_by(f32::total_cmp);
        let median = f64::midpoint(f64::from(sorted[WINDOW / 2 - 1]), f64::from(sorted[WINDOW / 2]));
        (loss > factor * median).then_some(median)
    }

    /// Takes the loss of a step in, a spike's too: a level that lasts is no spike for long. Losses that are not finite are left out.
    pub fn push(&mut self, loss: f64) {
        let loss = loss as f32;
        if loss.is_finite() {
            self.0.push_back(loss);
            if self.0.len() > WINDOW {
                self.0.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn losses(losses: impl IntoIterator<Item = f64>) -> RecentLosses {
        let mut recent = RecentLosses::default();
        losses.into_iter().for_each(|loss| recent.push(loss));
        recent
    }

    #[test]
    fn a_spike_is_far_above_the_median_of_32_losses() {
        let falling = losses((0..32).map(|step| 4.0 - 0.1 * f64::from(step)));
        // Between the 16th and the 17th: 2.5 and 2.4.
        let median = falling.exceeded(7.4, 3.0).expect("3 * 2.45 is exceeded");
        assert!((median - 2.45).abs() < 1e-6);
        assert_eq!(falling.exceeded(7.3, 3.0), None);
        assert_eq!(falling.exceeded(7.4, 3.1), None, "the factor counts");
    }

    #[test]
    fn nothing_is_a_spike_before_there_are_32_losses() {
        assert_eq!(losses((0..31).map(|_| 1.0)).exceeded(1e9, 3.0), None);
        assert!(losses((0..32).map(|_| 1.0)).exceeded(1e9, 3.0).is_some());
    }

    #[test]
    fn losses_that_are_not_finite_are_left_out() {
        let ones = || (0..32).map(|_| 1.0);
        assert_eq!(
            losses(ones().chain([f64::NAN, f64::INFINITY, 1e300])),
            losses(ones())
        );
    }

    /// One spike does not hide the next one, but 16 steps on a new level make it the normal one.
    #[test]
    fn a_level_that_lasts_is_no_spike() {
        let with_high = |count: usize| losses((0..32).map(|_| 1.0).chain((0..count).map(|_| 10.0)));
        assert!(with_high(1).exceeded(10.0, 3.0).is_some());
        assert!(with_high(15).exceeded(10.0, 3.0).is_some());
        assert_eq!(with_high(16).exceeded(10.0, 3.0), None);
    }

    #[test]
    fn it_is_read_back_as_it_was_written() {
        let uneven = losses((1..40).map(|step| 1.0 / f64::from(step) + f64::from(step).sqrt()));
        let json = serde_json::to_string(&uneven).expect("numbers");
        let back: RecentLosses = serde_json::from_str(&json).expect("numbers");
        assert_eq!(back, uneven);
    }
}
