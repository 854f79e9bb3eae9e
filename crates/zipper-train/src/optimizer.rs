//! AdamW over named parameters, with the sparse update rule of DESIGN 3.
//!
//! tch's own optimizers keep their state inside libtorch, where it can be neither sharded nor written to a
//! checkpoint by name; the update itself is four tensor operations.

use std::collections::{BTreeMap, BTreeSet};

use tch::{Kind, Tensor};
use zipper_config::schema::OptimizerConfig;
use zipper_model::param::{Param, ParamRole, ParamScope};

use crate::TrainError;

/// First and second moment of one parameter.
#[derive(Debug)]
struct Moments {
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
}

/// AdamW (Loshchilov & Hutter, arXiv 1711.05101) as `torch.optim.AdamW` computes it.
///
/// Every scope has a step count of its own: a bank that is updated rarely gets the bias correction of a young one.
#[derive(Debug)]
pub struct AdamW {
    config: OptimizerConfig,
    /// One entry for each parameter, in the order of the parameter list.
    moments: Vec<Moments>,
    steps: BTreeMap<ParamScope, u64>,
}

/// Learning rates of one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRates {
    /// Of projector and LoRA matrices.
    pub model: f64,
    /// Of routers and LID embeddings.
    pub router: f64,
}

impl AdamW {
    /// State of a run that has made no step: all moments zero.
    pub fn new(config: &OptimizerConfig, params: &[&Param]) -> Self {
        let moments = params
            .iter()
            .map(|param| Moments {
                exp_avg: param.tensor.zeros_like().detach(),
                exp_avg_sq: param.tensor.zeros_like().detach(),
            })
            .collect();
        Self {
            config: config.clone(),
            moments,
            steps: BTreeMap::new(),
        }
    }

    /// Updates the parameters that have a gradient; the others, their moments and their step counts stay.
    ///
    /// # Shapes
    /// - `params` and `gradients` in the order given to [`AdamW::new`]; each gradient has its parameter's shape
    pub fn step(&mut self, params: &[&Param], gradients: &[Option<Tensor>], rates: LearningRates) {
        let [beta1, beta2] = self.config.betas;
        let updated: BTreeSet<ParamScope> = params
            .iter()
            .zip(gradients)
            .filter(|(_, g)| g.is_some())
            .map(|(p, _)| p.scope)
            .collect();
        for scope in updated {
            *self.steps.entry(scope).or_insert(0) += 1;
        }
        tch::no_grad(|| {
            for ((param, gradient), moments) in params.iter().zip(gradients).zip(&mut self.moments) {
                let Some(gradient) = gradient else { continue };
                let step = self.steps[&param.scope] as f64;
                let rate = match param.role {
                    ParamRole::Router => rates.router,
                    ParamRole::Projector | ParamRole::Lora => rates.model,
                };
                let mut value = param.tensor.shallow_clone();
                if self.config.weight_decay > 0.0 && value.dim() > 1 {
                    let _ = value.g_mul_scalar_(1.0 - rate * self.config.weight_decay);
                }
                let _ = moments.exp_avg.lerp_(gradient, 1.0 - beta1);
                let _ = moments.exp_avg_sq.g_mul_scalar_(beta2);
                let _ = moments.exp_avg_sq.g_add_(&(gradient * gradient * (1.0 - beta2)));
                let correction1 = 1.0 - beta1.powf(step);
                let correction2 = (1.0 - beta2.powf(step)).sqrt();
                let denominator = moments.exp_avg_sq.sqrt() / correction2 + self.config.eps;
                let _ = value.g_sub_(&(&moments.exp_avg / denominator * (rate / correction1)));
            }
        });
    }

    /// Steps made by each scope, for the checkpoint.
    pub fn steps(&self) -> &BTreeMap<ParamScope, u64> {
        &self.steps
    }

    /// The moments of the parameters of `scope`, named `<parameter>.exp_avg` and `<parameter>.exp_avg_sq`.
    pub fn state(&self, params: &[&Param], scope: ParamScope) -> Vec<(String, Tensor)> {
        params
            .iter()
            .zip(&self.moments)
            .filter(|(param, _)| param.scope == scope)
            .flat_map(|(param, moments)| {
                [
                    (format!("{}.exp_avg", param.name), moments.exp_avg.shallow_clone()),
                    (
                        format!("{}.exp_avg_sq", param.name),
                        moments.exp_avg_sq.shallow_clone(),
                    ),
                ]
            })
            .collect()
    }

    /// Takes the moments of `scope` out of `tensors` and its step count.
    ///
    /// # Errors
    /// [`TrainError::State`] if a moment is missing or has another shape than its parameter.
    pub fn restore(
        &mut self,
        params: &[&Param],
        scope: ParamScope,
        tensors: &BTreeMap<String, Tensor>,
        steps: u64,
    ) -> Result<(), TrainError> {
        for (param, moments) in params.iter().zip(&mut self.moments) {
            if param.scope != scope {
                continue;
            }
            crate::state::copy_into(&mut moments.exp_avg, &format!("{}.exp_avg", param.name), tensors)?;
            crate::state::copy_into(
                &mut moments.exp_avg_sq,
                &format!("{}.exp_avg_sq", param.name),
                tensors,
            )?;
        }
        if steps > 0 {
            self.steps.insert(scope, steps);
        }
        Ok(())
    }
}

/// Scales the gradients so that their norm together is at most `limit` (0: no limit), and returns the norm before,
/// as `torch.nn.utils.clip_grad_norm_` does.
pub fn clip_grad_norm(gradients: &mut [Option<Tensor>], limit: f64) -> f64 {
    let squares: Vec<Tensor> = gradients
        .iter()
        .flatten()
        .map(|gradient| gradient.square().sum(Kind::Double))
        .collect();
    let norm = Tensor::stack(&squares, 0)
        .sum(Kind::Double)
        .sqrt()
        .double_value(&[]);
    if limit > 0.0 && norm.is_finite() {
        // The small number is that of torch.nn.utils.clip_grad_norm_.
        let factor = limit / (norm + 1e-6);
        if factor < 1.0 {
            for gradient in gradients.iter_mut().flatten() {
                let _ = gradient.g_mul_scalar_(factor);
            }
        }
    }
    norm
}
