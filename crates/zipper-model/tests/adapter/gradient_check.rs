//! Goal: the gradients are the derivatives of the outputs.
//!
//! Method: in f64, central differences in every element of every parameter and of the inputs, against what the merged
//! adapters give back after two micro batches. The router of `hard` is left out: its straight-through gradient is by
//! design not a derivative (the golden test covers it).

use tch::{Kind, Tensor};
use zipper_model::param::ParamRole;
use zipper_types::Variant;

use crate::support::{assert_close, deltas, gradients, inputs, label, random, spec};

const LANGUAGES: [usize; 4] = [3, 0, 3, 1];
const STEP: f64 = 1e-5;
const TOLERANCE: f64 = 1e-8;

/// The derivative of `loss` by every element of `tensor`, which is changed in place and restored.
fn differences(tensor: &Tensor, loss: impl Fn() -> f64) -> Tensor {
    let flat = tensor.detach().view([-1]);
    let slopes: Vec<f64> = (0..flat.numel() as i64)
        .map(|index| {
            let mut element = flat.get(index);
            let _ = element.g_add_scalar_(STEP);
            let above = loss();
            let _ = element.g_sub_scalar_(2.0 * STEP);
            let below = loss();
            let _ = element.g_add_scalar_(STEP);
            (above - below) / (2.0 * STEP)
        })
        .collect();
    Tensor::from_slice(&slopes).reshape(tensor.size())
}

#[test]
fn gradients_are_derivatives() {
    for variant in Variant::ALL {
        let adapters = random(spec(variant), 3, Kind::Double);
        let inputs: Vec<Tensor> = inputs(5, LANGUAGES.len(), 2, Kind::Double)
            .iter()
            .map(|input| (input * 0.3).set_requires_grad(true))
            .collect();
        let loss = || {
            let sums = deltas(&adapters, &LANGUAGES, &inputs);
            sums.iter()
                .map(|delta| delta.sin().sum(Kind::Double).double_value(&[]))
                .sum::<f64>()
        };
        let found = gradients(&adapters, &LANGUAGES, &inputs, &[3, 1]);
        for param in adapters.params() {
            if variant == Variant::Hard && param.role == ParamRole::Router {
                continue;
            }
            let expected = differences(&param.tensor, loss);
            let what = format!("{variant} {}", label(param));
            match found.get(&label(param)) {
                Some(gradient) => assert_close(gradient, &expected, TOLERANCE, &what),
                None => assert!(
                    expected.abs().max().double_value(&[]) < 1e-12,
                    "{what} has no gradient"
                ),
            }
        }
        for (site, input) in inputs.iter().enumerate() {
            let what = format!("{variant} input {site}");
            assert_close(&input.grad(), &differences(input, loss), TOLERANCE, &what);
        }
    }
}
