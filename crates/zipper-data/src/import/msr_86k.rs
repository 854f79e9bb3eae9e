//! MSR-86K (arXiv 2406.18301): for each language a JSON of recordings with their segments, in GigaSpeech's form, and the recordings,
//! named by their ids.
//!
//! The authors hand the corpus out on request, so that it could not be looked at. The form is that which a published recipe for icefall
//! reads.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use walkdir::WalkDir;

use super::{Found, Problems, stem};

#[derive(Deserialize)]
struct Corpus {
    audios: Vec<Recording>,
}

#[derive(Deserialize)]
struct Recording {
    aid: String,
    segments: Vec<Segment>,
}

#[derive(Deserialize)]
struct Segment {
    sid: String,
    begin_time: Seconds,
    end_time: Seconds,
    text_tn: Option<String>,
    text: Option<String>,
}

/// Written as a number, or as one in quotes.
#[derive(Deserialize)]
#[serde(untagged)]
enum Seconds {
    Number(f64),
    Text(String),
}

impl Seconds {
    fn value(&self) -> Option<f64> {
        let value = match self {
            Self::Number(value) => Some(*value),
            Self::Text(text) => text.trim().parse().ok(),
        };
        value.filter(|value| value.is_finite() && *value >= 0.0)
    }
}

/// The segments of a file, whose recordings are anywhere below its folder.
pub(super) fn find(file: &Path, problems: &mut Problems) -> Vec<Found> {
    let Some(text) = problems.read(file) else {
        return Vec::new();
    };
    let corpus: Corpus = match serde_json::from_str(&text) {
        Ok(corpus) => corpus,
        Err(error) => {
            problems.add(file, None, format!("not recordings of MSR-86K: {error}"));
            return Vec::new();
        }
    };
    let folder = file.parent().unwrap_or(file);
    let recordings = recordings(folder);
    let mut found = Vec::new();
    let segments = corpus.audios.into_iter().flat_map(|recording| {
        // One that is not there is bad audio.
        let audio = recordings.get(&recording.aid).cloned();
        let audio = audio.unwrap_or_else(|| folder.join(format!("{}.wav", recording.aid)));
        let segments = recording.segments.into_iter();
        segments.map(move |segment| (audio.clone(), segment))
    });
    for (index, (audio, segment)) in segments.enumerate() {
        let times = segment.begin_time.value().zip(segment.end_time.value());
        let Some((begin, end)) = times.filter(|(begin, end)| begin < end) else {
            let message = format!("segment `{}` does not begin before it ends", segment.sid);
            problems.add(file, None, message);
            continue;
        };
        found.push(Found {
            id: segment.sid,
            audio,
            offset: Some(begin),
            duration: Some(end - begin),
            text: segment.text_tn.or(segment.text).unwrap_or_default(),
            lang: None,
            listed: (file.to_owned(), index + 1),
        });
    }
    found
}

/// Audio files by their names without what says that they are audio.
fn recordings(folder: &Path) -> HashMap<String, PathBuf> {
    let files = WalkDir::new(folder)
        .follow_links(true)
        .sort_by_file_name()
        .into_iter();
    let named = files
        .flatten()
        .filter(|entry| entry.file_type().is_file())
        .filter_map(|entry| {
            let name = entry.file_name().to_str()?;
            let stem = stem(name);
            (stem != name).then(|| (stem.to_owned(), entry.path().to_owned()))
        });
    named.collect()
}
