//! Whisper's log-mel features, as Hugging Face's `WhisperFeatureExtractor` computes them.
//!
//! Frames of 400 samples every 160, Hann window, power spectrum, Slaney mel filters from 0 to 8 kHz, log10 with
//! a floor, limited to 8 decades below the utterance's maximum, scaled to about `[-1, 1]`.

use std::sync::Arc;

use realfft::{RealFftPlanner, RealToComplex};

use crate::audio::SAMPLE_RATE;

/// Samples from one frame to the next.
pub const HOP_LENGTH: usize = 160;

const N_FFT: usize = 400;
const N_BINS: usize = N_FFT / 2 + 1;
/// Frames of the 30 s window that Whisper was trained on.
const WINDOW_FRAMES: usize = 3000;
pub(crate) const WINDOW_SAMPLES: usize = WINDOW_FRAMES * HOP_LENGTH;
const MEL_FLOOR: f32 = 1e-10;

/// What is done with audio that does not fill Whisper's window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Padding {
    /// Nothing: as many frames as the utterance has, also beyond 30 s.
    None,
    /// Zeros up to 30 s; what is longer is cut off.
    To30s,
}

/// Log-mel features of one utterance.
#[derive(Debug, Clone, PartialEq)]
pub struct Features {
    /// `[n_mels, frames]`, row-major.
    pub data: Vec<f32>,
    /// Rows.
    pub n_mels: usize,
    /// Columns.
    pub frames: usize,
    /// Columns that begin inside the utterance; the others hold padding only.
    pub valid_frames: usize,
}

/// The feature extractor for one number of mel bands. Make it once and share it.
#[derive(Clone)]
pub struct LogMel {
    window: Vec<f32>,
    filters: Vec<MelFilter>,
    fft: Arc<dyn RealToComplex<f32>>,
}

/// The non-zero part of one triangular filter.
#[derive(Clone)]
struct MelFilter {
    first_bin: usize,
    weights: Vec<f32>,
}

impl LogMel {
    /// An extractor of `n_mels` bands: 80, or 128 from whisper-large-v3 on.
    pub fn new(n_mels: usize) -> Self {
        let window = (0..N_FFT).map(|n| hann(n) as f32).collect();
        Self {
            window,
            filters: mel_filters(n_mels),
            fft: RealFftPlanner::new().plan_fft_forward(N_FFT),
        }
    }

    /// Number of mel bands.
    pub fn n_mels(&self) -> usize {
        self.filters.len()
    }

    /// Features of 16 kHz samples.
    ///
    /// With [`Padding::None`] there are `samples.len() / 160` frames, all valid. With [`Padding::To30s`] there are
    /// 3000, and those are valid that begin inside `samples`.
    pub fn compute(&self, samples: &[f32], padding: Padding) -> Features {
        match padding {
            Padding::None => {
                let frames = samples.len() / HOP_LENGTH;
                Features {
                    data: self.log_mel(samples),
                    n_mels: self.n_mels(),
                    frames,
                    valid_frames: frames,
                }
            }
            Padding::To30s => {
                let mut window = samples[..samples.len().min(WINDOW_SAMPLES)].to_vec();
                let valid_frames = window.len().div_ceil(HOP_LENGTH);
                window.resize(WINDOW_SAMPLES, 0.0);
                Features {
                    data: self.log_mel(&window),
                    n_mels: self.n_mels(),
                    frames: WINDOW_FRAMES,
                    valid_frames,
                }
            }
        }
    }

    /// `[n_mels, samples.len() / HOP_LENGTH]`, row-major.
    fn log_mel(&self, samples: &[f32]) -> Vec<f32> {
        let frames = samples.len() / HOP_LENGTH;
        let mut log_mel = vec![0.0; self.n_mels() * frames];
        let mut windowed = self.fft.make_input_vec();
        let mut spectrum = self.fft.make_output_vec();
        let mut scratch = self.fft.make_scratch_vec();
        let mut power = vec![0.0; N_BINS];
        // Frames are centred on multiples of the hop, so the first and last ones reach beyond the audio.
        let mirrored = mirror_ends(samples);
        for (frame, samples) in mirrored
            .windows(N_FFT)
            .step_by(HOP_LENGTH)
            .take(frames)
            .enumerate()
        {
            for ((value, weight), sample) in windowed.iter_mut().zip(&self.window).zip(samples) {
                *value = weight * sample;
            }
            self.fft
                .process_with_scratch(&mut windowed, &mut spectrum, &mut scratch)
                .expect("the buffers were made for this transform");
            for (power, bin) in power.iter_mut().zip(&spectrum) {
                *power = bin.norm_sqr();
            }
            for (mel, filter) in self.filters.iter().enumerate() {
                let bins = &power[filter.first_bin..][..filter.weights.len()];
                let energy: f32 = bins
                    .iter()
                    .zip(&filter.weights)
                    .map(|(power, weight)| power * weight)
                    .sum();
                log_mel[mel * frames + frame] = energy.max(MEL_FLOOR).log10();
            }
        }
        let floor = log_mel.iter().copied().fold(f32::NEG_INFINITY, f32::max) - 8.0;
        for value in &mut log_mel {
            *value = (value.max(floor) + 4.0) / 4.0;
        }
        log_mel
    }
}

/// `samples` with half a frame on either side that mirrors them at their first and last one.
fn mirror_ends(samples: &[f32]) -> Vec<f32> {
    const HALF: usize = N_FFT / 2;
    let (len, half) = (samples.len(), HALF as isize);
    let mirrored = |range: std::ops::Range<isize>| range.map(|index| samples[reflect(index, len)]);
    let mut all = Vec::with_capacity(len + N_FFT);
    if len > 0 {
        all.extend(mirrored(-half..0));
        all.extend_from_slice(samples);
        all.extend(mirrored(len as isize..len as isize + half));
    }
    all
}

/// The periodic Hann window of `N_FFT` points.
fn hann(n: usize) -> f64 {
    0.5 - 0.5 * (std::f64::consts::TAU * n as f64 / N_FFT as f64).cos()
}

/// Index into `len` samples that are mirrored at their first and last one, as often as needed.
fn reflect(index: isize, len: usize) -> usize {
    if len == 1 {
        return 0;
    }
    let period = 2 * (len as isize - 1);
    let index = index.rem_euclid(period);
    index.min(period - index) as usize
}

/// Triangles with equal widths on the Slaney mel scale and equal areas in hertz (Slaney, Auditory Toolbox, 1998).
fn mel_filters(n_mels: usize) -> Vec<MelFilter> {
    let nyquist = f64::from(SAMPLE_RATE) / 2.0;
    let max_mel = hertz_to_mel(nyquist);
    let edge = |i: usize| mel_to_hertz(max_mel * i as f64 / (n_mels + 1) as f64);
    (0..n_mels)
        .map(|mel| {
            let (low, centre, high) = (edge(mel), edge(mel + 1), edge(mel + 2));
            let weights = (0..N_BINS).map(|bin| {
                let hertz = nyquist * bin as f64 / (N_BINS - 1) as f64;
                let rising = (hertz - low) / (centre - low);
                let falling = (high - hertz) / (high - centre);
                (rising.min(falling).max(0.0) * 2.0 / (high - low)) as f32
            });
            let first_bin = weights.clone().take_while(|weight| *weight == 0.0).count();
            MelFilter {
                first_bin,
                weights: weights
                    .skip(first_bin)
                    .take_while(|weight| *weight > 0.0)
                    .collect(),
            }
        })
        .collect()
}

/// Linear below 1 kHz (200/3 Hz a mel), logarithmic above (27 mels for a factor of 6.4).
fn hertz_to_mel(hertz: f64) -> f64 {
    if hertz < 1000.0 {
        hertz * 3.0 / 200.0
    } else {
        15.0 + (hertz / 1000.0).ln() * 27.0 / 6.4_f64.ln()
    }
}

fn mel_to_hertz(mel: f64) -> f64 {
    if mel < 15.0 {
        mel * 200.0 / 3.0
    } else {
        1000.0 * ((mel - 15.0) * 6.4_f64.ln() / 27.0).exp()
    }
}
