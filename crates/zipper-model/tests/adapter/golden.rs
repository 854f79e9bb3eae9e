//! Goal: outputs and gradients of every variant equal those of an independent PyTorch implementation of docs/concepts.md
//! (`tests/golden/make_adapter_golden.py`), the straight-through gate included.
//!
//! Method: the file's parameters are put into fresh adapters, a batch of mixed languages runs as one micro batch, whose
//! gradients are carried to the parameters by a last pass without rows of its own, and every gradient of every parameter and input is compared, in f64 (to 1e-12) and in f32 (to 1e-5).

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};
use zipper_config::schema::{BankInit, RouterConfig, RouterGranularity};
use zipper_model::adapter::{AdapterSpec, Adapters};
use zipper_types::Variant;

use crate::support::{assert_close, delta, label, set, site};

const ROWS: [usize; 6] = [2, 0, 3, 2, 0, 0];

fn golden() -> BTreeMap<String, Tensor> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/adapter.safetensors");
    Tensor::read_safetensors(path)
        .expect("the golden file is committed")
        .into_iter()
        .collect()
}

fn check(case: &str, variant: Variant, granularity: RouterGranularity) {
    for (kind, tolerance) in [(Kind::Double, 1e-12), (Kind::Float, 1e-5)] {
        check_in(case, variant, granularity, kind, tolerance);
    }
}

fn check_in(case: &str, variant: Variant, granularity: RouterGranularity, kind: Kind, tolerance: f64) {
    let golden = golden();
    let at = |name: &str| &golden[&format!("{case}/{name}")];
    let sites = [
        site("enc.layers.1.fc1", 1, 7, 6),
        site("model.layers.0.q_proj", 0, 9, 8),
        site("model.layers.0.up_proj", 0, 9, 10),
        site("model.layers.1.down_proj", 1, 10, 9),
    ];
    let spec = AdapterSpec {
        variant,
        rank: 5,
        alpha: 12.5,
        dropout: 0.0,
        shared_rank: 2,
        init: BankInit::Stage1,
        router: RouterConfig {
            lid_dim: 3,
            granularity,
            initial_gate: 0.5,
        },
        num_languages: 4,
    };
    let adapters = Adapters::new(spec, &sites, 1, Device::Cpu).expect("the spec is good");
    let in_file = golden
        .keys()
        .filter(|key| key.starts_with(&format!("{case}/param/")))
        .count();
    assert_eq!(
        adapters.params().len(),
        in_file,
        "{case}: the file has the same parameters"
    );
    for param in adapters.params() {
        set(param, &at(&format!("param/{}", label(param))).to_kind(kind));
    }

    let merged = adapters.merge(&ROWS);
    let rows = merged.rows(&ROWS, None);
    for (index, site) in sites.iter().enumerate() {
        let input = golden[&format!("input/{}", site.name)]
            .to_kind(kind)
            .set_requires_grad(true);
        let output = delta(&rows, index, &input);
        let what = |part: &str| format!("{case} {kind:?} {part} of {}", site.name);
        assert_close(
            &output,
            at(&format!("output/{}", site.name)),
            tolerance,
            &what("output"),
        );
        output.sin().sum(kind).backward();
        let expected = at(&format!("input_gradient/{}", site.name));
        assert_close(&input.grad(), expected, tolerance, &what("input gradient"));
    }
    if let Some(carried) = merged.last_pass(&adapters).carried() {
        carried.backward();
    }
    for param in adapters.params() {
        let label = label(param);
        let gradient = param.tensor.grad();
        match golden.get(&format!("{case}/gradient/{label}")) {
            Some(expected) => {
                assert!(gradient.defined(), "{case}: {label} has no gradient");
                assert_close(
                    &gradient,
                    expected,
                    tolerance,
                    &format!("{case} {kind:?} gradient of {label}"),
                );
            }
            None => assert!(
                !gradient.defined(),
                "{case}: {label} has a gradient, but its language is absent"
            ),
        }
    }
}

#[test]
fn shared_equals_pytorch() {
    check("shared", Variant::Shared, RouterGranularity::Linear);
}

#[test]
fn independent_equals_pytorch() {
    check("independent", Variant::Independent, RouterGranularity::Linear);
}

#[test]
fn static_equals_pytorch() {
    check("static", Variant::Static, RouterGranularity::Linear);
}

#[test]
fn hard_equals_pytorch() {
    check("hard_linear", Variant::Hard, RouterGranularity::Linear);
}

#[test]
fn hard_with_a_router_for_each_layer_equals_pytorch() {
    check("hard_layer", Variant::Hard, RouterGranularity::Layer);
}

#[test]
fn soft_equals_pytorch() {
    check("soft_linear", Variant::Soft, RouterGranularity::Linear);
}

#[test]
fn soft_with_one_router_equals_pytorch() {
    check("soft_model", Variant::Soft, RouterGranularity::Model);
}
