//! Goal: a new projector starts as torch.nn's layers do, from the run's seed alone.
//!
//! What it computes is compared with torch.nn in `llm.rs`.

use serde_json::json;
use tch::Device;
use zipper_model::param::{Param, ParamRole, ParamScope};
use zipper_model::projector::Projector;

fn new(kind: &str, seed: u64) -> Projector {
    let config =
        serde_json::from_value(json!({"kind": kind, "stack": 5})).expect("the schema has these keys");
    Projector::new(&config, 6, 9, seed, Device::Cpu, tch::Kind::Float)
}

fn find<'a>(projector: &'a Projector, name: &str) -> &'a Param {
    let name = format!("projector.{name}");
    projector
        .params()
        .iter()
        .find(|param| param.name == name)
        .expect("the parameter exists")
}

/// Name and shape of a layer's weight; its values lie within 1 / sqrt(inputs), and so do those of the bias.
const LAYERS: [(&str, &str, &[i64], f64); 6] = [
    ("conv", "conv1", &[6, 6, 3], 18.0),
    ("conv", "conv2", &[24, 6, 3], 18.0),
    ("conv", "linear1", &[6, 24], 24.0),
    ("conv", "linear2", &[9, 6], 6.0),
    ("stack", "linear1", &[6, 30], 30.0),
    ("stack", "linear2", &[9, 6], 6.0),
];

#[test]
fn initial_values_are_those_of_torch() {
    for (kind, layer, shape, inputs) in LAYERS {
        let projector = new(kind, 3);
        let weight = find(&projector, &format!("{layer}.weight"));
        let bias = find(&projector, &format!("{layer}.bias"));
        assert_eq!(weight.tensor.size(), shape);
        assert_eq!(bias.tensor.size(), &shape[..1]);
        for param in [weight, bias] {
            let largest = param.tensor.abs().max().double_value(&[]);
            let bound = 1.0 / f64::sqrt(inputs);
            assert!(
                largest <= bound && largest > 0.5 * bound,
                "{}: {largest} of {bound}",
                param.name
            );
        }
    }
    let projector = new("conv", 3);
    assert_eq!(
        find(&projector, "norm.weight").tensor,
        tch::Tensor::from_slice(&[1f32; 9])
    );
    assert_eq!(
        find(&projector, "norm.bias").tensor,
        tch::Tensor::from_slice(&[0f32; 9])
    );
}

#[test]
fn initial_values_depend_on_the_seed() {
    for kind in ["conv", "stack"] {
        let (first, again, other) = (new(kind, 3), new(kind, 3), new(kind, 4));
        for (index, param) in first.params().iter().enumerate() {
            assert_eq!(
                (param.scope, param.role),
                (ParamScope::Shared, ParamRole::Projector)
            );
            assert!(param.tensor.requires_grad());
            assert_eq!(param.tensor, again.params()[index].tensor, "{}", param.name);
            if !param.name.contains("norm") {
                assert_ne!(param.tensor, other.params()[index].tensor, "{}", param.name);
            }
        }
    }
}
