//! Goal: encoder frames equal those of transformers' Whisper in every context, also with LoRA in the encoder.
//!
//! Method: the golden encoder knows 60 positions instead of 1500, so its "30 s" are 120 mel frames.

use tch::{Device, Kind, Tensor};
use zipper_config::schema::EncoderContext;
use zipper_model::encoder::{LogMelFrames, WhisperEncoder};
use zipper_model::linear::LinearDelta;

use crate::support::{GivenLora, assert_close, encoder_config, models, names, tensors};

/// Names with the prefix of a whole model in f32, and of the part without its head in bf16.
const FOLDERS: [&str; 2] = ["whisper", "whisper_part"];

fn load(folder: &str, context: EncoderContext) -> WhisperEncoder {
    let config = encoder_config(&models().join(folder), context);
    WhisperEncoder::load(&config, Device::Cpu, Kind::Float).expect("a good directory")
}

/// The frames of one utterance by itself.
fn encode(encoder: &WhisperEncoder, mel: &Tensor, adapters: Option<&dyn LinearDelta>) -> Tensor {
    encode_all(encoder, &[(mel, 47)], adapters).remove(0)
}

fn encode_all(
    encoder: &WhisperEncoder,
    utterances: &[(&Tensor, i64)],
    adapters: Option<&dyn LinearDelta>,
) -> Vec<Tensor> {
    let utterances = utterances.iter().map(|&(mel, valid_frames)| LogMelFrames {
        mel: mel.shallow_clone(),
        valid_frames,
    });
    encoder
        .encode(&utterances.collect::<Vec<_>>(), adapters)
        .expect("short enough")
}

#[test]
fn frames_equal_transformers_in_every_context() {
    let golden = tensors("whisper");
    let mel = &golden["mel"];
    let padded = mel.constant_pad_nd([0, 120 - mel.size()[1]]);
    for folder in FOLDERS {
        for (context, mel, key) in [
            (EncoderContext::Native, mel, "native"),
            (EncoderContext::Padded30s, &padded, "padded"),
            (EncoderContext::Chunked, mel, "chunked"),
        ] {
            let encoder = load(folder, context);
            assert_eq!((encoder.d_model(), encoder.num_mel_bins()), (12, 7));
            let frames = encode(&encoder, mel, None);
            assert!(!frames.requires_grad());
            let name = format!("{folder}.{key}");
            assert_close(&name, &frames, &golden[&name]);
        }
    }
}

#[test]
fn adapted_frames_and_gradients_equal_peft() {
    let golden = tensors("whisper");
    for folder in FOLDERS {
        let mut encoder = load(folder, EncoderContext::Native);
        let targets = names(&["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]);
        let sites = encoder.lora_sites(&targets, 4).expect("the targets exist");
        let prefix = format!("{folder}.");
        let lora = GivenLora::new(sites, &prefix, &golden).counted_from(4);
        let frames = encode(&encoder, &golden["mel"], Some(&lora));
        assert_close(folder, &frames, &golden[&format!("{folder}.adapted")]);
        frames.pow_tensor_scalar(3).sum(Kind::Float).backward();
        lora.check_gradients(&prefix, &golden);
    }
}

/// Utterances of different lengths that are encoded together, and of equal lengths, come out as each does by itself, in every context;
/// adapters too.
#[test]
fn utterances_do_not_see_each_other() {
    let golden = tensors("whisper");
    let mel = &golden["mel"];
    let (short, reversed) = (mel.narrow(1, 3, 22), mel.flip([1]));
    let padded = short.constant_pad_nd([0, mel.size()[1] - 22]);
    let mixed: [&[(&Tensor, i64)]; 2] = [
        &[(mel, 47), (&short, 22), (&reversed, 46)],
        &[(mel, 47), (&padded, 21), (&reversed, 47)],
    ];
    for context in [EncoderContext::Native, EncoderContext::Chunked] {
        let mut encoder = load("whisper", context);
        let sites = encoder
            .lora_sites(&names(&["q_proj", "fc2"]), 0)
            .expect("the targets exist");
        let lora = GivenLora::new(sites, "whisper.", &golden);
        for adapters in [None, Some(&lora as &dyn LinearDelta)] {
            for utterances in mixed {
                let together = encode_all(&encoder, utterances, adapters);
                for (frames, &utterance) in together.iter().zip(utterances) {
                    assert_eq!(frames.size(), [(utterance.1 + 1) / 2, 12]);
                    let alone = encode_all(&encoder, &[utterance], adapters).remove(0);
                    assert_close("together", frames, &alone);
                }
            }
        }
        assert!(encode_all(&encoder, &[], None).is_empty());
    }
}

/// A chunk sees itself and its left context, but nothing of later chunks.
///
/// Method: mel frames are changed, and it is seen whether the frames of the fourth chunk change.
#[test]
fn a_chunk_does_not_see_later_chunks() {
    let encoder = load("whisper", EncoderContext::Chunked);
    let mel = &tensors("whisper")["mel"];
    // Encoder frames 15..20 see 8..20; the convolutions of a frame reach 3 mel frames beyond its own two.
    let chunk = |mel: &Tensor| encode(&encoder, mel, None).narrow(0, 15, 5);
    let changed_at = |from: i64, length: i64| {
        let changed = mel.copy();
        let _ = changed.narrow(1, from, length).fill_(3.0);
        chunk(&changed)
    };
    assert_eq!(changed_at(43, 4), chunk(mel), "a later chunk leaks");
    assert_ne!(changed_at(34, 4), chunk(mel), "the chunk does not see itself");
    assert_ne!(
        changed_at(18, 4),
        chunk(mel),
        "the chunk does not see its left context"
    );
}
