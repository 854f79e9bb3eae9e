//! The learning rate of a step.

/// What the rate does after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Stays at the peak.
    Constant,
    /// Falls in a line.
    Linear,
    /// Falls on a half cosine.
    Cosine,
    /// Falls with the inverse square root of the step, to no given end.
    InverseSqrt,
}

/// A warm-up from 0 to `peak`, then a fall to `final_ratio * peak` at the last step, or by the [inverse square root](Shape::InverseSqrt).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRate {
    /// Highest rate.
    pub peak: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Steps of the stage.
    pub total_steps: u64,
    /// What happens after the warm-up.
    pub shape: Shape,
    /// Rate at the end, as a part of the peak.
    pub final_ratio: f64,
}

impl LearningRate {
    /// The rate of the stage's `step`, counted from 1.
    ///
    /// With `final_ratio` 0 this is what transformers' `get_{constant,linear,cosine}_schedule_with_warmup` give at their
    /// step `step - 1`, except that the warm-up ends one step earlier: its first step has rate `peak / warmup_steps`,
    /// not 0, since an update with rate 0 is no update. The inverse square root is `peak * sqrt(warmup_steps / step)`, as `WarmupLR` of
    /// ESPnet and WeNet has it (Noam's schedule, Vaswani et al., equation 3, scaled to its peak).
    pub fn at(&self, step: u64) -> f64 {
        if step <= self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        let left = (self.total_steps - self.warmup_steps).max(1) as f64;
        let progress = ((step - self.warmup_steps - 1) as f64 / left).clamp(0.0, 1.0);
        let part = match self.shape {
            Shape::Constant => 1.0,
            Shape::Linear => 1.0 - progress,
            Shape::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            Shape::InverseSqrt => return self.peak * (self.warmup_steps.max(1) as f64 / step as f64).sqrt(),
        };
        self.peak * (self.final_ratio + (1.0 - self.final_ratio) * part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of transformers 5 (`get_linear_schedule_with_warmup(optimizer, 0, 8)` and cosine), rate 2.
    #[test]
    fn equals_transformers_without_warmup() {
        let rate = |shape| LearningRate {
            peak: 2.0,
            warmup_steps: 0,
            total_steps: 8,
            shape,
            final_ratio: 0.0,
        };
        for (step, expected) in (1..).zip([2.0, 1.75, 1.5, 1.25]) {
            assert!(
                (rate(Shape::Linear).at(step) - expected).abs() < 1e-12,
                "linear, step {step}"
            );
        }
        let expected = [
            2.0,
            1.923_879_532_511_286_7,
            1.707_106_781_186_547_5,
            1.382_683_432_365_09,
            1.0,
        ];
        for (step, expected) in (1..).zip(expected) {
            assert!(
                (rate(Shape::Cosine).at(step) - expected).abs() < 1e-12,
                "cosine, step {step}"
            );
        }
    }

    /// `lr * warmup_steps ** 0.5 * min(step ** -0.5, step * warmup_steps ** -1.5)`, computed by hand.
    #[test]
    fn inverse_square_root_is_warmup_lr_of_wenet() {
        let rate = LearningRate {
            peak: 2.0,
            warmup_steps: 4,
            total_steps: 20,
            shape: Shape::InverseSqrt,
            final_ratio: 0.5,
        };
        for (step, expected) in [(1, 0.5), (4, 2.0), (9, 4.0 / 3.0), (16, 1.0), (64, 0.5)] {
            assert!((rate.at(step) - expected).abs() < 1e-12, "step {step}");
        }
    }

    #[test]
    fn warm_up_rises_in_a_line_and_the_end_is_the_final_ratio() {
        let rate = LearningRate {
            peak: 1.0,
            warmup_steps: 4,
            total_steps: 14,
            shape: Shape::Linear,
            final_ratio: 0.1,
        };
        for (step, expected) in [(1, 0.25), (2, 0.5), (4, 1.0), (5, 1.0)] {
            assert!((rate.at(step) - expected).abs() < 1e-12, "step {step}");
        }
        assert!(rate.at(14) > 0.1 && rate.at(14) < 0.2);
        assert!(
            (rate.at(15) - 0.1).abs() < 1e-12,
            "a step past the end does not go below the final rate"
        );
    }
}
