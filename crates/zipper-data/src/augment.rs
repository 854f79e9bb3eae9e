//! What training changes about an utterance: its speed, and masks over its features.
//!
//! Everything is drawn from a seed that belongs to the utterance, never from a generator that goes on from one utterance to the
//! next: so it does not matter who hears them, or in which order.

use std::ops::Range;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use zipper_config::schema::{AugmentConfig, SpecAugmentConfig};

use crate::audio::{Mono, SAMPLE_RATE, resample};
use crate::features::{Features, HOP_LENGTH, WINDOW_SAMPLES};

/// Streams of the generator, so that what is drawn for one change does not depend on whether the other is on.
const SPEED: u64 = 0;
const MASKS: u64 = 1;

/// What is changed about one utterance, once.
#[derive(Debug, Clone, Copy)]
pub struct Augmentation<'a> {
    config: &'a AugmentConfig,
    seed: u64,
}

impl<'a> Augmentation<'a> {
    /// The changes that `config` asks for, as `seed` draws them.
    pub fn new(config: &'a AugmentConfig, seed: u64) -> Self {
        Self { config, seed }
    }

    /// What it is drawn from.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// `samples` (16 kHz) at the speed that is drawn, as [`at_speed`] makes them.
    pub fn samples(&self, samples: Vec<f32>) -> Vec<f32> {
        let factors = &self.config.speed;
        if factors.is_empty() {
            return samples;
        }
        let drawn = self.random(SPEED).random_range(0..factors.len());
        at_speed(samples, factors[drawn])
    }

    /// Lays the masks that are drawn over `features`.
    ///
    /// What they cover becomes the mean of the utterance's features. Whisper's are not centred: 0 would be louder than most of an
    /// utterance, and so a sound of its own. Frames of padding stay as they are, as the encoder's output is cut before them.
    pub fn mask(&self, features: &mut Features) {
        if let Some(masks) = &self.config.spec_augment {
            mask(features, masks, &mut self.random(MASKS));
        }
    }

    fn random(&self, stream: u64) -> ChaCha8Rng {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(stream);
        random
    }
}

/// `samples` (16 kHz) as if they were played `factor` times as fast: tempo and pitch change together, as with `sox speed`.
///
/// `factor` is taken to a thousandth. `n` samples become `round(n / factor)`. Where those would be more than the 30 s that Whisper
/// has positions for, or less than a frame, the speed stays as it is.
pub fn at_speed(samples: Vec<f32>, factor: f64) -> Vec<f32> {
    // What was recorded at this rate, and is now played at 16 kHz.
    let sample_rate = (factor * 1000.0).round() as u32 * (SAMPLE_RATE / 1000);
    let length = samples.len() as f64 * f64::from(SAMPLE_RATE) / f64::from(sample_rate);
    if (HOP_LENGTH as f64..=WINDOW_SAMPLES as f64).contains(&length.round()) {
        resample(Mono { samples, sample_rate })
    } else {
        samples
    }
}

fn mask(features: &mut Features, masks: &SpecAugmentConfig, random: &mut ChaCha8Rng) {
    let (n_mels, frames, valid) = (features.n_mels, features.frames, features.valid_frames);
    if valid == 0 {
        return;
    }
    let mut rows: Vec<&mut [f32]> = features
        .data
        .chunks_exact_mut(frames)
        .map(|row| &mut row[..valid])
        .collect();
    let sum: f64 = rows
        .iter()
        .flat_map(|row| row.iter())
        .copied()
        .map(f64::from)
        .sum();
    let mean = (sum / (n_mels * valid) as f64) as f32;
    for _ in 0..masks.frequency_masks {
        for row in &mut rows[span(random, n_mels, masks.frequency_width)] {
            row.fill(mean);
        }
    }
    for _ in 0..masks.time_masks {
        let span = span(random, valid, masks.time_width);
        for row in &mut rows {
            row[span.clone()].fill(mean);
        }
    }
}

/// Some of `0..length`: at most `widest`, each width as likely as the others, and so each place where it fits.
fn span(random: &mut ChaCha8Rng, length: usize, widest: usize) -> Range<usize> {
    let width = random.random_range(0..=widest.min(length));
    let start = random.random_range(0..=length - width);
    start..start + width
}
