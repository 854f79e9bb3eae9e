//! LibriSpeech (openslr.org/12) and Multilingual LibriSpeech (openslr.org/94): an id and its text on each line.

use std::path::{Path, PathBuf};

use super::{Found, Problems, numbered_lines};

/// Kinds of audio files that these corpora are published with.
const KINDS: [&str; 4] = ["flac", "opus", "wav", "mp3"];

/// A part of MLS: `transcripts.txt`, and `audio/<speaker>/<book>/<speaker>_<book>_<number>.flac`, or `.opus`.
pub(super) fn mls(part: &Path, problems: &mut Problems) -> Vec<Found> {
    let file = part.join("transcripts.txt");
    let place = |id: &str| {
        let mut words = id.split('_');
        let (speaker, book) = (words.next()?, words.next()?);
        Some(part.join("audio").join(speaker).join(book))
    };
    listed(&file, '\t', place, problems)
}

/// A part of LibriSpeech: `<speaker>/<chapter>/<speaker>-<chapter>.trans.txt` and the audio beside it.
pub(super) fn librispeech(part: &Path, problems: &mut Problems) -> Vec<Found> {
    let mut found = Vec::new();
    for speaker in folder(part, problems) {
        for chapter in folder(&speaker, problems) {
            let files = folder(&chapter, problems);
            let transcripts = files
                .iter()
                .filter(|file| file.to_string_lossy().ends_with(".trans.txt"));
            for file in transcripts {
                found.extend(listed(file, ' ', |_| Some(chapter.clone()), problems));
            }
        }
    }
    if found.is_empty() {
        problems.add(part, None, "no `<speaker>/<chapter>/*.trans.txt` below it");
    }
    found
}

/// What is in a folder, by name; nothing in what is none.
fn folder(path: &Path, problems: &mut Problems) -> Vec<PathBuf> {
    if path.is_file() {
        return Vec::new();
    }
    match std::fs::read_dir(path) {
        Ok(entries) => {
            let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            paths.sort();
            paths
        }
        Err(error) => {
            problems.add(path, None, format!("cannot be read: {error}"));
            Vec::new()
        }
    }
}

/// The lines of a file of transcripts; `place` is the folder of an id's audio.
fn listed(
    file: &Path,
    separator: char,
    place: impl Fn(&str) -> Option<PathBuf>,
    problems: &mut Problems,
) -> Vec<Found> {
    let Some(text) = problems.read(file) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (number, line) in numbered_lines(&text) {
        let (id, text) = line.split_once(separator).unwrap_or((line, ""));
        let Some(folder) = place(id) else {
            problems.add(file, Some(number), format!("`{id}` is not an id of this corpus"));
            continue;
        };
        let audio = |kind: &str| folder.join(format!("{id}.{kind}"));
        let there = KINDS.iter().map(|kind| audio(kind)).find(|path| path.is_file());
        found.push(Found {
            id: id.to_owned(),
            audio: there.unwrap_or_else(|| audio(KINDS[0])),
            offset: None,
            duration: None,
            text: text.to_owned(),
            lang: None,
            listed: (file.to_owned(), number),
        });
    }
    found
}
