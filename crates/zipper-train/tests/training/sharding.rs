//! Goal: a bank exists on its owners and nowhere else, what goes over the wire does not grow with the number of languages,
//! and what a bank needs at decoding and in checkpoints comes from its owners.
//! Method: sessions on several ranks, whose tensors and counters are listed.

use std::collections::BTreeSet;

use zipper_config::schema::{Dtype, RunConfig};
use zipper_model::param::ParamScope;
use zipper_tests::Fixture;
use zipper_train::evaluate::{DecodeOptions, decode};
use zipper_train::session::Session;
use zipper_types::{Rank, Stage, Variant};

use crate::support::{
    all_steps, alone, assert_close, config, on_ranks, parts_of, placement, read, reports, train, values,
};

/// A short run through both stages.
fn short(fixture: &Fixture, variant: Variant) -> RunConfig {
    config(fixture, |config| {
        config.adapter.variant = variant;
        config.training.align.steps = 2;
        config.training.zipper.steps = 3;
    })
}

/// The languages of which a session holds parameters or optimizer state.
fn banks_of(session: &Session) -> BTreeSet<usize> {
    let params = session.replica().params();
    let scopes = params
        .iter()
        .map(|param| param.scope)
        .chain(session.optimizer_scopes());
    scopes
        .filter_map(|scope| match scope {
            ParamScope::Shared => None,
            ParamScope::Bank(language) => Some(language),
        })
        .collect()
}

#[test]
fn a_bank_is_on_its_owners_alone() {
    let fixture = Fixture::new();
    for variant in Variant::ALL {
        let config = short(&fixture, variant);
        for world_size in [1, 2, 3, 5] {
            let placement = placement(&config, world_size);
            let ranks = on_ranks(&config, world_size, |mut session| {
                let before = banks_of(&session);
                train(&mut session, all_steps(&config));
                (before, banks_of(&session), session.bank_bytes())
            });
            for (rank, (before, after, bytes)) in (0..).zip(ranks) {
                assert!(before.is_empty(), "stage 1 has no banks");
                let mut expected: BTreeSet<usize> = placement.languages_of(Rank(rank)).into_iter().collect();
                if variant == Variant::Shared {
                    expected.clear();
                }
                assert_eq!(after, expected, "{variant}: rank {rank} of {world_size}");
                assert_eq!(
                    bytes == 0,
                    expected.is_empty(),
                    "{variant}: rank {rank} of {world_size}"
                );
            }
        }
    }
}

/// Every rank decodes its share of a set and gets the banks it takes lent: together they write what one rank writes.
#[test]
fn a_set_is_decoded_with_borrowed_banks() {
    let fixture = Fixture::new();
    for variant in [Variant::Soft, Variant::Independent] {
        let config = config(&fixture, |config| {
            config.adapter.variant = variant;
            config.training.align.steps = 2;
            config.training.zipper.steps = 3;
            // Large, so that every language's bank writes something of its own; exact, so that all worlds write the same.
            config.model.dtype = Dtype::F64;
            config.training.zipper.lr = 0.5;
        });
        let decoded = |world_size| -> BTreeSet<(String, String)> {
            let ranks = on_ranks(&config, world_size, |mut session| {
                train(&mut session, all_steps(&config));
                let corpus = session.corpus();
                let everything: Vec<_> = corpus.iter().flatten().collect();
                let owned = banks_of(&session);
                let mine = session.borrow_banks(&everything).expect("banks are lent");
                let options = DecodeOptions {
                    silenced: false,
                    with_nll: false,
                    detect: false,
                };
                let decoded = decode(session.replica(), &mine, options, |_| true)
                    .expect("the audio is there")
                    .expect("nobody asks to stop");
                session.return_banks();
                assert_eq!(banks_of(&session), owned, "what was borrowed is given back");
                decoded
            });
            let total: usize = ranks.iter().map(Vec::len).sum();
            assert!(
                ranks
                    .iter()
                    .all(|rank| rank.len() * (world_size as usize + 2) > total),
                "shares are even"
            );
            ranks
                .into_iter()
                .flatten()
                .map(|utterance| (utterance.id, utterance.hypothesis))
                .collect()
        };
        let one = decoded(1);
        assert!(one.len() > 20, "every utterance once");
        assert_eq!(one, decoded(3), "{variant}");
    }
}

/// Thread 6 of docs/testing.md. Ranks write each part once, and a world of another size goes on from them.
#[test]
fn thread_6_a_checkpoint_fits_any_number_of_ranks() {
    let fixture = Fixture::new();
    for variant in [Variant::Independent, Variant::Hard] {
        let config = short(&fixture, variant);
        let until = all_steps(&config);
        let whole = train(&mut alone(&config), until);
        for (before, after) in [(3, 1), (1, 3), (3, 2)] {
            let sessions = on_ranks(&config, before, |mut session| {
                train(&mut session, 4);
                session
            });
            let parts = parts_of(&sessions);
            assert_eq!(
                parts.len(),
                9,
                "shared, 3 banks, their optimizer state, state.json: {:?}",
                parts.keys()
            );
            let rest = on_ranks(&config, after, |mut session| {
                session
                    .restore(|names| read(&parts, names))
                    .expect("the parts fit");
                train(&mut session, until)
            });
            for rank in rest {
                assert_close(
                    &whole[4..],
                    &rank,
                    1e-4,
                    &format!("{variant}, {before} ranks and then {after}"),
                );
            }
        }
    }
}

/// Ten times the languages, the same shared parameters: the same bytes over the wire at every step.
#[test]
fn traffic_does_not_grow_with_languages() {
    let fixture = Fixture::new();
    let bytes = |languages: usize| -> Vec<u64> {
        let config = config(&fixture, |config| {
            // Static has neither router nor LID embeddings, whose table has a row for each language.
            config.adapter.variant = Variant::Static;
            config.training.align.steps = 2;
            config.training.zipper.steps = 4;
            config
                .data
                .languages
                .extend((3..languages).map(|index| format!("x{index}")));
        });
        assert_eq!(config.data.languages.len(), languages);
        let ranks = on_ranks(&config, 2, |mut session| {
            reports(&mut session, all_steps(&config))
        });
        ranks[0].iter().map(|report| report.cost.shared_bytes).collect()
    };
    let (few, many) = (bytes(12), bytes(120));
    assert_eq!(few, many);
    assert!(few.iter().all(|&bytes| bytes > 0), "{few:?}");
}

/// Every bucket is on its way before the backward pass has ended, also where a rank's last micro batch holds only some of its
/// languages and where a rank has nothing to do; and none is when overlap is off.
#[test]
fn reductions_begin_while_backward_runs() {
    let fixture = Fixture::new();
    for variant in Variant::ALL {
        for overlap in [true, false] {
            let config = config(&fixture, |config| {
                config.adapter.variant = variant;
                config.training.align.steps = 2;
                config.training.zipper.steps = 4;
                config.training.micro_batch_audio_seconds = 1.0;
                config.runtime.bucket_mib = 0.002;
                config.runtime.overlap = overlap;
            });
            let ranks = on_ranks(&config, 4, |mut session| {
                reports(&mut session, all_steps(&config))
            });
            for report in ranks.iter().flatten() {
                let late = report.cost.late_buckets;
                assert_eq!(late == 0, overlap, "{variant}, step {}: {late}", report.step);
            }
        }
    }
}

/// The counted bytes are the sizes of the parameters that are summed.
#[test]
fn counted_bytes_are_the_sizes_of_the_gradients() {
    let fixture = Fixture::new();
    let config = short(&fixture, Variant::Soft);
    let ranks = on_ranks(&config, 4, |mut session| {
        let reports = reports(&mut session, all_steps(&config));
        assert!(session.stage().0 == Stage::Zipper);
        let bytes = |shared: bool| -> u64 {
            let of_scope = |scope| matches!(scope, ParamScope::Shared) == shared;
            let params = session.replica().params();
            let params = params.iter().filter(|param| of_scope(param.scope));
            params.map(|param| param.tensor.numel() as u64 * 4).sum()
        };
        (reports, bytes(true), values(&session).len())
    });
    let (reports, shared_bytes, _) = &ranks[0];
    assert_eq!(reports[4].cost.shared_bytes, *shared_bytes);
    // English spans ranks 0 to 2 and is in every batch of this corpus: three ranks put its gradients in.
    let split = placement(&config, 4).split_languages();
    assert!(!split.is_empty(), "four ranks share three languages");
    for report in &reports[2..] {
        let summed = split
            .iter()
            .filter(|&&language| report.by_language.contains_key(&config.data.languages[language]));
        assert_eq!(
            report.cost.bank_bytes > 0,
            summed.count() > 0,
            "step {}",
            report.step
        );
    }
}
