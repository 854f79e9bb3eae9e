//! Cuts of Lhotse (lhotse.readthedocs.io): a JSON line for each, each of its supervisions an utterance.

use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{Found, Problems, numbered_lines};

#[derive(Deserialize)]
struct Cut {
    id: String,
    start: f64,
    duration: f64,
    #[serde(default)]
    supervisions: Vec<Supervision>,
    recording: Option<Recording>,
    /// `MonoCut`, `MultiCut`, `MixedCut`, `PaddingCut`.
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// Its times begin with the cut.
#[derive(Deserialize)]
struct Supervision {
    id: String,
    start: f64,
    duration: f64,
    text: Option<String>,
    language: Option<String>,
}

#[derive(Deserialize)]
struct Recording {
    sources: Vec<Source>,
    /// In seconds.
    duration: f64,
    /// What Lhotse does to the audio when it reads it: `Speed`, `Volume`, ...
    transforms: Option<Vec<IgnoredAny>>,
}

#[derive(Deserialize)]
struct Source {
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "source")]
    path: String,
    #[serde(default)]
    channels: Vec<u32>,
}

/// Times are compared with this precision, in seconds.
const SAME: f64 = 1e-3;

/// A file of cuts, packed or not.
pub(super) fn find(file: &Path, problems: &mut Problems) -> Vec<Found> {
    let text = match read(file) {
        Ok(text) => text,
        Err(error) => {
            problems.add(file, None, format!("cannot be read: {error}"));
            return Vec::new();
        }
    };
    let folder = file.parent().unwrap_or(file);
    let mut found = Vec::new();
    for (number, line) in numbered_lines(&text) {
        match utterances(line, folder) {
            Ok(utterances) => found.extend(utterances.into_iter().map(|one| Found {
                listed: (file.to_owned(), number),
                ..one
            })),
            Err(message) => problems.add(file, Some(number), message),
        }
    }
    found
}

fn read(file: &Path) -> std::io::Result<String> {
    let bytes = std::fs::read(file)?;
    let mut text = String::new();
    // What gzip writes begins so.
    if bytes.starts_with(&[0x1f, 0x8b]) {
        MultiGzDecoder::new(bytes.as_slice()).read_to_string(&mut text)?;
    } else {
        bytes.as_slice().read_to_string(&mut text)?;
    }
    Ok(text)
}

fn utterances(line: &str, folder: &Path) -> Result<Vec<Found>, String> {
    let cut: Cut = serde_json::from_str(line).map_err(|error| format!("not a cut of Lhotse: {error}"))?;
    let kind = cut.kind.as_deref().unwrap_or("MonoCut");
    let recording = match (kind, &cut.recording) {
        ("MonoCut", Some(recording)) => recording,
        ("MonoCut", None) => return Err(format!("cut `{}` has no recording", cut.id)),
        _ => {
            return Err(format!(
                "cut `{}` is a {kind}: only a MonoCut can be imported",
                cut.id
            ));
        }
    };
    if recording
        .transforms
        .as_ref()
        .is_some_and(|transforms| !transforms.is_empty())
    {
        return Err(format!(
            "the recording of cut `{}` has transforms, which are not applied: write its audio into files (`save_audios`), and import \
             those",
            cut.id
        ));
    }
    let audio = match recording.sources.as_slice() {
        [source] if source.channels.len() > 1 => {
            return Err(format!(
                "cut `{}` is one channel of a file with {}: write each channel into a file of its own",
                cut.id,
                source.channels.len()
            ));
        }
        [source] if source.kind == "file" => folder.join(&source.path),
        [source] => {
            return Err(format!(
                "the audio of cut `{}` comes from `{}`: only files can be imported",
                cut.id, source.kind
            ));
        }
        sources => {
            return Err(format!(
                "cut `{}` has {} sources, expected one",
                cut.id,
                sources.len()
            ));
        }
    };
    Ok(cut
        .supervisions
        .iter()
        .map(|supervision| found(&cut, supervision, &audio, recording.duration))
        .collect())
}

fn found(cut: &Cut, supervision: &Supervision, audio: &Path, recording_seconds: f64) -> Found {
    // One that covers its cut is named by it, as ids of supervisions often are the same in copies of a cut.
    let whole_cut = supervision.start.abs() < SAME && (supervision.duration - cut.duration).abs() < SAME;
    // What the cut has cut off is taken, too: the text is of all of it.
    let start = (cut.start + supervision.start).max(0.0);
    let (id, duration) = if whole_cut {
        (&cut.id, cut.duration)
    } else {
        (&supervision.id, supervision.duration)
    };
    let whole_file = start < SAME && (duration - recording_seconds).abs() < SAME;
    Found {
        id: id.clone(),
        audio: audio.to_owned(),
        offset: (!whole_file).then_some(start),
        duration: Some(duration),
        text: supervision.text.clone().unwrap_or_default(),
        lang: supervision.language.clone(),
        listed: (PathBuf::new(), 0),
    }
}
