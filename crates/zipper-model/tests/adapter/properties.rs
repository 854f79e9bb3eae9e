//! Goal: what docs/concepts.md promises about the variants, for any values of the parameters.
//!
//! Method: proptest draws variants, seeds, languages and splits; parameters are random tensors out of the drawn seed.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use tch::{Device, Kind, Tensor};
use zipper_config::schema::{BankInit, RouterGranularity};
use zipper_model::adapter::{AdapterPlace, AdapterSpec, Adapters};
use zipper_model::param::{Param, ParamRole, ParamScope};
use zipper_types::Variant;

use crate::support::{
    assert_all_close, assert_close, delta, deltas, gradients, inputs, is_bank_b, label, normal, param,
    random, saturate_gates, set, sites, spec,
};

const TIME: i64 = 3;

fn languages() -> impl Strategy<Value = Vec<usize>> {
    vec(0..4usize, 1..6)
}

fn variants() -> impl Strategy<Value = Variant> {
    select(&Variant::ALL[..])
}

fn granularities() -> impl Strategy<Value = RouterGranularity> {
    select(
        &[
            RouterGranularity::Linear,
            RouterGranularity::Layer,
            RouterGranularity::Model,
        ][..],
    )
}

/// Stage 2 of `variant` right after Initial-B from `align`, with gates that can be anything from 0 to 1.
fn started_from(align: &Adapters, spec: AdapterSpec, seed: u64, gate_spread: f64) -> Adapters {
    let mut adapters = random(spec, seed, Kind::Float);
    for param in adapters
        .params()
        .iter()
        .filter(|param| param.role == ParamRole::Router)
    {
        set(
            param,
            &(normal(seed, &label(param), &param.tensor.size(), Kind::Float) * gate_spread),
        );
    }
    adapters.initial_b(align).expect("same shape");
    adapters
}

/// `spec` with unit vectors as LID embeddings, for [`saturate_gates`].
fn saturable(variant: Variant) -> AdapterSpec {
    let mut spec = spec(variant);
    spec.router.lid_dim = spec.num_languages;
    spec
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever the variant and the gates, Initial-B changes nothing: every B(l) is, bit for bit, the B of stage 1.
    #[test]
    fn stage_2_starts_where_stage_1_ended(
        variant in variants(), granularity in granularities(), languages in languages(), seed: u64,
        gate_spread in 0.0..5.0f64,
    ) {
        let align = random(spec(Variant::Shared), seed, Kind::Float);
        let mut stage_2 = spec(variant);
        stage_2.router.granularity = granularity;
        let adapters = started_from(&align, stage_2, seed ^ 1, gate_spread);
        let (before, after) = (align.merge(&languages), adapters.merge(&languages));
        for site in 0..sites().len() {
            for &language in &languages {
                let (before, after) = (before.pair(site, language), after.pair(site, language));
                prop_assert_eq!(before.a, after.a);
                prop_assert_eq!(before.b, after.b);
            }
        }
        let inputs = inputs(seed, languages.len(), TIME, Kind::Float);
        let before = deltas(&align, &languages, &inputs);
        for (after, before) in deltas(&adapters, &languages, &inputs).iter().zip(&before) {
            assert_close(after, before, 1e-6, "delta");
        }
    }

    /// Without the warm start only the shared part of B comes from stage 1.
    #[test]
    fn zero_init_leaves_the_banks_empty(variant in variants(), seed: u64) {
        let align = random(spec(Variant::Shared), seed, Kind::Float);
        let cold = AdapterSpec { init: BankInit::Zero, ..spec(variant) };
        let adapters = started_from(&align, cold, seed ^ 1, 1.0);
        for param in adapters.params().iter().filter(|param| param.role == ParamRole::Lora) {
            if is_bank_b(&param.name) {
                prop_assert_eq!(param.tensor.detach(), param.tensor.zeros_like());
                continue;
            }
            let start = &self::param(&align, ParamScope::Shared, &param.name).tensor;
            let start = start.narrow(1, 0, param.tensor.size()[1]);
            prop_assert_eq!(param.tensor.detach(), start.detach());
        }
    }

    /// When every gate is 0 or 1, hard and soft are the same function with the same gradients.
    #[test]
    fn hard_equals_soft_when_the_gates_are_0_or_1(
        columns in vec(any::<bool>(), 16), languages in languages(), seed: u64,
    ) {
        let inputs = inputs(seed, languages.len(), TIME, Kind::Float);
        let [hard, soft] = [Variant::Hard, Variant::Soft].map(|variant| {
            let adapters = random(saturable(variant), seed, Kind::Float);
            saturate_gates(&adapters, |l, j| columns[(4 * l + j) as usize]);
            let outputs = deltas(&adapters, &languages, &inputs);
            (outputs, gradients(&adapters, &languages, &inputs, &[languages.len()]))
        });
        prop_assert_eq!(hard.0, soft.0);
        assert_all_close(&hard.1, &soft.1, 0.0);
    }

    /// Static is hard or soft with gates fixed to 1 for the first columns and to 0 for the others.
    #[test]
    fn static_is_a_fixed_gate(
        variant in select(&[Variant::Hard, Variant::Soft][..]), languages in languages(), seed: u64,
        shared_rank in 1..4usize,
    ) {
        let fixed = random(AdapterSpec { shared_rank, ..spec(Variant::Static) }, seed, Kind::Double);
        let gated = random(saturable(variant), seed ^ 1, Kind::Double);
        saturate_gates(&gated, |_, j| j < shared_rank as i64);
        for param in gated.params().iter().filter(|param| param.role == ParamRole::Lora) {
            let known = &self::param(&fixed, param.scope, &param.name).tensor.detach();
            let value = param.tensor.detach().copy();
            let columns = known.size()[1];
            let first = if is_bank_b(&param.name) { value.size()[1] - columns } else { 0 };
            value.narrow(1, first, columns).copy_(known);
            set(param, &value);
        }
        let inputs = inputs(seed, languages.len(), TIME, Kind::Double);
        let expected = deltas(&fixed, &languages, &inputs);
        for (found, expected) in deltas(&gated, &languages, &inputs).iter().zip(&expected) {
            assert_close(found, expected, 1e-14, "delta");
        }
        let expected = gradients(&fixed, &languages, &inputs, &[languages.len()]);
        let found = gradients(&gated, &languages, &inputs, &[languages.len()]);
        for (label, expected) in &expected {
            let columns = expected.size()[1];
            let first = if is_bank_b(label) { found[label].size()[1] - columns } else { 0 };
            assert_close(&found[label].narrow(1, first, columns), expected, 1e-12, label);
            // The columns that the gates shut out get a gradient of zero.
            let rest = found[label].abs().sum(Kind::Double) - found[label].narrow(1, first, columns).abs().sum(Kind::Double);
            prop_assert!(rest.double_value(&[]).abs() < 1e-9, "{}", label);
        }
    }

    /// Gradients that add up over micro batches and go back once are those of one batch.
    #[test]
    fn micro_batches_add_up(
        variant in variants(), granularity in granularities(), sizes in vec(1..4usize, 1..4), seed: u64,
        drawn in vec(0..4usize, 9),
    ) {
        let mut spec = spec(variant);
        spec.router.granularity = granularity;
        let adapters = random(spec, seed, Kind::Double);
        let rows: usize = sizes.iter().sum();
        let inputs = inputs(seed, rows, TIME, Kind::Double);
        let whole = gradients(&adapters, &drawn[..rows], &inputs, &[rows]);
        let split = gradients(&adapters, &drawn[..rows], &inputs, &sizes);
        assert_all_close(&split, &whole, 1e-11);
    }

    /// Exactly the banks of the languages that occur get a gradient, and so do all shared parameters, if there are any.
    #[test]
    fn absent_languages_get_no_gradient(variant in variants(), languages in languages(), seed: u64) {
        let adapters = random(spec(variant), seed, Kind::Float);
        let inputs = inputs(seed, languages.len(), TIME, Kind::Float);
        let found = gradients(&adapters, &languages, &inputs, &[languages.len()]);
        for param in adapters.params() {
            let expected = match param.scope {
                ParamScope::Shared => true,
                ParamScope::Bank(language) => languages.contains(&language),
            };
            prop_assert_eq!(found.contains_key(&label(param)), expected, "{}", label(param));
        }
    }

    /// Every language comes down to an ordinary LoRA pair, and rows do not see their neighbours.
    #[test]
    fn a_language_is_a_plain_lora_pair(variant in variants(), languages in languages(), seed: u64) {
        let adapters = random(spec(variant), seed, Kind::Float);
        let inputs = inputs(seed, languages.len(), TIME, Kind::Float);
        let merged = adapters.merge(&languages);
        for (site, delta) in deltas(&adapters, &languages, &inputs).iter().enumerate() {
            for (row, &language) in languages.iter().enumerate() {
                let row = row as i64;
                let pair = merged.pair(site, language);
                prop_assert!(!pair.a.requires_grad() && !pair.b.requires_grad());
                let expected = inputs[site].get(row).matmul(&(pair.b.matmul(&pair.a) * 1.5).tr());
                assert_close(&delta.get(row), &expected, 1e-5, "row");
            }
        }
    }

    /// Evaluation under `no_grad` computes the same and records nothing.
    #[test]
    fn no_grad_changes_nothing_but_the_graph(variant in variants(), languages in languages(), seed: u64) {
        let adapters = random(spec(variant), seed, Kind::Float);
        let inputs = inputs(seed, languages.len(), TIME, Kind::Float);
        let recorded = deltas(&adapters, &languages, &inputs);
        let silent = tch::no_grad(|| deltas(&adapters, &languages, &inputs));
        prop_assert!(recorded.iter().all(Tensor::requires_grad));
        prop_assert!(!silent.iter().any(Tensor::requires_grad));
        prop_assert_eq!(recorded, silent);
    }
}

#[test]
fn a_rank_without_utterances_has_nothing_to_do() {
    for variant in Variant::ALL {
        let adapters = random(spec(variant), 1, Kind::Float);
        let merged = adapters.merge(&[]);
        assert!(merged.last_pass(&adapters).carried().is_none(), "{variant}");
    }
}

/// A rank that holds two of four banks computes for them what a rank with all banks does, and has no other's bytes.
#[test]
fn a_part_of_the_banks_is_enough_for_their_languages() {
    let owned = [1, 3];
    for variant in Variant::ALL {
        let whole = random(spec(variant), 8, Kind::Float);
        let place = AdapterPlace {
            device: Device::Cpu,
            kind: Kind::Float,
            banks: owned.into(),
        };
        let part = Adapters::sharded(spec(variant), &sites(), 1, place).expect("the spec is good");
        for param in part.params() {
            set(
                param,
                &self::param(&whole, param.scope, &param.name).tensor.detach(),
            );
        }
        let is_here = |param: &&Param| match param.scope {
            ParamScope::Shared => true,
            ParamScope::Bank(language) => owned.contains(&language),
        };
        assert_eq!(
            part.params().len(),
            whole.params().iter().filter(is_here).count(),
            "{variant}"
        );
        let languages = [3, 1, 3];
        let inputs = inputs(2, languages.len(), TIME, Kind::Float);
        assert_eq!(
            deltas(&part, &languages, &inputs),
            deltas(&whole, &languages, &inputs)
        );
        assert_all_close(
            &gradients(&part, &languages, &inputs, &[2, 1]),
            &gradients(&whole, &languages, &inputs, &[2, 1]),
            0.0,
        );
    }
}

/// A bank that another rank lends computes what it does there, and is gone when it is returned.
#[test]
fn a_borrowed_bank_is_a_copy_for_a_while() {
    for variant in Variant::ALL {
        let owner = random(spec(variant), 8, Kind::Float);
        let place = AdapterPlace {
            device: Device::Cpu,
            kind: Kind::Float,
            banks: [1].into(),
        };
        let mut other = Adapters::sharded(spec(variant), &sites(), 1, place).expect("the spec is good");
        for param in other.params() {
            set(
                param,
                &self::param(&owner, param.scope, &param.name).tensor.detach(),
            );
        }
        if variant == Variant::Shared {
            assert!(other.has_bank(2) && other.bank_len() == 0, "there are no banks");
            continue;
        }
        assert!(other.has_bank(1) && !other.has_bank(2), "{variant}");
        let sent = owner.bank_weights(2);
        assert_eq!(sent.size(), other.empty_bank().size(), "{variant}");
        other.borrow_bank(2, &sent);
        let inputs = inputs(2, 2, TIME, Kind::Float);
        assert_eq!(deltas(&other, &[2, 1], &inputs), deltas(&owner, &[2, 1], &inputs));
        other.return_banks();
        assert!(other.has_bank(1) && !other.has_bank(2), "{variant}");
    }
}

#[test]
fn bf16_activations_go_through_f32_matrices() {
    // Method: the delta of a bf16 input is the delta of the same values in f32, rounded once at the end.
    let languages = [0, 2, 0];
    for variant in Variant::ALL {
        let adapters = random(spec(variant), 9, Kind::Float);
        let inputs: Vec<Tensor> = inputs(9, 3, TIME, Kind::Float)
            .iter()
            .map(|input| input.to_kind(Kind::BFloat16))
            .collect();
        let exact: Vec<Tensor> = inputs.iter().map(|input| input.to_kind(Kind::Float)).collect();
        let exact = deltas(&adapters, &languages, &exact);
        for (found, exact) in deltas(&adapters, &languages, &inputs).iter().zip(exact) {
            assert_eq!(*found, exact.to_kind(Kind::BFloat16), "{variant}");
        }
    }
}

#[test]
fn gates_say_what_soft_mixes() {
    // Method: with B_shared all ones and banks all zeros, B(l) is the gates.
    let adapters = random(spec(Variant::Soft), 4, Kind::Float);
    for param in adapters.params().iter().filter(|param| param.name.contains(".B")) {
        let value = if param.scope == ParamScope::Shared {
            param.tensor.ones_like()
        } else {
            param.tensor.zeros_like()
        };
        set(param, &value.detach());
    }
    let gates = adapters.gates().expect("soft has gates");
    let merged = adapters.merge(&[0, 1, 2, 3]);
    for site in 0..sites().len() {
        for language in 0..4 {
            let b = merged.pair(site, language).b;
            let expected = gates.get(site as i64).get(language as i64);
            assert_close(&b, &expected.unsqueeze(0).expand_as(&b), 1e-6, "gates");
        }
    }
}

#[test]
fn rows_of_one_language_take_the_plain_path_to_the_same_result() {
    // Method: the same row alone (plain) and beside another language (gathered).
    for variant in Variant::ALL {
        let adapters = random(spec(variant), 6, Kind::Float);
        let merged = adapters.merge(&[1, 2]);
        for (site, input) in inputs(6, 2, TIME, Kind::Float).iter().enumerate() {
            let plain = delta(&merged.rows(&[1, 1], None), site, input);
            let gathered = delta(&merged.rows(&[1, 2], None), site, input);
            assert_close(&gathered.get(0), &plain.get(0), 1e-6, variant.name());
            if variant != Variant::Shared {
                assert_ne!(gathered.get(1), plain.get(1), "{variant}");
            }
        }
    }
}

/// A mixture of one language alone is that language, and what it does is linear in its weights: B(l) is a constant of the language.
#[test]
fn mixtures_add_up_what_languages_do() {
    for variant in [Variant::Shared, Variant::Static, Variant::Hard, Variant::Soft] {
        let adapters = random(spec(variant), 11, Kind::Double);
        let inputs = inputs(12, 1, TIME, Kind::Double);
        let weights = vec![vec![0.0, 0.0, 1.0, 0.0], vec![0.5, 0.25, 0.125, 0.125]];
        let mixed = adapters.merge_mixtures(&weights).expect("they have one A");
        for (weights, mixture) in weights.iter().zip(0..) {
            let rows = mixed.rows(&[mixture], None);
            for (site, input) in inputs.iter().enumerate() {
                let sum: Tensor = (0..4)
                    .map(|language| {
                        deltas(&adapters, &[language], &inputs)[site].shallow_clone() * weights[language]
                    })
                    .reduce(|a, b| a + b)
                    .expect("there are languages");
                assert_close(
                    &delta(&rows, site, input),
                    &sum,
                    1e-12,
                    &format!("{variant} {site}"),
                );
            }
        }
        // Rows of different mixtures together.
        let both = mixed.rows(&[1, 0], None);
        let input = normal(13, "rows", &[2, TIME, 7], Kind::Double);
        let together = delta(&both, 0, &input);
        for (row, mixture) in [(0, 1), (1, 0)] {
            let alone = delta(&mixed.rows(&[mixture], None), 0, &input.narrow(0, row, 1));
            assert_close(&together.narrow(0, row, 1), &alone, 1e-12, "rows of a batch");
        }
    }
    let independent = random(spec(Variant::Independent), 11, Kind::Double);
    assert!(independent.merge_mixtures(&[vec![0.25; 4]]).is_none());
}
