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
    scope: ParamScope,
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
                scope: param.scope,
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

    /// Updates the parameters of the `updated` scopes; the others, their moments and their step counts stay. A scope's
    /// steps are counted whether or not its parameters are on this rank.
    ///
    /// # Shapes
    /// - `params` in the order given to [`AdamW::new`]; the gradient of each is in its `grad`
    pub fn step(&mut self, params: &[&Param], updated: &BTreeSet<ParamScope>, rates: LearningRates) {
        let [beta1, beta2] = self.config.betas;
        for &scope in updated {
            *self.steps.entry(scope).or_insert(0) += 1;
        }
        tch::no_grad(|| {
            for (param, moments) in params.iter().zip(&mut self.moments) {
                if !updated.contains(&param.scope) {
                    continue;
                }
                let gradient = param.tensor.grad();
                let step = self.steps[&param.scope] as f64;
                let rate = match param.role {
                    ParamRole::Router => rates.router,
                    ParamRole::Projector | ParamRole::Lora | ParamRole::LidHead => rates.model,
                };
                let mut value = param.tensor.shallow_clone();
                if self.config.weight_decay > 0.0 && value.dim() > 1 {
                    let _ = value.g_mul_scalar_(1.0 - rate * self.config.weight_decay);
                }
                let _ = moments.exp_avg.lerp_(&gradient, 1.0 - beta1);
                let _ = moments.exp_avg_sq.g_mul_scalar_(beta2);
                let _ = moments.exp_avg_sq.g_add_(&(gradient.square() * (1.0 - beta2)));
                let correction1 = 1.0 - beta1.powf(step);
                let correction2 = (1.0 - beta2.powf(step)).sqrt();
                let denominator = moments.exp_avg_sq.sqrt() / correction2 + self.config.eps;
                let _ = value.g_sub_(&(&moments.exp_avg / denominator * (rate / correction1)));
            }
        });
    }

    /// The scope of each parameter whose moments are here.
    pub fn scopes(&self) -> Vec<ParamScope> {
        self.moments.iter().map(|moments| moments.scope).collect()
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

    /// Parameters, first and second moments of `scope`, each in the order of `params`, as flat pieces of one row.
    ///
    /// # Shapes
    /// - returns: pieces of `[3 * numel]` in all, detached; they share memory with what is trained
    pub(crate) fn row(&self, params: &[&Param], scope: ParamScope) -> Vec<Tensor> {
        let of_scope = || {
            let both = params.iter().zip(&self.moments);
            both.filter(move |(param, _)| param.scope == scope)
        };
        // A view, never a copy: `set_row` writes into it.
        let flat = |tensor: &Tensor| tensor.detach().view([-1]);
        of_scope()
            .map(|(param, _)| flat(&param.tensor))
            .chain(of_scope().map(|(_, moments)| flat(&moments.exp_avg)))
            .chain(of_scope().map(|(_, moments)| flat(&moments.exp_avg_sq)))
            .collect()
    }

    /// Takes parameters and moments of `scope` from a row of [`AdamW::row`].
    ///
    /// # Panics
    /// If the row has another length.
    pub(crate) fn set_row(&mut self, params: &[&Param], scope: ParamScope, row: &Tensor) {
        let pieces = self.row(params, scope);
        let numel: i64 = pieces.iter().map(|piece| piece.numel() as i64).sum();
        assert_eq!(row.size(), [numel], "a whole scope in one row");
        let mut offset = 0;
        tch::no_grad(|| {
            for mut piece in pieces {
                let len = piece.numel() as i64;
                piece.copy_(&row.narrow(0, offset, len));
                offset += len;
            }
        });
    }

    /// Sets how many steps `scope` has made.
    pub fn restore_steps(&mut self, scope: ParamScope, steps: u64) {
        if steps > 0 {
            self.steps.insert(scope, steps);
        }
    }

    /// Takes the moments of `scope` out of `tensors`.
    ///
    /// # Errors
    /// [`TrainError::State`] if a moment is missing or has another shape than its parameter.
    pub fn restore(
        &mut self,
        params: &[&Param],
        scope: ParamScope,
        tensors: &BTreeMap<String, Tensor>,
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
        Ok(())
    }
}

/// The sum of the squares of all gradients of `params`, in f64.
pub fn squared_norm<'a>(params: impl IntoIterator<Item = &'a Param>) -> f64 {
    let squares: Vec<Tensor> = params
        .into_iter()
        .map(|param| param.tensor.grad().square().sum(Kind::Double))
        .collect();
    if squares.is_empty() {
        return 0.0;
    }
    Tensor::stack(&squares, 0).sum(Kind::Double).double_value(&[])
}

/// What gradients of norm `norm` are multiplied by so that their norm is at most `limit` (0: no limit), as
/// `torch.nn.utils.clip_grad_norm_` does.
pub fn clip_factor(norm: f64, limit: f64) -> f64 {
    if limit > 0.0 && norm.is_finite() {
        // The small number is that of torch.nn.utils.clip_grad_norm_.
        (limit / (norm + 1e-6)).min(1.0)
    } else {
        1.0
    }
}
