//! Looks at all audio of a corpus before a run relies on it.

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use serde::Serialize;

use crate::audio::{SAMPLE_RATE, decode_mono};
use crate::features::HOP_LENGTH;
use crate::manifest::Utterance;

/// How far a manifest's duration may be from the length of a whole file, in seconds.
const DURATION_TOLERANCE: f64 = 0.5;
/// How far a cut may reach beyond the end of its file, in seconds: manifests round.
const CUT_TOLERANCE: f64 = 0.05;
/// One frame of features, in seconds: the encoder reads at least that.
const SHORTEST: f64 = HOP_LENGTH as f64 / SAMPLE_RATE as f64;

/// An utterance that cannot be trained on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BadAudio {
    /// The utterance.
    pub id: String,
    /// Its audio file.
    pub path: PathBuf,
    /// What is wrong, with the path.
    pub reason: String,
}

impl fmt::Display for BadAudio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "utterance `{}`: {}", self.id, self.reason)
    }
}

/// Decodes the audio of every utterance with `threads` threads, and returns the bad ones in the order of `utterances`.
///
/// Bad is also a whole file whose length is not the manifest's `duration`, a cut that ends after its file, and what is too short for a
/// frame of features.
/// `on_progress` gets the number of utterances done, from any of the threads.
pub fn check_audio(
    utterances: &[Utterance],
    threads: usize,
    on_progress: impl Fn(usize) + Sync,
) -> Vec<BadAudio> {
    let done = AtomicUsize::new(0);
    let check = |utterance: &Utterance| {
        let bad = reason(utterance).map(|reason| BadAudio {
            id: utterance.id.clone(),
            path: utterance.audio_filepath.clone(),
            reason,
        });
        on_progress(done.fetch_add(1, Ordering::Relaxed) + 1);
        bad
    };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .expect("the system can start threads");
    pool.install(|| utterances.par_iter().filter_map(check).collect())
}

/// What is wrong with the audio of an utterance, if anything.
fn reason(utterance: &Utterance) -> Option<String> {
    let Utterance {
        audio_filepath,
        offset,
        duration,
        ..
    } = utterance;
    let cut = offset.map(|_| *duration);
    let seconds = match decode_mono(audio_filepath, offset.unwrap_or(0.0), cut) {
        Ok(audio) => audio.seconds(),
        Err(error) => return Some(error.to_string()),
    };
    let path = audio_filepath.display();
    match offset {
        None if (seconds - duration).abs() > DURATION_TOLERANCE => Some(format!(
            "`{path}`: the manifest states {duration:.2} s, but the file has {seconds:.2} s; for a part of a file give `offset` too"
        )),
        Some(offset) if seconds < duration - CUT_TOLERANCE => Some(format!(
            "`{path}`: the cut ends at {:.2} s, but the audio ends at {:.2} s",
            offset + duration,
            offset + seconds
        )),
        _ if seconds < SHORTEST => Some(format!(
            "`{path}`: {:.1} ms of audio are less than a frame of features, which takes 10 ms",
            seconds * 1000.0
        )),
        _ => None,
    }
}
