//! Goal: fresh adapters change nothing, are the same on every rank, and carry the names that checkpoints rely on.
//! Method: adapters are made twice, with other seeds, orders and settings, and their parameters listed.

use tch::{Device, Kind, Tensor};
use zipper_config::schema::{AdapterConfig, RouterConfig, RouterGranularity};
use zipper_model::adapter::{AdapterSpec, Adapters};
use zipper_model::param::ParamScope;
use zipper_types::Variant;

use crate::support::{deltas, fresh, inputs, label, param, site, sites, spec};

#[test]
fn fresh_adapters_add_nothing() {
    let languages = [0, 3, 1];
    for variant in Variant::ALL {
        for delta in deltas(&fresh(spec(variant)), &languages, &inputs(1, 3, 2, Kind::Float)) {
            assert_eq!(delta, delta.zeros_like(), "{variant}");
        }
    }
}

#[test]
fn values_depend_on_the_seed_and_the_name_only() {
    // Method: the same seed twice, another seed, and the same sites in the opposite order.
    let values = |sites: &[_], seed| -> Vec<(String, Tensor)> {
        let adapters = Adapters::new(spec(Variant::Soft), sites, seed, Device::Cpu).expect("a good spec");
        let mut values: Vec<_> = adapters
            .params()
            .iter()
            .map(|param| (label(param), param.tensor.detach()))
            .collect();
        values.sort_by(|a, b| a.0.cmp(&b.0));
        values
    };
    let mut reversed = sites();
    reversed.reverse();
    assert_eq!(values(&sites(), 5), values(&sites(), 5));
    assert_eq!(values(&sites(), 5), values(&reversed, 5));
    assert_ne!(values(&sites(), 5), values(&sites(), 6));
}

#[test]
fn a_fills_its_range_and_differs_between_languages() {
    let wide = [site("model.layers.0.q_proj", 0, 400, 300)];
    let spec = AdapterSpec {
        rank: 64,
        ..spec(Variant::Independent)
    };
    let adapters = Adapters::new(spec, &wide, 1, Device::Cpu).expect("a good spec");
    let a = |language| {
        &param(
            &adapters,
            ParamScope::Bank(language),
            "lora.model.layers.0.q_proj.A",
        )
        .tensor
    };
    let bound = 1.0 / 400f64.sqrt();
    let largest = a(0).abs().max().double_value(&[]);
    assert!(largest <= bound && largest > 0.99 * bound, "{largest}");
    // The standard deviation of a uniform distribution is its bound over the square root of 3.
    let deviation = a(0).std(true).double_value(&[]);
    assert!(
        (deviation / (bound / 3f64.sqrt()) - 1.0).abs() < 0.02,
        "{deviation}"
    );
    assert_ne!(a(0), a(1));
}

#[test]
fn gates_start_where_they_are_told_to() {
    for initial_gate in [0.2, 0.5, 0.9] {
        let spec = AdapterSpec {
            router: RouterConfig {
                lid_dim: 64,
                granularity: RouterGranularity::Linear,
                initial_gate,
            },
            num_languages: 12,
            ..spec(Variant::Soft)
        };
        let gates = fresh(spec).gates().expect("soft has gates");
        assert_eq!(gates.size(), [3, 12, 4]);
        let logits = gates.logit(None);
        let mean = logits.mean(Kind::Double).sigmoid().double_value(&[]);
        assert!((mean - initial_gate).abs() < 0.05, "{mean}");
        // They differ a little: by 0.6 at one standard deviation.
        assert!(
            (logits - (initial_gate / (1.0 - initial_gate)).ln())
                .abs()
                .max()
                .double_value(&[])
                < 2.5
        );
    }
}

#[test]
fn parameters_have_their_names_and_order() {
    let sites = [
        site("model.layers.0.q_proj", 0, 7, 5),
        site("model.layers.0.up_proj", 0, 7, 9),
    ];
    let listing = |variant| -> Vec<String> {
        let mut spec = AdapterSpec {
            num_languages: 2,
            ..spec(variant)
        };
        spec.router.granularity = RouterGranularity::Layer;
        let adapters = Adapters::new(spec, &sites, 1, Device::Cpu).expect("a good spec");
        adapters
            .params()
            .iter()
            .map(|param| format!("{} {:?}", label(param), param.tensor.size()))
            .collect()
    };
    assert_eq!(
        listing(Variant::Shared),
        [
            "shared/lora.model.layers.0.q_proj.A [4, 7]",
            "shared/lora.model.layers.0.q_proj.B_shared [5, 4]",
            "shared/lora.model.layers.0.up_proj.A [4, 7]",
            "shared/lora.model.layers.0.up_proj.B_shared [9, 4]",
        ]
    );
    assert_eq!(
        listing(Variant::Independent),
        [
            "bank.0/lora.model.layers.0.q_proj.A [4, 7]",
            "bank.0/lora.model.layers.0.q_proj.B [5, 4]",
            "bank.0/lora.model.layers.0.up_proj.A [4, 7]",
            "bank.0/lora.model.layers.0.up_proj.B [9, 4]",
            "bank.1/lora.model.layers.0.q_proj.A [4, 7]",
            "bank.1/lora.model.layers.0.q_proj.B [5, 4]",
            "bank.1/lora.model.layers.0.up_proj.A [4, 7]",
            "bank.1/lora.model.layers.0.up_proj.B [9, 4]",
        ]
    );
    let static_banks = |columns: i64| {
        [0, 1].map(|language| {
            [("q_proj", 5), ("up_proj", 9)].map(|(layer, d_out)| {
                format!("bank.{language}/lora.model.layers.0.{layer}.B [{d_out}, {columns}]")
            })
        })
    };
    let statics = listing(Variant::Static);
    assert_eq!(statics[1], "shared/lora.model.layers.0.q_proj.B_shared [5, 1]");
    assert_eq!(statics[4..], static_banks(3).concat());
    let soft = listing(Variant::Soft);
    assert_eq!(
        soft[4..7],
        [
            "shared/lid.weight [2, 3]",
            "shared/router.model.layers.0.weight [4, 3]",
            "shared/router.model.layers.0.bias [4]",
        ]
    );
    assert_eq!(soft[7..], static_banks(4).concat());
}

#[test]
fn one_router_for_each_linear_layer_or_transformer_layer_or_model() {
    // The encoder and the LLM both have a layer 1: they must not share a router.
    let units = |variant, granularity| {
        let mut spec = spec(variant);
        spec.router.granularity = granularity;
        fresh(spec).router_units().to_vec()
    };
    assert_eq!(
        units(Variant::Soft, RouterGranularity::Linear),
        [
            "model.layers.0.q_proj",
            "model.layers.1.up_proj",
            "encoder.layers.1.fc1"
        ]
    );
    assert_eq!(
        units(Variant::Hard, RouterGranularity::Layer),
        ["model.layers.0", "model.layers.1", "encoder.layers.1"]
    );
    assert_eq!(units(Variant::Soft, RouterGranularity::Model), ["model"]);
    assert!(units(Variant::Static, RouterGranularity::Linear).is_empty());
    assert!(fresh(spec(Variant::Static)).gates().is_none());
}

#[test]
fn the_configuration_says_what_the_stages_get() {
    let config = AdapterConfig {
        variant: Variant::Static,
        rank: 9,
        alpha: 18.0,
        ..AdapterConfig::default()
    };
    let align = AdapterSpec::for_align(&config, 3);
    let zipper = AdapterSpec::from_config(&config, 3);
    assert_eq!(
        (align.variant, zipper.variant),
        (Variant::Shared, Variant::Static)
    );
    assert_eq!((zipper.rank, zipper.shared_rank, zipper.num_languages), (9, 4, 3));
    assert!((zipper.scale() - 2.0).abs() < f64::EPSILON);
    let explicit = AdapterConfig {
        shared_rank: Some(7),
        ..config
    };
    assert_eq!(AdapterSpec::from_config(&explicit, 3).shared_rank, 7);
}
