//! Whether the update of a step is made: not where the loss or the gradient is not finite, nor where the loss is a spike that is to be
//! skipped. All ranks judge by the same numbers, and so alike.

use std::collections::BTreeSet;

use zipper_config::schema::{OnLossSpike, OnNonFinite};
use zipper_types::Step;

use crate::TrainError;
use crate::session::Session;

/// What was found of a step.
pub(crate) struct Judged {
    /// Whether the loss is far above those before.
    pub(crate) spike: bool,
    /// Whether the update is left out.
    pub(crate) skipped: bool,
}

impl Session {
    /// Looks at the `loss` of a step, per target token, and the norm of its gradient before clipping.
    ///
    /// # Errors
    /// [`TrainError::NonFinite`] and [`TrainError::LossSpike`], where the configuration says to stop.
    pub(crate) fn judge(
        &self,
        step: Step,
        loss: f64,
        grad_norm: f64,
        in_batch: &BTreeSet<usize>,
    ) -> Result<Judged, TrainError> {
        let finite = loss.is_finite() && grad_norm.is_finite();
        if !finite {
            self.refuse_or_warn(step, loss, in_batch)?;
        }
        let spike = self.is_spike(step, loss, in_batch)?;
        let skips_spikes = self.replica.config().training.on_loss_spike == OnLossSpike::Skip;
        Ok(Judged {
            spike,
            skipped: !finite || (spike && skips_spikes),
        })
    }

    /// A loss or gradient that is not finite: an error, or a warning.
    fn refuse_or_warn(&self, step: Step, loss: f64, in_batch: &BTreeSet<usize>) -> Result<(), TrainError> {
        let languages = self.codes_of(in_batch);
        let what = if loss.is_finite() { "gradient" } else { "loss" };
        match self.replica.config().training.on_non_finite {
            OnNonFinite::Stop => Err(TrainError::NonFinite {
                step: step.0,
                what,
                languages,
            }),
            OnNonFinite::Skip => {
                tracing::warn!(
                    step = step.0,
                    what,
                    languages,
                    "not finite: the update is left out"
                );
                Ok(())
            }
        }
    }

    /// Whether the loss is a spike that the configuration wants to know of: with a warning, or an error where it says to stop.
    fn is_spike(&self, step: Step, loss: f64, in_batch: &BTreeSet<usize>) -> Result<bool, TrainError> {
        let training = &self.replica.config().training;
        let factor = training.loss_spike_factor;
        let Some(median) = self.recent_losses.exceeded(loss, factor) else {
            return Ok(false);
        };
        let languages = self.codes_of(in_batch);
        match training.on_loss_spike {
            OnLossSpike::Ignore => return Ok(false),
            OnLossSpike::Stop => {
                return Err(TrainError::LossSpike {
                    step: step.0,
                    loss,
                    median,
                    factor,
                    languages,
                });
            }
            OnLossSpike::Skip => tracing::warn!(
                step = step.0,
                loss,
                median,
                languages,
                "loss spike: the update is left out"
            ),
            OnLossSpike::Warn => tracing::warn!(step = step.0, loss, median, languages, "loss spike"),
        }
        Ok(true)
    }

    /// `de fr`.
    fn codes_of(&self, languages: &BTreeSet<usize>) -> String {
        let codes = &self.replica.config().data.languages;
        let codes: Vec<&str> = languages
            .iter()
            .map(|&language| codes[language].as_str())
            .collect();
        codes.join(" ")
    }
}
