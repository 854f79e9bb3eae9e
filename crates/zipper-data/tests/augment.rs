//! Goal: masks stay within what is configured and leave the rest alone; speed changes tempo and pitch by its factor; a seed says
//! exactly what happens.
//! Method: properties over random shapes and seeds; sines whose zero crossings are counted.

use std::collections::BTreeSet;
use std::f64::consts::TAU;

use proptest::prelude::*;
use zipper_config::schema::{AugmentConfig, SpecAugmentConfig};
use zipper_data::augment::at_speed;
use zipper_data::{Augmentation, Features};

/// No two cells are the same, and the first one is so large that none is the mean.
fn features(n_mels: usize, valid_frames: usize, padding: usize) -> Features {
    let frames = valid_frames + padding;
    let cell = |n| if n == 0 { 1e9 } else { n as f32 };
    Features {
        data: (0..n_mels * frames).map(cell).collect(),
        n_mels,
        frames,
        valid_frames,
    }
}

fn masks(
    frequency_masks: usize,
    frequency_width: usize,
    time_masks: usize,
    time_width: usize,
) -> AugmentConfig {
    AugmentConfig {
        spec_augment: Some(SpecAugmentConfig {
            frequency_masks,
            frequency_width,
            time_masks,
            time_width,
        }),
        speed: Vec::new(),
    }
}

fn masked(original: &Features, config: &AugmentConfig, seed: u64) -> Features {
    let mut features = original.clone();
    Augmentation::new(config, seed).mask(&mut features);
    features
}

/// Mel bands that are masked as a whole, and frames.
fn found(original: &Features, masked: &Features) -> (BTreeSet<usize>, BTreeSet<usize>) {
    let changed = |mel: usize, frame: usize| {
        let at = mel * original.frames + frame;
        original.data[at].to_bits() != masked.data[at].to_bits()
    };
    let bands =
        (0..original.n_mels).filter(|&mel| (0..original.valid_frames).all(|frame| changed(mel, frame)));
    let frames =
        (0..original.valid_frames).filter(|&frame| (0..original.n_mels).all(|mel| changed(mel, frame)));
    (bands.collect(), frames.collect())
}

/// Consecutive numbers in a row.
fn runs(set: &BTreeSet<usize>) -> usize {
    set.iter().filter(|&&n| n == 0 || !set.contains(&(n - 1))).count()
}

proptest! {
    /// Whatever is drawn: no more masks and no wider ones than configured, all of one value, nothing else changed, padding least.
    #[test]
    fn masks_keep_their_limits(
        (n_mels, valid, padding) in (2..40usize, 2..120usize, 0..30usize),
        (frequency_masks, frequency_width) in (0..4usize, 0..12usize),
        (time_masks, time_width) in (0..4usize, 0..60usize),
        seed: u64,
    ) {
        let original = features(n_mels, valid, padding);
        let config = masks(frequency_masks, frequency_width, time_masks, time_width);
        let result = masked(&original, &config, seed);
        prop_assert_eq!(&result, &masked(&original, &config, seed), "the same seed does the same");

        let (bands, frames) = found(&original, &result);
        // Where all is masked in one direction, it seems so in the other.
        if frames.len() < valid && bands.len() < n_mels {
            prop_assert!(bands.len() <= frequency_masks * frequency_width);
            prop_assert!(frames.len() <= time_masks * time_width);
            prop_assert!(runs(&bands) <= frequency_masks && runs(&frames) <= time_masks);
        }
        let cells: Vec<f64> = (0..n_mels)
            .flat_map(|mel| original.data[mel * original.frames..][..valid].iter())
            .map(|&value| f64::from(value))
            .collect();
        let mean = cells.iter().sum::<f64>() / cells.len() as f64;
        for (at, (before, after)) in original.data.iter().zip(&result.data).enumerate() {
            let (mel, frame) = (at / original.frames, at % original.frames);
            if frame < valid && (bands.contains(&mel) || frames.contains(&frame)) {
                prop_assert!((f64::from(*after) - mean).abs() <= 1e-6 * mean, "{after} instead of the mean {mean}");
            } else {
                prop_assert_eq!(before.to_bits(), after.to_bits(), "mel {}, frame {}", mel, frame);
            }
        }
    }
}

/// Every width up to the maximum is drawn, none and all of it among them, and every place.
#[test]
fn every_width_and_every_place_occurs() {
    let original = features(9, 30, 4);
    let (mut band_widths, mut frame_widths) = (BTreeSet::new(), BTreeSet::new());
    let (mut band_places, mut frame_places) = (BTreeSet::new(), BTreeSet::new());
    for seed in 0..2000 {
        let (bands, _) = found(&original, &masked(&original, &masks(1, 3, 0, 0), seed));
        let (_, frames) = found(&original, &masked(&original, &masks(0, 0, 1, 7), seed));
        band_widths.insert(bands.len());
        frame_widths.insert(frames.len());
        band_places.extend(bands);
        frame_places.extend(frames);
    }
    assert!(band_widths.into_iter().eq(0..=3));
    assert!(frame_widths.into_iter().eq(0..=7));
    assert!(band_places.into_iter().eq(0..9));
    assert!(frame_places.into_iter().eq(0..30));
}

/// What is too wide for an utterance covers it at most, and one without frames has nothing to cover.
#[test]
fn short_utterances_are_masked_within_their_length() {
    for frames in 0..5 {
        let original = features(4, frames, 2);
        for seed in 0..50 {
            let result = masked(&original, &masks(2, 80, 2, 3000), seed);
            assert!(result.data.iter().all(|value| value.is_finite()));
            for mel in 0..4 {
                let padding = mel * original.frames + frames..(mel + 1) * original.frames;
                assert!(
                    result.data[padding.clone()].iter().eq(&original.data[padding]),
                    "padding stays"
                );
            }
        }
    }
}

/// Masks are those of the seed, whether the speed is changed or not.
#[test]
fn speed_and_masks_are_drawn_independently() {
    let original = features(20, 90, 0);
    let alone = masks(2, 10, 2, 50);
    let both = AugmentConfig {
        speed: vec![0.9, 1.1],
        ..alone.clone()
    };
    let different: BTreeSet<Vec<u32>> = (0..20)
        .map(|seed| {
            let result = masked(&original, &alone, seed);
            assert_eq!(result, masked(&original, &both, seed));
            result.data.iter().map(|value| value.to_bits()).collect()
        })
        .collect();
    assert!(different.len() > 15, "seeds draw different masks");
}

/// Hertz of a sine: half of the zero crossings between the first and the last.
fn frequency(samples: &[f32]) -> f64 {
    let crossings: Vec<usize> = (1..samples.len())
        .filter(|&n| (samples[n - 1] < 0.0) != (samples[n] < 0.0))
        .collect();
    let [first, .., last] = crossings.as_slice() else {
        panic!("no sine");
    };
    (crossings.len() - 1) as f64 / 2.0 / ((last - first) as f64 / 16_000.0)
}

fn sine(hertz: f64, samples: usize) -> Vec<f32> {
    (0..samples)
        .map(|n| (0.5 * (TAU * hertz * (n as f64 + 0.5) / 16_000.0).sin()) as f32)
        .collect()
}

/// Tempo and pitch change by the factor, the level stays.
#[test]
fn speed_scales_length_and_frequency() {
    for factor in [0.5, 0.8, 0.9, 0.937, 1.0, 1.001, 1.1, 1.25, 2.0] {
        for hertz in [150.0, 440.0, 2500.0] {
            let found = at_speed(sine(hertz, 24_007), factor);
            assert_eq!(found.len(), (24_007.0 / factor).round() as usize, "{factor}");
            // The first and the last few samples ring.
            let middle = &found[1000..found.len() - 1000];
            let ratio = frequency(middle) / hertz;
            assert!(
                (ratio / factor - 1.0).abs() < 0.002,
                "{hertz} Hz at {factor}: times {ratio}"
            );
            let power = middle.iter().map(|sample| sample * sample).sum::<f32>() / middle.len() as f32;
            let level = (2.0 * power).sqrt();
            assert!(
                (level - 0.5).abs() < 0.005,
                "{hertz} Hz at {factor}: level {level}"
            );
        }
    }
    let original = sine(440.0, 8000);
    assert_eq!(at_speed(original.clone(), 1.0), original, "not a bit changes");
}

/// What would not fit into Whisper's 30 s stays as it is; what just fits does not.
#[test]
fn nothing_becomes_longer_than_30_s_or_shorter_than_a_frame() {
    let limit = 30 * 16_000;
    for (length, factor, expected) in [
        (limit * 9 / 10, 0.9, limit),
        (limit * 9 / 10 + 1, 0.9, limit * 9 / 10 + 1),
        (limit, 0.9, limit),
        (limit, 2.0, limit / 2),
        (320, 2.0, 160),
        (318, 2.0, 318),
        (0, 2.0, 0),
    ] {
        let samples = vec![0.1; length];
        assert_eq!(at_speed(samples, factor).len(), expected, "{length} at {factor}");
    }
}

/// Each factor is drawn, the same by the same seed; without factors nothing happens.
#[test]
fn every_speed_is_drawn() {
    let config = AugmentConfig {
        spec_augment: None,
        speed: vec![0.9, 1.0, 1.1],
    };
    let samples = sine(300.0, 3300);
    let length =
        |config: &AugmentConfig, seed| Augmentation::new(config, seed).samples(samples.clone()).len();
    let mut counts = [0; 3];
    for seed in 0..600 {
        let found = length(&config, seed);
        assert_eq!(found, length(&config, seed));
        let drawn = [3667, 3300, 3000].iter().position(|&length| length == found);
        counts[drawn.expect("one of the factors")] += 1;
        assert_eq!(length(&AugmentConfig::default(), seed), 3300);
    }
    assert!(
        counts.iter().all(|count| (140..260).contains(count)),
        "{counts:?}"
    );
}
