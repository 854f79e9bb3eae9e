//! Goal: logits, loss and gradients of every family equal those of transformers and PEFT.
//!
//! Method: each golden directory is loaded with the golden LoRA and projector. Rows of different lengths run once as rows of equal length
//! with noise behind their ends, and once packed without padding.

use tch::{Device, Kind, Tensor};
use zipper_model::llm::CausalLm;
use zipper_model::packing::Packing;
use zipper_model::speech_llm::Total;

use crate::support::{
    FAMILIES, GivenLora, Golden, TARGETS, assert_close, expected, forward, models, names, tensors,
};

fn load(name: &str, kind: Kind) -> CausalLm {
    CausalLm::load(&models().join(name), Device::Cpu, kind).expect("a good directory")
}

#[test]
fn logits_equal_transformers() {
    for name in FAMILIES {
        let golden = tensors(name);
        let mut llm = load(name, Kind::Float);
        let lora = GivenLora::new(llm.lora_sites(&names(&TARGETS)).expect("they exist"), "", &golden);
        let logits = tch::no_grad(|| llm.logits(&forward(&llm, &golden["x"], Some(&lora))));
        for row in 0..expected(name).languages.len() {
            let expected = &golden[&format!("logits.{row}")];
            let valid = logits.get(row as i64).narrow(0, 0, expected.size()[0]);
            assert_close(&format!("{name} row {row}"), &valid, expected);
        }
    }
}

/// Packed rows of different lengths: the logits of each are those of the row alone.
#[test]
fn packed_rows_do_not_see_each_other() {
    for name in FAMILIES {
        let golden = tensors(name);
        let mut llm = load(name, Kind::Float);
        let lora = GivenLora::new(llm.lora_sites(&names(&TARGETS)).expect("they exist"), "", &golden);
        let num_rows = expected(name).languages.len() as i64;
        let of_row = |row: i64| &golden[&format!("logits.{row}")];
        let lengths: Vec<i64> = (0..num_rows).map(|row| of_row(row).size()[0]).collect();
        let rows: Vec<Tensor> = (0..num_rows)
            .zip(&lengths)
            .map(|(row, &length)| golden["x"].get(row).narrow(0, 0, length))
            .collect();
        let packing = Packing::new(lengths, Device::Cpu);
        let hidden = tch::no_grad(|| llm.forward(&Tensor::cat(&rows, 0), &packing, Some(&lora)));
        let expected: Vec<&Tensor> = (0..num_rows).map(of_row).collect();
        assert_close(name, &llm.logits(&hidden), &Tensor::cat(&expected, 0));
    }
}

#[test]
fn loss_and_gradients_equal_transformers_and_peft() {
    for name in FAMILIES {
        let golden = Golden::load(name);
        let texts: Vec<&str> = golden.expected.texts.iter().map(String::as_str).collect();
        let nll = golden
            .speech
            .nll(&golden.examples(), &texts, Some(&golden.lora))
            .expect("good examples");
        assert_eq!(nll.tokens, golden.expected.tokens, "{name}: target tokens");
        assert_close(&format!("{name}: nll"), &nll.sums, &golden.tensors["nll"]);
        let Total::Whole(total) = &nll.total else {
            panic!("{name}: nobody asked for layers to be computed again");
        };
        total.backward();
        golden.lora.check_gradients("", &golden.tensors);
        for param in golden.speech.projector().params() {
            let gradient = &golden.tensors[&format!("grad.{}", param.name)];
            assert_close(
                &format!("{name}: gradient of {}", param.name),
                &param.tensor.grad(),
                gradient,
            );
        }
    }
}

#[test]
fn projectors_equal_torch() {
    for name in FAMILIES {
        let golden = Golden::load(name);
        let frames: Vec<Tensor> = golden
            .examples()
            .iter()
            .map(|example| example.frames.shallow_clone())
            .collect();
        for (row, speech) in golden.speech.projector().forward(&frames).iter().enumerate() {
            assert_close(
                &format!("{name} row {row}"),
                speech,
                &golden.tensors[&format!("speech.{row}")],
            );
        }
    }
}

/// A row alone and a row beside longer ones have the same loss: nothing leaks out of the padding.
#[test]
fn loss_of_a_row_does_not_depend_on_the_batch() {
    for name in FAMILIES {
        let golden = Golden::load(name);
        let texts: Vec<&str> = golden.expected.texts.iter().map(String::as_str).collect();
        let nll = |rows: std::ops::Range<usize>| {
            let examples = &golden.examples()[rows.clone()];
            let nll = tch::no_grad(|| golden.speech.nll(examples, &texts[rows], Some(&golden.lora)));
            nll.expect("good examples").sums
        };
        let alone: Vec<Tensor> = (0..texts.len()).map(|row| nll(row..row + 1)).collect();
        assert_close(name, &nll(0..texts.len()), &Tensor::cat(&alone, 0));
    }
}

/// In bf16 the weights are stored in bf16 and the logits stay near those of f32.
#[test]
fn bf16_is_near_f32() {
    let golden = tensors("qwen2");
    let full = tch::no_grad(|| {
        let llm = load("qwen2", Kind::Float);
        llm.logits(&forward(&llm, &golden["x"], None))
    });
    let llm = load("qwen2", Kind::BFloat16);
    assert_eq!(llm.kind(), Kind::BFloat16);
    let half = tch::no_grad(|| {
        let hidden = forward(&llm, &golden["x"].to_kind(Kind::BFloat16), None);
        assert_eq!(hidden.kind(), Kind::BFloat16);
        llm.logits(&hidden)
    });
    assert_eq!(half.kind(), Kind::Float);
    let valid = golden["logits.0"].size()[0];
    let (half, full) = (half.get(0).narrow(0, 0, valid), full.get(0).narrow(0, 0, valid));
    let error = ((half - &full).norm() / full.norm()).double_value(&[]);
    assert!(error < 0.05, "relative error {error}");
}

/// Frozen weights record nothing: without adapters the output does not ask for gradients.
#[test]
fn frozen_weights_need_no_gradient() {
    let llm = load("qwen3", Kind::Float);
    assert!(!forward(&llm, &tensors("qwen3")["x"], None).requires_grad());
}

#[test]
fn sites_are_in_layer_order_with_names_of_the_file() {
    let mut llm = load("llama_sharded", Kind::Float);
    let sites = llm
        .lora_sites(&names(&["down_proj", "q_proj"]))
        .expect("they exist");
    let found: Vec<(&str, usize, i64, i64)> = sites
        .iter()
        .map(|site| (site.name.as_str(), site.layer, site.d_in, site.d_out))
        .collect();
    assert_eq!(
        found,
        [
            ("model.layers.0.self_attn.q_proj", 0, 20, 24),
            ("model.layers.0.mlp.down_proj", 0, 33, 20),
            ("model.layers.1.self_attn.q_proj", 1, 20, 24),
            ("model.layers.1.mlp.down_proj", 1, 33, 20),
            ("model.layers.2.self_attn.q_proj", 2, 20, 24),
            ("model.layers.2.mlp.down_proj", 2, 33, 20),
        ]
    );
}
