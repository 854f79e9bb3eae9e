//! Goal: what people are told of gates and banks is what the definitions say, computed the long way round.

use tch::{Kind, Tensor};
use zipper_config::schema::RouterGranularity;
use zipper_model::adapter::Adapters;
use zipper_model::param::ParamScope;
use zipper_types::Variant;

use crate::support::{random, site, spec};

/// `[d_out, d_in]` of each layer: what the bank of `language` adds to the weights, without the scale.
fn own_delta(adapters: &Adapters, language: usize) -> Vec<Tensor> {
    let spec = adapters.spec();
    let columns = spec.bank_columns() as i64;
    let find = |scope, name: &str| {
        let mut params = adapters.params().iter();
        params.find(|param| param.scope == scope && param.name == name)
    };
    crate::support::sites()
        .iter()
        .map(|site| {
            let own = ParamScope::Bank(language);
            let b = find(own, &format!("lora.{}.B", site.name)).expect("every layer has a bank");
            let name = format!("lora.{}.A", site.name);
            let a = find(own, &name).or_else(|| find(ParamScope::Shared, &name));
            let a = &a.expect("every layer has an A").tensor;
            let a = a.narrow(0, spec.rank as i64 - columns, columns);
            b.tensor.detach().matmul(&a.detach())
        })
        .collect()
}

#[test]
fn banks_are_compared_by_what_they_do_to_the_weights() {
    for variant in [
        Variant::Independent,
        Variant::Static,
        Variant::Hard,
        Variant::Soft,
    ] {
        let adapters = random(spec(variant), 3, Kind::Double);
        let deltas: Vec<Tensor> = (0..4)
            .map(|language| {
                let flat: Vec<Tensor> = own_delta(&adapters, language)
                    .iter()
                    .map(|delta| delta.reshape([-1]))
                    .collect();
                Tensor::cat(&flat, 0).to_kind(Kind::Double)
            })
            .collect();
        let deltas = Tensor::stack(&deltas, 0);
        let apart = &deltas - deltas.mean_dim(0, true, Kind::Double);
        let unit = &apart / apart.norm_scalaropt_dim(2.0, [1i64], true);
        let expected = unit.matmul(&unit.transpose(0, 1));
        let found = adapters.bank_similarity().expect("the banks differ");
        let difference = (found - expected).abs().max().double_value(&[]);
        assert!(difference < 1e-6, "{variant}: {difference}");
    }
    assert!(
        random(spec(Variant::Shared), 3, Kind::Float)
            .bank_similarity()
            .is_none()
    );
}

/// Right after Initial-B all banks are the same: there is no direction in which they differ.
#[test]
fn equal_banks_have_no_similarity() {
    let mut adapters = random(spec(Variant::Soft), 5, Kind::Float);
    let align = random(spec(Variant::Shared), 6, Kind::Float);
    adapters.initial_b(&align).expect("same shape");
    assert!(adapters.bank_similarity().is_none());
}

#[test]
fn shares_are_means_over_a_layers_routers_and_ranks() {
    for variant in [Variant::Soft, Variant::Hard] {
        let mut spec = spec(variant);
        spec.router.granularity = RouterGranularity::Linear;
        let sites = [
            site("model.layers.0.q_proj", 0, 7, 5),
            site("model.layers.0.up_proj", 0, 8, 6),
            site("model.layers.1.q_proj", 1, 7, 5),
        ];
        let adapters = Adapters::new(spec, &sites, 9, tch::Device::Cpu).expect("a good spec");
        let gates = adapters.gates().expect("there is a router");
        let gate = |unit: i64, language: i64, rank: i64| {
            let gate = gates.double_value(&[unit, language, rank]);
            match variant {
                Variant::Hard => f64::from(u8::from(gate >= 0.5)),
                _ => gate,
            }
        };
        let shares = adapters.gate_shares().expect("there is a router");
        assert_eq!(shares.layers, ["model.layers.0", "model.layers.1"]);
        for (language, of_language) in (0i64..).zip(&shares.by_language) {
            for (units, share) in [vec![0, 1], vec![2]].iter().zip(of_language) {
                let all = units
                    .iter()
                    .flat_map(|&unit| (0..4).map(move |rank| (unit, rank)));
                let sum: f64 = all.map(|(unit, rank)| gate(unit, language, rank)).sum();
                let expected = sum / (4 * units.len()) as f64;
                assert!(
                    (f64::from(*share) - expected).abs() < 1e-6,
                    "{variant} {language}"
                );
            }
        }
    }
    assert!(
        random(spec(Variant::Static), 3, Kind::Float)
            .gate_shares()
            .is_none()
    );
}
