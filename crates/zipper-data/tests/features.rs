//! Goal: log-mel features equal those of transformers' `WhisperFeatureExtractor` within 1e-4.
//! Method: `golden/make_features_golden.py` stores signals and their features.

use safetensors::SafeTensors;
use zipper_data::{Features, LogMel, Padding};

/// A tensor of the golden file, with its shape.
fn golden(name: &str) -> (Vec<usize>, Vec<f32>) {
    let file = SafeTensors::deserialize(include_bytes!("golden/features.safetensors")).expect("golden file");
    let tensor = file.tensor(name).expect("name in the golden file");
    let values = tensor
        .data()
        .as_chunks()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect();
    (tensor.shape().to_vec(), values)
}

/// Compares the first frames of `features` with `[n_mels, frames]` golden values.
fn assert_close(features: &Features, (shape, expected): &(Vec<usize>, Vec<f32>)) {
    assert_eq!(features.n_mels, shape[0]);
    assert!(features.frames >= shape[1]);
    for (mel, row) in expected.chunks_exact(shape[1]).enumerate() {
        for (frame, expected) in row.iter().enumerate() {
            let value = features.data[mel * features.frames + frame];
            assert!(
                (value - expected).abs() < 1e-4,
                "mel {mel}, frame {frame}: {value} instead of {expected}"
            );
        }
    }
}

#[test]
fn features_of_native_length_equal_transformers() {
    for (signal, name, n_mels) in [
        ("long", "long_80", 80),
        ("long", "long_128", 128),
        ("tiny", "tiny_80", 80),
    ] {
        let (_, mut samples) = golden("long");
        if signal == "tiny" {
            samples.truncate(301);
        }
        let expected = golden(name);
        let features = LogMel::new(n_mels).compute(&samples, Padding::None);
        assert_eq!(
            (features.frames, features.valid_frames),
            (expected.0[1], expected.0[1]),
            "{name}"
        );
        assert_close(&features, &expected);
    }
}

#[test]
fn features_padded_to_30_s_equal_transformers() {
    let (_, mut samples) = golden("long");
    samples.truncate(6480);
    let expected = golden("padded_80");
    let features = LogMel::new(80).compute(&samples, Padding::To30s);
    // 6480 samples are 40.5 hops: the last valid frame is half speech.
    assert_eq!((features.frames, features.valid_frames), (3000, 41));
    assert_close(&features, &expected);
    for row in features.data.chunks_exact(3000) {
        assert!(
            row[60..].iter().all(|value| value.to_bits() == row[60].to_bits()),
            "frames of padding differ"
        );
    }
}

/// What is longer than 30 s is cut off, not wrapped or squeezed.
#[test]
fn the_30_s_window_cuts_longer_audio() {
    let samples: Vec<f32> = (0..16_000 * 31)
        .map(|n| (n as f32 * 0.01).sin() * n as f32 / 496_000.0)
        .collect();
    let log_mel = LogMel::new(80);
    let features = log_mel.compute(&samples, Padding::To30s);
    assert_eq!((features.frames, features.valid_frames), (3000, 3000));
    assert_eq!(features, log_mel.compute(&samples[..480_000], Padding::To30s));
    assert_eq!(log_mel.compute(&samples, Padding::None).frames, 3100);
}

/// Lengths around the first frame and around a whole hop give the number of frames the definition says.
#[test]
fn every_length_has_samples_over_160_frames() {
    let log_mel = LogMel::new(128);
    for (samples, frames) in [(0, 0), (1, 0), (159, 0), (160, 1), (200, 1), (319, 1), (320, 2)] {
        let features = log_mel.compute(&vec![0.1; samples], Padding::None);
        assert_eq!(
            (features.frames, features.data.len()),
            (frames, 128 * frames),
            "{samples} samples"
        );
        assert!(
            features.data.iter().all(|value| value.is_finite()),
            "{samples} samples"
        );
    }
}
