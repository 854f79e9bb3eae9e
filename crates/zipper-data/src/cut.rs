//! Where a long recording is cut: at its pauses, which are told by energy.
//!
//! Frames of 10 ms are speech where they are clearly louder than the noise around them: what is quiet for a while is a pause, and what
//! lies between two pauses is a segment. Errs on the side of speech: what is taken for speech and is none costs time, what is taken
//! for noise is lost.

use std::ops::Range;

use crate::audio::SAMPLE_RATE;

/// Samples in a frame.
const FRAME: usize = SAMPLE_RATE as usize / FRAME_RATE;
/// Frames in a second.
const FRAME_RATE: usize = 100;
/// Power of the loudest that is silence whatever is around it: 60 dB below a square wave of full scale.
const SILENCE: f64 = 1e-6;
/// How much more power speech has than noise: 6 dB.
const SPEECH_TO_NOISE: f64 = 4.0;
/// What has at least this part of the power of the loudest is no noise, however steady it is: 6 dB.
const LOUD: f64 = 0.25;
/// Frames over which the loudest is averaged, so that a click does not make everything else quiet.
const LOUDEST_FRAMES: usize = 10;
/// The noise is what one frame in ten is below: people who speak pause more often.
const NOISE_QUANTILE: f64 = 0.1;
/// Frames that share an estimate of the noise ...
const NOISE_BLOCK: usize = FRAME_RATE;
/// ... and how many such blocks to each side it is taken from.
const NOISE_BLOCKS_AROUND: usize = 5;
/// Frames above the noise that a segment has at least. Less is a click.
const FEWEST_SPEECH_FRAMES: usize = 5;
/// Frames kept before and after speech, whose beginnings and ends are soft.
const PADDING: usize = FRAME_RATE / 5;
/// Frames around a place that say how quiet it is.
const QUIET_FRAMES: usize = 10;
/// Frames of the shortest limit that can be kept: a shorter one would make pieces that no encoder reads.
const SHORTEST_LIMIT: usize = FRAME_RATE / 10;

/// How a recording is cut.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CutOptions {
    /// Shortest pause that separates two segments, in seconds.
    pub min_pause_seconds: f64,
    /// Longest segment, in seconds; at least 0.1.
    pub max_seconds: f64,
}

/// A part of a recording, in samples: `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The first sample.
    pub start: usize,
    /// The sample after the last one.
    pub end: usize,
}

impl Segment {
    /// Where it starts, in seconds.
    pub fn start_seconds(self) -> f64 {
        self.start as f64 / f64::from(SAMPLE_RATE)
    }

    /// Where it ends, in seconds.
    pub fn end_seconds(self) -> f64 {
        self.end as f64 / f64::from(SAMPLE_RATE)
    }

    /// Its part of the recording that it was cut from.
    ///
    /// # Panics
    /// If the recording ends before the segment.
    pub fn of(self, samples: &[f32]) -> &[f32] {
        &samples[self.start..self.end]
    }
}

/// Cuts a recording of 16 kHz samples into its stretches of speech.
///
/// Segments are in order, do not overlap, have more than 10 ms and at most `max_seconds`. A stretch without a pause that is longer
/// is cut where it is quietest, none of its pieces shorter than a quarter of the limit. Silence, and what is as steady and quiet as
/// the noise around it, is in no segment; a recording of steady noise alone is one, as it has nothing quieter.
///
/// Samples that are not finite count as silence.
pub fn cut(samples: &[f32], options: CutOptions) -> Vec<Segment> {
    let power: Vec<f64> = samples.chunks(FRAME).map(power).collect();
    let min_pause = frames(options.min_pause_seconds).max(1);
    let longest = frames(options.max_seconds).max(SHORTEST_LIMIT);
    let stretches = pad(&stretches(&is_speech(&power), min_pause), power.len());
    let pieces = stretches
        .into_iter()
        .flat_map(|stretch| split(stretch, longest, &power));
    let segment = |piece: Range<usize>| Segment {
        start: piece.start * FRAME,
        end: (piece.end * FRAME).min(samples.len()),
    };
    pieces.map(segment).collect()
}

/// Whole frames in `seconds`; 0 for what is no length.
fn frames(seconds: f64) -> usize {
    // Decimal fractions are not exact: 0.29 s are 29 frames.
    (seconds * FRAME_RATE as f64 + 1e-6) as usize
}

/// Mean power of a frame around its own mean: an offset of the microphone is not loud.
fn power(frame: &[f32]) -> f64 {
    let finite = |sample: &f32| {
        if sample.is_finite() {
            f64::from(*sample)
        } else {
            0.0
        }
    };
    let count = frame.len() as f64;
    let mean = frame.iter().map(finite).sum::<f64>() / count;
    frame
        .iter()
        .map(|sample| (finite(sample) - mean).powi(2))
        .sum::<f64>()
        / count
}

/// Which frames are louder than the noise around them.
fn is_speech(power: &[f64]) -> Vec<bool> {
    let loudest = power
        .windows(LOUDEST_FRAMES.min(power.len()).max(1))
        .map(|window| window.iter().sum::<f64>() / window.len() as f64)
        .fold(0.0, f64::max);
    let blocks = power.chunks(NOISE_BLOCK).enumerate();
    let of_block = blocks.flat_map(|(block, frames)| {
        let first = block.saturating_sub(NOISE_BLOCKS_AROUND) * NOISE_BLOCK;
        let end = ((block + 1 + NOISE_BLOCKS_AROUND) * NOISE_BLOCK).min(power.len());
        let noise = quantile(&power[first..end], NOISE_QUANTILE);
        let threshold = (SPEECH_TO_NOISE * noise).min(LOUD * loudest).max(SILENCE);
        frames.iter().map(move |&power| power > threshold)
    });
    of_block.collect()
}

/// The value that this part of `values` is below.
fn quantile(values: &[f64], part: f64) -> f64 {
    let mut values = values.to_vec();
    let place = (values.len() as f64 * part) as usize;
    *values.select_nth_unstable_by(place, f64::total_cmp).1
}

/// Frames from the first to the last of speech between pauses of at least `min_pause` frames.
fn stretches(speech: &[bool], min_pause: usize) -> Vec<Range<usize>> {
    let mut stretches: Vec<(Range<usize>, usize)> = Vec::new();
    for frame in (0..speech.len()).filter(|&frame| speech[frame]) {
        match stretches.last_mut() {
            Some((stretch, count)) if frame - stretch.end < min_pause => {
                stretch.end = frame + 1;
                *count += 1;
            }
            _ => stretches.push((frame..frame + 1, 1)),
        }
    }
    let spoken = stretches
        .into_iter()
        .filter(|(_, count)| *count >= FEWEST_SPEECH_FRAMES);
    spoken.map(|(stretch, _)| stretch).collect()
}

/// The stretches with some of the pauses around them, at most half of one that they share.
fn pad(stretches: &[Range<usize>], num_frames: usize) -> Vec<Range<usize>> {
    let padded = stretches.iter().enumerate().map(|(index, stretch)| {
        let before = match index.checked_sub(1) {
            Some(previous) => (stretch.start - stretches[previous].end) / 2,
            None => stretch.start,
        };
        let after = match stretches.get(index + 1) {
            Some(next) => (next.start - stretch.end) / 2,
            None => num_frames - stretch.end,
        };
        stretch.start - before.min(PADDING)..stretch.end + after.min(PADDING)
    });
    padded.collect()
}

/// Pieces of at most `longest` frames, cut where it is quietest.
fn split(stretch: Range<usize>, longest: usize, power: &[f64]) -> Vec<Range<usize>> {
    let around = |place: usize| {
        let first = place.saturating_sub(QUIET_FRAMES / 2);
        let end = (place + QUIET_FRAMES / 2).min(power.len());
        power[first..end].iter().sum::<f64>()
    };
    let mut pieces = Vec::new();
    let mut start = stretch.start;
    while stretch.end - start > longest {
        let earliest = start + longest / 2;
        // Leaves no crumb behind.
        let latest = start + longest.min(stretch.end - start - longest / 4);
        // From the end, so that of equal places the last is taken: fewer pieces.
        let quietest = (earliest..=latest)
            .rev()
            .min_by(|&one, &other| around(one).total_cmp(&around(other)));
        let quietest = quietest.unwrap_or(latest);
        pieces.push(start..quietest);
        start = quietest;
    }
    pieces.push(start..stretch.end);
    pieces
}
