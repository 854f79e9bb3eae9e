//! Small adapters with odd sizes, filled with random values, and the gradients of a loss over them.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};
use zipper_config::schema::{BankInit, RouterConfig, RouterGranularity};
use zipper_model::adapter::{AdaptedRows, AdapterSpec, Adapters};
use zipper_model::init;
use zipper_model::linear::{LinearDelta, LoraSite};
use zipper_model::packing::Packing;
use zipper_model::param::{Param, ParamRole, ParamScope};
use zipper_types::Variant;

pub(crate) fn site(name: &str, layer: usize, d_in: i64, d_out: i64) -> LoraSite {
    LoraSite {
        name: name.to_owned(),
        layer,
        d_in,
        d_out,
    }
}

/// Two layers of an LLM and one of an encoder.
pub(crate) fn sites() -> Vec<LoraSite> {
    vec![
        site("model.layers.0.q_proj", 0, 7, 5),
        site("model.layers.1.up_proj", 1, 8, 6),
        site("encoder.layers.1.fc1", 1, 6, 9),
    ]
}

/// Rank 4 of which `static` shares 1, four languages.
pub(crate) fn spec(variant: Variant) -> AdapterSpec {
    AdapterSpec {
        variant,
        rank: 4,
        alpha: 6.0,
        dropout: 0.0,
        shared_rank: 1,
        init: BankInit::Stage1,
        router: RouterConfig {
            lid_dim: 3,
            granularity: RouterGranularity::Linear,
            initial_gate: 0.5,
        },
        num_languages: 4,
    }
}

pub(crate) fn fresh(spec: AdapterSpec) -> Adapters {
    Adapters::new(spec, &sites(), 1, Device::Cpu).expect("the test's own spec is good")
}

/// Adapters whose parameters, B included, are standard normal values out of `seed`.
pub(crate) fn random(spec: AdapterSpec, seed: u64, kind: Kind) -> Adapters {
    let adapters = fresh(spec);
    for param in adapters.params() {
        set(param, &normal(seed, &label(param), &param.tensor.size(), kind));
    }
    adapters
}

/// Overwrites a parameter, its element type included.
pub(crate) fn set(param: &Param, value: &Tensor) {
    assert_eq!(param.tensor.size(), value.size(), "{}", param.name);
    param.tensor.shallow_clone().set_data(value);
}

/// The parameter with this name and scope.
pub(crate) fn param<'a>(adapters: &'a Adapters, scope: ParamScope, name: &str) -> &'a Param {
    let found = adapters
        .params()
        .iter()
        .find(|param| param.scope == scope && param.name == name);
    found.unwrap_or_else(|| panic!("no parameter {name} in {scope:?}"))
}

/// A parameter's name with its scope: `shared/lid.weight`, `bank.2/lora.<site>.B`.
pub(crate) fn label(param: &Param) -> String {
    match param.scope {
        ParamScope::Shared => format!("shared/{}", param.name),
        ParamScope::Bank(language) => format!("bank.{language}/{}", param.name),
    }
}

/// Whether it is a bank's B and not an A or the shared B.
pub(crate) fn is_bank_b(name: &str) -> bool {
    name.rsplit('.').next() == Some("B")
}

pub(crate) fn normal(seed: u64, name: &str, shape: &[i64], kind: Kind) -> Tensor {
    init::normal(seed, name, shape, 1.0).to_kind(kind)
}

/// One input for each site, `[rows, time, d_in]`.
pub(crate) fn inputs(seed: u64, rows: usize, time: i64, kind: Kind) -> Vec<Tensor> {
    let of_site = |site: &LoraSite| normal(seed, &site.name, &[rows as i64, time, site.d_in], kind);
    sites().iter().map(of_site).collect()
}

/// Makes every gate 0 or 1 to the last bit: column j of language l is shared where `shared(l, j)`.
pub(crate) fn saturate_gates(adapters: &Adapters, shared: impl Fn(i64, i64) -> bool) {
    let (languages, rank) = (adapters.spec().num_languages as i64, adapters.spec().rank as i64);
    assert_eq!(
        adapters.spec().router.lid_dim as i64,
        languages,
        "LID embeddings become unit vectors"
    );
    for param in adapters
        .params()
        .iter()
        .filter(|param| param.role == ParamRole::Router)
    {
        let kind = param.tensor.kind();
        let value = if param.name == "lid.weight" {
            Tensor::eye(languages, (kind, Device::Cpu))
        } else if param.name.ends_with(".weight") {
            let logits: Vec<f64> = (0..rank)
                .flat_map(|j| (0..languages).map(move |l| (l, j)))
                .map(|(l, j)| if shared(l, j) { 1000.0 } else { -1000.0 })
                .collect();
            Tensor::from_slice(&logits)
                .reshape([rank, languages])
                .to_kind(kind)
        } else {
            Tensor::zeros([rank], (kind, Device::Cpu))
        };
        set(param, &value);
    }
}

/// The delta of one site for rows of equal length.
///
/// # Shapes
/// - `input`: `[rows, time, d_in]`
/// - returns: `[rows, time, d_out]`
pub(crate) fn delta(rows: &AdaptedRows<'_>, site: usize, input: &Tensor) -> Tensor {
    let (num_rows, time, _) = input.size3().expect("rows of equal length");
    let packing = Packing::uniform(num_rows, time, Device::Cpu);
    let packed = rows.delta(site, &input.flatten(0, 1), &packing);
    packed.unflatten(0, [num_rows, time])
}

/// The deltas of all sites for one batch.
pub(crate) fn deltas(adapters: &Adapters, languages: &[usize], inputs: &[Tensor]) -> Vec<Tensor> {
    let merged = adapters.merge(languages);
    let rows = merged.rows(languages, None);
    inputs
        .iter()
        .enumerate()
        .map(|(site, input)| delta(&rows, site, input))
        .collect()
}

/// Runs micro batches of the given numbers of rows over one merging and returns the gradients of `sum(sin(delta))`,
/// by label; parameters without a gradient are left out.
pub(crate) fn gradients(
    adapters: &Adapters,
    languages: &[usize],
    inputs: &[Tensor],
    micro_batches: &[usize],
) -> BTreeMap<String, Tensor> {
    assert_eq!(micro_batches.iter().sum::<usize>(), languages.len());
    for param in adapters.params() {
        param.tensor.shallow_clone().zero_grad();
    }
    let merged = adapters.merge(languages);
    let last_pass = merged.last_pass(adapters);
    let mut first = 0;
    for (index, &count) in micro_batches.iter().enumerate() {
        let is_last = index + 1 == micro_batches.len();
        let of_rows = &languages[first..first + count];
        let rows = if is_last {
            last_pass.rows(of_rows, None)
        } else {
            merged.rows(of_rows, None)
        };
        let mut losses: Vec<Tensor> = inputs
            .iter()
            .enumerate()
            .map(|(site, input)| delta(&rows, site, &input.narrow(0, first as i64, count as i64)))
            .map(|delta| delta.sin().sum(delta.kind()))
            .collect();
        if is_last {
            losses.extend(last_pass.carried());
        }
        Tensor::stack(&losses, 0).sum(losses[0].kind()).backward();
        first += count;
    }
    let with_gradient = adapters
        .params()
        .iter()
        .filter(|param| param.tensor.grad().defined());
    with_gradient
        .map(|param| (label(param), param.tensor.grad().copy()))
        .collect()
}

/// Norm of the difference relative to the norm of `expected`.
pub(crate) fn relative_error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let norm = |tensor: &Tensor| tensor.to_kind(Kind::Double).norm().double_value(&[]);
    let difference = norm(&(found.to_kind(Kind::Double) - expected.to_kind(Kind::Double)));
    difference / norm(expected).max(f64::MIN_POSITIVE)
}

/// Fails if the two differ by more than `tolerance`, relative to `expected`; two zeros are equal.
pub(crate) fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f64, what: &str) {
    let error = relative_error(found, expected);
    assert!(
        error <= tolerance,
        "{what}: relative error {error:e} is over {tolerance:e}"
    );
}

/// Fails unless both hold the same labels and close tensors.
pub(crate) fn assert_all_close(
    found: &BTreeMap<String, Tensor>,
    expected: &BTreeMap<String, Tensor>,
    tolerance: f64,
) {
    assert!(
        found.keys().eq(expected.keys()),
        "{:?} and {:?}",
        found.keys(),
        expected.keys()
    );
    for (label, expected) in expected {
        assert_close(&found[label], expected, tolerance, label);
    }
}
