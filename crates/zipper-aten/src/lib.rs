//! Operations that tch does not have: libtorch's own over lists of tensors, which are one call, and on a GPU one kernel, where tch needs one
//! for each tensor; and in [`fused`] some of ours that libtorch has only as several.
//!
//! Owns `shim/` (C++ over ATen) and its safe interface. A failure is libtorch's own message, as [`tch::TchError`].

mod ffi;
pub mod fused;

use tch::{Kind, TchError, Tensor};

/// What AdamW changes and reads of one parameter.
#[derive(Debug)]
pub struct AdamWParam {
    /// The parameter.
    pub value: Tensor,
    /// Its gradient, of the parameter's shape, kind and device; so are the moments.
    pub grad: Tensor,
    /// First moment.
    pub exp_avg: Tensor,
    /// Second moment.
    pub exp_avg_sq: Tensor,
    /// The number of this step, from 1: `[]`, f32, on the parameter's device.
    pub step: Tensor,
}

/// The settings of one step of AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWSettings {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the moments.
    pub betas: [f64; 2],
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Added to the denominator.
    pub eps: f64,
}

/// One step of AdamW, in place, as `torch.optim.AdamW(fused=True)` makes it (aten/src/ATen/native/native_functions.yaml, `_fused_adamw_`).
///
/// # Errors
/// [`TchError::Shape`] if tensors of a parameter do not fit each other; [`TchError::Torch`], as libtorch reports it.
pub fn adamw(params: &[AdamWParam], settings: AdamWSettings) -> Result<(), TchError> {
    if params.is_empty() {
        return Ok(());
    }
    params.iter().try_for_each(AdamWParam::check)?;
    ffi::adamw(params, settings)
}

impl AdamWParam {
    /// libtorch's kernel takes the parameter's size and element type for those of the others, and reads what lies there.
    fn check(&self) -> Result<(), TchError> {
        let Self {
            value,
            grad,
            exp_avg,
            exp_avg_sq,
            step,
        } = self;
        let fits = |other: &Tensor| {
            other.size() == value.size()
                && (other.kind(), other.device()) == (value.kind(), value.device())
                && other.is_contiguous()
        };
        let all_fit = [value, grad, exp_avg, exp_avg_sq].into_iter().all(fits);
        if all_fit && step.numel() == 1 && (step.kind(), step.device()) == (Kind::Float, value.device()) {
            return Ok(());
        }
        Err(TchError::Shape(format!(
            "AdamW of a parameter {value:?}: gradient {grad:?}, moments {exp_avg:?} and {exp_avg_sq:?}, step {step:?}; all must \
             be contiguous and like the parameter, but for the step: one f32"
        )))
    }
}

/// Multiplies all of `tensors` by `factor`, in place (`torch._foreach_mul_`).
///
/// # Errors
/// [`TchError::Torch`], as libtorch reports it.
pub fn mul(tensors: &[Tensor], factor: f64) -> Result<(), TchError> {
    if tensors.is_empty() {
        return Ok(());
    }
    ffi::mul(tensors, factor)
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn lists_are_multiplied_in_place() {
        let tensors = [
            Tensor::from_slice(&[1.0, -2.0]),
            Tensor::from_slice(&[0.5]).view([1, 1]),
        ];
        mul(&tensors, 4.0).unwrap();
        let values = tensors.map(|tensor| Vec::<f64>::try_from(tensor.view(-1)).unwrap());
        assert_eq!(values, [vec![4.0, -8.0], vec![2.0]]);
        mul(&[], 4.0).unwrap();
    }

    /// Tensors of other shapes, kinds or strides are an error, and change nothing.
    #[test]
    fn what_does_not_fit_is_an_error() {
        let param = || {
            let zeros = || Tensor::zeros([2, 3], (Kind::Double, Device::Cpu));
            AdamWParam {
                value: zeros(),
                grad: zeros() + 1.0,
                exp_avg: zeros(),
                exp_avg_sq: zeros(),
                step: Tensor::from(1.0f32),
            }
        };
        let settings = AdamWSettings {
            lr: 0.1,
            betas: [0.9, 0.999],
            weight_decay: 0.0,
            eps: 1e-8,
        };
        let edits: [fn(&mut AdamWParam); 4] = [
            |param| param.grad = param.grad.narrow(1, 0, 2).contiguous(),
            |param| param.exp_avg = param.exp_avg.to_kind(Kind::Float),
            |param| param.exp_avg_sq = Tensor::zeros([3, 2], (Kind::Double, Device::Cpu)).transpose(0, 1),
            |param| param.step = Tensor::from(1.0f64),
        ];
        for edit in edits {
            let (right, mut wrong) = (param(), param());
            edit(&mut wrong);
            let value = right.value.shallow_clone();
            let error = adamw(&[right, wrong], settings).unwrap_err();
            assert!(error.to_string().contains("AdamW of a parameter"), "{error}");
            assert_eq!(value, value.zeros_like());
        }
        let right = param();
        let value = right.value.shallow_clone();
        adamw(&[right], settings).unwrap();
        assert!((value + 0.1).abs().max().double_value(&[]) < 1e-6);
        adamw(&[], settings).unwrap();
    }
}
