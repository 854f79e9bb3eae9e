//! Goal: greedy and beam decoding write, token for token, what `generate` of transformers writes, alone and in a batch.
//!
//! Method: the golden rows have prompts and speech of different lengths; some end early, others at the limit.

use tch::{Device, Kind, Tensor};
use zipper_model::generate::GenerateOptions;
use zipper_model::llm::CausalLm;
use zipper_model::packing::Packing;

use crate::support::{FAMILIES, GivenLora, Golden, TARGETS, assert_close, forward, models, names, tensors};

const GREEDY: GenerateOptions = GenerateOptions {
    beam: 1,
    max_new_tokens: 12,
};
const BEAM: GenerateOptions = GenerateOptions {
    beam: 3,
    max_new_tokens: 12,
};

#[test]
fn greedy_equals_transformers() {
    for name in FAMILIES {
        let golden = Golden::load(name);
        let tokens = tch::no_grad(|| {
            golden
                .speech
                .generate_tokens(&golden.examples(), Some(&golden.lora), &GREEDY)
        });
        assert_eq!(tokens.expect("good examples"), golden.expected.greedy, "{name}");
        let texts = tch::no_grad(|| {
            golden
                .speech
                .generate(&golden.examples(), Some(&golden.lora), &GREEDY)
        });
        let expected: Vec<&str> = golden
            .expected
            .greedy_texts
            .iter()
            .map(|text| text.trim())
            .collect();
        assert_eq!(texts.expect("good examples"), expected, "{name}");
    }
}

#[test]
fn beam_search_equals_transformers() {
    for name in FAMILIES {
        let golden = Golden::load(name);
        let tokens = tch::no_grad(|| {
            golden
                .speech
                .generate_tokens(&golden.examples(), Some(&golden.lora), &BEAM)
        });
        assert_eq!(tokens.expect("good examples"), golden.expected.beam, "{name}");
    }
}

#[test]
fn a_row_is_decoded_alike_alone_and_in_a_batch() {
    for name in FAMILIES {
        let golden = Golden::load(name);
        for (row, example) in golden.examples().into_iter().enumerate() {
            for (options, expected) in [(GREEDY, &golden.expected.greedy), (BEAM, &golden.expected.beam)] {
                let tokens = tch::no_grad(|| {
                    golden
                        .speech
                        .generate_tokens(&[example], Some(&golden.lora), &options)
                });
                assert_eq!(
                    tokens.expect("a good example"),
                    expected[row..=row],
                    "{name} row {row} {options:?}"
                );
            }
        }
    }
}

/// Decoding token by token gives the hidden states that one pass over the whole row gives.
#[test]
fn the_cache_changes_nothing() {
    for name in FAMILIES {
        let golden = tensors(name);
        let mut llm =
            CausalLm::load(&models().join(name), Device::Cpu, Kind::Float).expect("a good directory");
        let lora = GivenLora::new(llm.lora_sites(&names(&TARGETS)).expect("they exist"), "", &golden);
        let x = &golden["x"];
        let whole = tch::no_grad(|| forward(&llm, x, Some(&lora)));
        // Rows of 4, 9 and 6 positions are read at once, three more follow one by one.
        let lengths = [4, 9, 6];
        let read: Vec<Tensor> = (0i64..)
            .zip(lengths)
            .map(|(row, length)| x.get(row).narrow(0, 0, length))
            .collect();
        let packing = Packing::new(lengths.to_vec(), Device::Cpu);
        let (_, mut cache) = tch::no_grad(|| llm.prefill(&Tensor::cat(&read, 0), &packing, Some(&lora)));
        let mut rows = vec![0, 1, 2];
        for step in 0..3 {
            if step == 1 {
                // One ends, and the others change places.
                cache.select(&[2, 0]);
                rows = vec![2, 0];
            }
            let column = |of: &Tensor| {
                let of_row = |&row: &usize| of.get(row as i64).get(lengths[row] + step);
                Tensor::stack(&rows.iter().map(of_row).collect::<Vec<_>>(), 0)
            };
            let hidden = tch::no_grad(|| llm.decode(&column(x), Some(&lora), &mut cache));
            assert_close(&format!("{name} step {step}"), &hidden, &column(&whole));
        }
    }
}

/// As many tokens are written as may be, none if none may.
#[test]
fn the_limit_is_kept() {
    let golden = Golden::load("qwen3");
    for beam in [1, 3] {
        for max_new_tokens in [0, 1, 2] {
            let options = GenerateOptions { beam, max_new_tokens };
            let tokens = tch::no_grad(|| {
                golden
                    .speech
                    .generate_tokens(&golden.examples(), Some(&golden.lora), &options)
            });
            for (row, written) in tokens.expect("good examples").iter().enumerate() {
                assert!(written.len() <= max_new_tokens, "{options:?}: {written:?}");
                if beam == 1 {
                    let all = &golden.expected.greedy[row];
                    assert_eq!(written[..], all[..max_new_tokens.min(all.len())], "{options:?}");
                }
            }
        }
    }
}
