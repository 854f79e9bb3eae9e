//! AdamW over named parameters, with the sparse update rule of docs/decisions/0002.
//!
//! tch's own optimizers keep their state inside libtorch, where it can be neither sharded nor written to a
//! checkpoint by name; the update itself is libtorch's fused one, a call for all parameters with the same settings.

use std::collections::{BTreeMap, BTreeSet};

use tch::{Device, Kind, TchError, Tensor};
use zipper_aten::{AdamWParam, AdamWSettings};
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
    /// Of LoRA matrices and the LID head.
    pub lora: f64,
    /// Of the projector.
    pub projector: f64,
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
    /// - `params` in the order given to [`AdamW::new`], all on one device; the gradient of each is in its `grad`
    ///
    /// # Errors
    /// [`TchError`] of libtorch.
    pub fn step(
        &mut self,
        params: &[&Param],
        updated: &BTreeSet<ParamScope>,
        rates: LearningRates,
    ) -> Result<(), TchError> {
        for &scope in updated {
            *self.steps.entry(scope).or_insert(0) += 1;
        }
        let Some(first) = params.first() else {
            return Ok(());
        };
        let steps = self.steps_on(first.tensor.device(), updated);
        for (settings, of_group) in self.groups(params, updated, rates) {
            let of_group: Vec<AdamWParam> = of_group
                .into_iter()
                .map(|(param, moments)| AdamWParam {
                    value: param.tensor.shallow_clone(),
                    grad: param.tensor.grad(),
                    exp_avg: moments.exp_avg.shallow_clone(),
                    exp_avg_sq: moments.exp_avg_sq.shallow_clone(),
                    step: steps[&param.scope].shallow_clone(),
                })
                .collect();
            zipper_aten::adamw(&of_group, settings)?;
        }
        Ok(())
    }

    /// The step count of each of `scopes` as a tensor `[]`, f32, copied to `device` at once.
    fn steps_on(&self, device: Device, scopes: &BTreeSet<ParamScope>) -> BTreeMap<ParamScope, Tensor> {
        let counts: Vec<f32> = scopes.iter().map(|scope| self.steps[scope] as f32).collect();
        let counts = Tensor::from_slice(&counts).to_device(device).unbind(0);
        scopes.iter().copied().zip(counts).collect()
    }

    /// The parameters of the `updated` scopes, those together that have the same learning rate and weight decay. Vectors do not decay.
    fn groups<'a>(
        &'a self,
        params: &[&'a Param],
        updated: &BTreeSet<ParamScope>,
        rates: LearningRates,
    ) -> Vec<(AdamWSettings, Vec<(&'a Param, &'a Moments)>)> {
        let mut groups: Vec<(AdamWSettings, Vec<_>)> = Vec::new();
        for (&param, moments) in params.iter().zip(&self.moments) {
            if !updated.contains(&param.scope) {
                continue;
            }
            let settings = AdamWSettings {
                lr: match param.role {
                    ParamRole::Router => rates.router,
                    ParamRole::Projector => rates.projector,
                    ParamRole::Lora | ParamRole::LidHead => rates.lora,
                },
                betas: self.config.betas,
                weight_decay: if param.tensor.dim() > 1 {
                    self.config.weight_decay
                } else {
                    0.0
                },
                eps: self.config.eps,
            };
            match groups.iter_mut().find(|(of_group, _)| *of_group == settings) {
                Some((_, of_group)) => of_group.push((param, moments)),
                None => groups.push((settings, vec![(param, moments)])),
            }
        }
        groups
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
