//! Goal: CTC on the projector's output is the probability of all alignments of the text, scored by the LLM's embeddings, and reaches the
//! projector's parameters.
//! Method: every sequence of tokens as long as the speech is written down, and those that collapse to the text are added up.

use serde_json::json;
use tch::{Device, Kind, Tensor};
use zipper_config::schema::ModelConfig;
use zipper_model::llm::CausalLm;
use zipper_model::packing::Packing;
use zipper_model::prompt::Prompt;
use zipper_model::speech_llm::{Example, SpeechLlm, Total};

use crate::support::models;

const FAMILY: &str = "qwen3";
const D_ENCODER: i64 = 12;

fn load(ctc_weight: f64) -> SpeechLlm {
    let config = config(ctc_weight, "frames");
    SpeechLlm::load(&config, D_ENCODER, 1, Device::Cpu, Kind::Float).expect("a good directory")
}

fn config(ctc_weight: f64, ctc_output: &str) -> ModelConfig {
    let config = json!({
        "encoder": {"path": models().join("whisper")},
        "projector": {"kind": "stack", "stack": 1, "hidden": 17, "ctc_weight": ctc_weight, "ctc_output": ctc_output},
        "llm": {"path": models().join(FAMILY)},
        "prompt": {"template": ""},
    });
    serde_json::from_value(config).expect("the schema has these keys")
}

/// Embeddings of all tokens, and what makes nats of products with them.
fn embeddings(llm: &CausalLm) -> (Tensor, f64) {
    let vocab = llm.config().vocab_size;
    let embeddings = llm.embed(&Tensor::arange(vocab, (Kind::Int64, Device::Cpu)));
    let square = embeddings.square().sum(Kind::Double).double_value(&[]) / vocab as f64;
    (embeddings, 12.0 / square)
}

/// Encoder frames of an utterance, `[time, D_ENCODER]`.
fn frames(time: i64) -> Tensor {
    let values: Vec<f32> = (0..time * D_ENCODER)
        .map(|at| ((7 * at + time) as f32).sin())
        .collect();
    Tensor::from_slice(&values).view([time, D_ENCODER])
}

/// What a sequence of frames says: repetitions once, without blanks.
fn collapsed(path: &[i64], blank: i64) -> Vec<i64> {
    let mut path = path.to_vec();
    path.dedup();
    path.retain(|&token| token != blank);
    path
}

/// The negative log-likelihood of `text`, from all of its alignments.
fn by_hand(log_probs: &[Vec<f64>], text: &[i64], blank: i64) -> f64 {
    let vocab = log_probs[0].len() as i64;
    let mut probability = 0.0;
    for number in 0..vocab.pow(log_probs.len() as u32) {
        let path: Vec<i64> = (0..log_probs.len() as u32)
            .map(|frame| number / vocab.pow(frame) % vocab)
            .collect();
        if collapsed(&path, blank) == text {
            let of_path = path
                .iter()
                .zip(log_probs)
                .map(|(&token, frame)| frame[token as usize]);
            probability += of_path.sum::<f64>().exp();
        }
    }
    -probability.ln()
}

#[test]
fn it_is_the_sum_of_all_alignments() {
    let speech = load(0.3);
    let llm = CausalLm::load(&models().join(FAMILY), Device::Cpu, Kind::Float).expect("a good directory");
    let eos = llm.config().eos_token_ids[0];
    let (embeddings, nats) = embeddings(&llm);
    let utterances = [frames(3), frames(2), frames(3)];
    // Tokens of a, b, c. The last text has more of them than frames, and no alignment.
    let texts = [("ab", vec![9, 10]), ("a", vec![9]), ("abca", vec![])];
    let expected: f64 = utterances[..2]
        .iter()
        .zip(&texts)
        .map(|(frames, (_, ids))| {
            let heard = speech.projector().forward(std::slice::from_ref(frames)).remove(0);
            let scores = heard.linear(&embeddings, None::<&Tensor>) * nats;
            let log_probs = scores.to_kind(Kind::Double).log_softmax(-1, Kind::Double);
            by_hand(
                &Vec::<Vec<f64>>::try_from(log_probs).expect("two dimensions"),
                ids,
                eos,
            )
        })
        .sum();
    let examples = utterances.each_ref().map(|frames| Example {
        frames,
        language: "en",
    });
    let texts = texts.each_ref().map(|(text, _)| *text);
    let nll = speech.nll(&examples, &texts, None).expect("good examples");
    let ctc = nll.ctc.expect("the configuration weighs it");
    let found = ctc.double_value(&[]);
    assert!((found - expected).abs() < 1e-4, "{found}, and not {expected}");
    ctc.backward();
    for param in speech.projector().params() {
        let gradient = param.tensor.grad();
        assert!(gradient.abs().max().double_value(&[]) > 0.0, "{}", param.name);
    }
}

/// With `ctc_output: posteriors` the LLM reads means of its own embeddings, and the loss still reaches the projector.
#[test]
fn the_llm_reads_means_of_its_own_embeddings() {
    let config = config(0.3, "posteriors");
    let speech = SpeechLlm::load(&config, D_ENCODER, 1, Device::Cpu, Kind::Float).expect("a good directory");
    let folder = models().join(FAMILY);
    let llm = CausalLm::load(&folder, Device::Cpu, Kind::Float).expect("a good directory");
    let prompt = Prompt::load(&folder, &config.prompt, llm.config()).expect("a good directory");
    let (embeddings, nats) = embeddings(&llm);
    let utterance = frames(3);
    let heard = speech
        .projector()
        .forward(std::slice::from_ref(&utterance))
        .remove(0);
    let posteriors = (heard.linear(&embeddings, None::<&Tensor>) * nats).softmax(-1, Kind::Float);
    let text = prompt.encode("ab").expect("it has these letters");
    let before = prompt.frame("en").expect("a language").before;
    let embedded = |ids: &[i64]| llm.embed(&Tensor::from_slice(ids));
    let row = Tensor::cat(
        &[embedded(&before), posteriors.matmul(&embeddings), embedded(&text)],
        0,
    );
    let length = row.size()[0];
    let hidden = llm.forward(&row, &Packing::new(vec![length], Device::Cpu), None);
    let targets: Vec<i64> = text.iter().copied().chain([prompt.eos()]).collect();
    let first = length - text.len() as i64 - 1;
    let scores = llm.logits(&hidden.narrow(0, first, targets.len() as i64));
    let expected = scores.cross_entropy_loss::<Tensor>(
        &Tensor::from_slice(&targets),
        None,
        tch::Reduction::Sum,
        -100,
        0.0,
    );

    let example = Example {
        frames: &utterance,
        language: "en",
    };
    let nll = speech.nll(&[example], &["ab"], None).expect("a good example");
    let difference = (&nll.sums.get(0) - expected).abs().double_value(&[]);
    assert!(difference < 1e-4, "{difference}");
    let Total::Whole(total) = nll.total else {
        panic!("nobody asked for layers to be computed again");
    };
    total.backward();
    for param in speech.projector().params() {
        let gradient = param.tensor.grad();
        assert!(gradient.abs().max().double_value(&[]) > 0.0, "{}", param.name);
    }
}

#[test]
fn without_weight_or_gradients_there_is_none() {
    let utterance = frames(3);
    let example = Example {
        frames: &utterance,
        language: "en",
    };
    let ctc = |speech: &SpeechLlm| speech.nll(&[example], &["ab"], None).expect("a good example").ctc;
    assert!(ctc(&load(0.0)).is_none());
    assert!(tch::no_grad(|| ctc(&load(0.3))).is_none());
}
