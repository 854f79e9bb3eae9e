//! Goal: recordings are cut at their pauses; whatever they hold, segments are in order, short enough, and lose nothing that is loud.
//! Method: recordings of tones, noise and silence, of lengths and levels that are drawn; and ones that are no recordings.

use std::f32::consts::TAU;

use proptest::collection::vec;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use zipper_data::{CutOptions, Segment, cut};

const SECOND: usize = 16_000;
/// What a frame of the detector and a soft end may take away, in samples.
const FRAME: usize = 160;

fn options(min_pause_seconds: f64, max_seconds: f64) -> CutOptions {
    CutOptions {
        min_pause_seconds,
        max_seconds,
    }
}

fn usual() -> CutOptions {
    options(0.5, 30.0)
}

/// A recording being put together.
struct Recording {
    samples: Vec<f32>,
    random: ChaCha8Rng,
}

impl Recording {
    fn new() -> Self {
        Self {
            samples: Vec::new(),
            random: ChaCha8Rng::seed_from_u64(5),
        }
    }

    /// Something like a voice: a tone of 200 Hz with overtones.
    fn voice(mut self, seconds: f64, amplitude: f32) -> Self {
        let count = (seconds * SECOND as f64) as usize;
        self.samples.extend((0..count).map(|sample| {
            let time = sample as f32 / SECOND as f32;
            let overtone = |n: u16| (TAU * 200.0 * f32::from(n) * time).sin() / f32::from(n);
            amplitude * (overtone(1) + overtone(2) + overtone(5)) / 2.0
        }));
        self
    }

    fn noise(mut self, seconds: f64, amplitude: f32) -> Self {
        let count = (seconds * SECOND as f64) as usize;
        let random = &mut self.random;
        self.samples
            .extend((0..count).map(|_| amplitude * random.random_range(-1.0..1.0f32)));
        self
    }

    /// Noise under everything so far.
    fn in_noise(mut self, amplitude: f32) -> Self {
        for sample in &mut self.samples {
            *sample += amplitude * self.random.random_range(-1.0..1.0f32);
        }
        self
    }

    fn silence(self, seconds: f64) -> Self {
        self.noise(seconds, 0.0)
    }

    fn cut(&self, options: CutOptions) -> Vec<Segment> {
        let segments = cut(&self.samples, options);
        check(&segments, self.samples.len(), options.max_seconds);
        segments
    }

    /// Start and end of each segment, in seconds.
    fn seconds(&self, options: CutOptions) -> Vec<(f64, f64)> {
        let segments = self.cut(options).into_iter();
        segments
            .map(|segment| (segment.start_seconds(), segment.end_seconds()))
            .collect()
    }
}

/// What holds of all segments: in order, inside the recording, never empty, never too long.
fn check(segments: &[Segment], num_samples: usize, max_seconds: f64) {
    let mut end = 0;
    for segment in segments {
        assert!(segment.start >= end, "{segment:?} begins before {end}");
        assert!(segment.end > segment.start + FRAME, "{segment:?} is a crumb");
        let seconds = (segment.end - segment.start) as f64 / SECOND as f64;
        assert!(
            seconds <= max_seconds.max(0.1),
            "{segment:?} is longer than {max_seconds} s"
        );
        end = segment.end;
    }
    assert!(end <= num_samples, "{end} is after the end, {num_samples}");
}

#[test]
fn a_pause_separates_two_segments() {
    let recording = Recording::new()
        .silence(1.0)
        .voice(1.0, 0.3)
        .silence(0.6)
        .voice(2.0, 0.2)
        .silence(0.1);
    // Kept around speech: 0.2 s.
    assert_eq!(recording.seconds(usual()), [(0.8, 2.2), (2.4, 4.7)]);
    assert_eq!(
        recording.seconds(options(0.61, 30.0)),
        [(0.8, 4.7)],
        "no pause is as long"
    );
    let short = Recording::new().voice(1.0, 0.3).silence(0.1).voice(1.0, 0.3);
    assert_eq!(
        short.seconds(options(0.1, 30.0)),
        [(0.0, 1.05), (1.05, 2.1)],
        "they share a short pause"
    );
}

#[test]
fn silence_is_in_no_segment() {
    for (what, recording) in [
        ("nothing", Recording::new()),
        ("one sample", Recording::new().noise(1.0 / 16_000.0, 0.5)),
        ("zeros", Recording::new().silence(5.0)),
        ("dither", Recording::new().noise(5.0, 3e-5)),
        (
            "a click",
            Recording::new().silence(2.0).noise(0.03, 0.9).silence(2.0),
        ),
    ] {
        assert_eq!(recording.cut(usual()), [], "{what}");
    }
    assert_eq!(cut(&vec![0.3; 3 * SECOND], usual()), [], "an offset");
    assert_eq!(cut(&vec![f32::NAN; SECOND], usual()), [], "not numbers");
}

/// Noise that is 20 dB below speech hides no pause, and neither does an offset of the microphone.
#[test]
fn pauses_are_found_in_noise() {
    let quiet = || {
        Recording::new()
            .silence(2.0)
            .voice(3.0, 0.3)
            .silence(1.0)
            .voice(3.0, 0.3)
            .silence(2.0)
    };
    let expected = quiet().seconds(usual());
    assert_eq!(expected, [(1.8, 5.2), (5.8, 9.2)]);
    let mut noisy = quiet().in_noise(0.03);
    assert_eq!(noisy.seconds(usual()), expected);
    for sample in &mut noisy.samples {
        *sample += 0.2;
    }
    assert_eq!(noisy.seconds(usual()), expected, "with an offset");
}

/// The noise is measured where it is: under a loud voice near the microphone and under a faint one, that is no louder than the noise
/// was before.
#[test]
fn noise_is_measured_around_each_second() {
    let changing = Recording::new()
        .voice(2.0, 0.4)
        .noise(20.0, 0.02)
        .noise(20.0, 0.0005)
        .voice(2.0, 0.02)
        .noise(2.0, 0.0005);
    let segments = changing.cut(usual());
    let heard = |seconds: f64| {
        let sample = (seconds * SECOND as f64) as usize;
        segments
            .iter()
            .any(|segment| (segment.start..segment.end).contains(&sample))
    };
    for tenth in 0..460 {
        let seconds = f64::from(tenth) / 10.0 + 0.05;
        match seconds {
            0.0..2.0 | 42.0..44.0 => assert!(heard(seconds), "{seconds} s is in none of {segments:?}"),
            // The last seconds before it changes may count as speech: there is quieter noise near.
            2.5..16.0 | 22.5..41.5 | 44.5.. => {
                assert!(!heard(seconds), "{seconds} s is in one of {segments:?}");
            }
            _ => {}
        }
    }
}

/// Steady noise alone has nothing quieter to tell it from: it is written down, not lost.
#[test]
fn what_never_changes_is_kept() {
    let noise = Recording::new().noise(3.0, 0.1);
    assert_eq!(noise.seconds(usual()), [(0.0, 3.0)]);
    let voice = Recording::new().voice(3.0, 0.1);
    assert_eq!(voice.seconds(usual()), [(0.0, 3.0)]);
}

#[test]
fn without_a_pause_it_is_cut_where_it_is_quietest() {
    let recording = Recording::new()
        .voice(17.0, 0.3)
        .voice(0.1, 0.2)
        .voice(6.0, 0.3)
        .voice(0.1, 0.1)
        .voice(15.0, 0.3);
    let segments = recording.seconds(usual());
    assert_eq!(segments.len(), 2, "{segments:?}");
    let place = segments[0].1;
    assert!(
        (23.1..=23.2).contains(&place),
        "cut at {place}, not at the quietest place"
    );
    assert_eq!(
        segments[1].0.to_bits(),
        place.to_bits(),
        "nothing is lost between pieces"
    );
    // Everywhere the same: as few pieces as can be, and no crumb at the end.
    let steady = Recording::new().voice(61.0, 0.3).seconds(usual());
    assert_eq!(steady.len(), 3, "{steady:?}");
    assert!(steady[2].1 - steady[2].0 >= 7.5, "{steady:?}");
}

/// A loud or a quiet stretch of a recording, in frames.
#[derive(Debug, Clone)]
struct Stretch {
    frames: usize,
    amplitude: f32,
}

fn stretches() -> impl Strategy<Value = Vec<(Stretch, Stretch)>> {
    // Loud ones differ by less than 6 dB.
    let loud = (6..600usize, 0.2..0.35f32).prop_map(|(frames, amplitude)| Stretch { frames, amplitude });
    let quiet = (0..400usize, 0.0..0.02f32).prop_map(|(frames, amplitude)| Stretch { frames, amplitude });
    vec((quiet, loud), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What is loud is in some segment, whatever is around it.
    #[test]
    fn every_loud_stretch_is_covered(
        stretches in stretches(), min_pause in 0.02..1.0f64, max_seconds in 0.5..30.0f64, offset in 0..FRAME,
    ) {
        let mut recording = Recording::new();
        recording.samples.resize(offset, 0.0);
        let mut loud = Vec::new();
        for (before, stretch) in stretches {
            let seconds = |frames: usize| frames as f64 * 0.01;
            recording = recording.noise(seconds(before.frames), before.amplitude);
            let start = recording.samples.len();
            recording = recording.voice(seconds(stretch.frames), stretch.amplitude);
            loud.push(start..recording.samples.len());
        }
        let segments = recording.cut(options(min_pause, max_seconds));
        for stretch in loud {
            // The frames that lie in it as a whole.
            for sample in (stretch.start + FRAME..stretch.end - FRAME).step_by(FRAME) {
                prop_assert!(
                    segments.iter().any(|segment| (segment.start..segment.end).contains(&sample)),
                    "sample {} of {:?} is in none of {:?}", sample, stretch, segments
                );
            }
        }
    }

    /// No samples and no options make it panic or break what holds of segments.
    #[test]
    fn anything_can_be_cut(
        bits in vec(any::<u32>(), 0..4_000), repeats in 1..8usize, min_pause in any::<f64>(), max_seconds in any::<f64>(),
    ) {
        let samples: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
        let samples = samples.repeat(repeats);
        let segments = cut(&samples, options(min_pause, max_seconds));
        check(&segments, samples.len(), max_seconds);
    }
}
