//! Goal: encoder frames equal those of transformers' Whisper in every context, also with LoRA in the encoder.
//!
//! Method: the golden encoder knows 60 positions instead of 1500, so its "30 s" are 120 mel frames.

use tch::{Device, Kind, Tensor};
use zipper_config::schema::EncoderContext;
use zipper_model::encoder::WhisperEncoder;

use crate::support::{GivenLora, assert_close, encoder_config, models, names, tensors};

/// Names with the prefix of a whole model in f32, and of the part without its head in bf16.
const FOLDERS: [&str; 2] = ["whisper", "whisper_part"];

fn load(folder: &str, context: EncoderContext) -> WhisperEncoder {
    let config = encoder_config(&models().join(folder), context);
    WhisperEncoder::load(&config, Device::Cpu).expect("a good directory")
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
            let frames = encoder.encode(mel, 47, None).expect("short enough");
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
        let frames = encoder
            .encode(&golden["mel"], 47, Some(&lora))
            .expect("short enough");
        assert_close(folder, &frames, &golden[&format!("{folder}.adapted")]);
        frames.pow_tensor_scalar(3).sum(Kind::Float).backward();
        lora.check_gradients(&prefix, &golden);
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
    let chunk = |mel: &Tensor| {
        encoder
            .encode(mel, 47, None)
            .expect("short enough")
            .narrow(0, 15, 5)
    };
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
