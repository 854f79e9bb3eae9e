//! Goal: a layer with its adapter is the frozen layer and the delta, and so are the gradients of its input and of the parameters: where it is one
//! operation, as with rows of one language, and where it is several, with dropout and without.

use tch::{Device, Kind, Tensor};
use zipper_model::adapter::{AdapterSpec, Adapters};
use zipper_model::linear::{Linear, LinearDelta};
use zipper_model::packing::Packing;
use zipper_types::Variant;

use crate::support::{assert_close, label, normal, random, sites, spec};

/// Tokens of the two rows.
const LENGTHS: [i64; 2] = [5, 8];

/// The output of `make` for `input`, the gradient of the sum of its sines by the input, and those by the parameters that get one.
fn found(adapters: &Adapters, input: &Tensor, make: impl Fn(&Tensor) -> Tensor) -> Vec<(String, Tensor)> {
    for param in adapters.params() {
        param.tensor.shallow_clone().zero_grad();
    }
    let input = input.detach().set_requires_grad(true);
    let output = make(&input);
    output.sin().sum(output.kind()).backward();
    let mut found = vec![
        ("output".to_owned(), output.detach()),
        ("input".to_owned(), input.grad()),
    ];
    for param in adapters.params() {
        let gradient = param.tensor.grad();
        if gradient.defined() {
            found.push((label(param), gradient.copy()));
        }
    }
    found
}

#[test]
fn adapted_layers_are_the_frozen_ones_and_the_delta() {
    let packing = Packing::new(LENGTHS.to_vec(), Device::Cpu);
    for (kind, tolerance) in [(Kind::Double, 1e-12), (Kind::Float, 1e-5)] {
        for variant in Variant::ALL {
            for (languages, seeds) in [
                ([1, 1], None),
                ([1, 1], Some(&[5, 6])),
                ([1, 2], None),
                ([1, 2], Some(&[5, 6])),
            ] {
                let dropout = AdapterSpec {
                    dropout: 0.3,
                    ..spec(variant)
                };
                let adapters = random(dropout, 2, kind);
                let merged = adapters.merge(&languages);
                let rows = merged.rows(&languages, seeds.map(|seeds: &[u64; 2]| &seeds[..]));
                for (number, site) in sites().iter().enumerate() {
                    let layer = Linear {
                        weight: normal(3, "weight", &[site.d_out, site.d_in], kind),
                        bias: (number > 0).then(|| normal(4, "bias", &[site.d_out], kind)),
                        site: Some(number),
                    };
                    let input = normal(5, "input", &[LENGTHS.iter().sum(), site.d_in], kind);
                    let adapted = found(&adapters, &input, |x| layer.forward(x, &packing, Some(&rows)));
                    let apart = found(&adapters, &input, |x| {
                        layer.forward(x, &packing, None) + rows.delta(number, x, &packing)
                    });
                    let names = |found: &[(String, Tensor)]| -> Vec<String> {
                        found.iter().map(|(name, _)| name.clone()).collect()
                    };
                    assert_eq!(names(&adapted), names(&apart));
                    for ((name, adapted), (_, apart)) in adapted.iter().zip(&apart) {
                        let what = format!("{variant}, {languages:?}, {seeds:?}, {}: {name}", site.name);
                        assert_close(adapted, apart, tolerance, &what);
                    }
                }
            }
        }
    }
}
