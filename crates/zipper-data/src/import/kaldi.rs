//! Kaldi data directories (kaldi-asr.org/doc/data_prep.html).

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::{Found, Problems, numbered_lines};

/// `wav.scp` and `text`, and `segments`, `utt2lang`, `utt2dur` if they are there.
pub(super) fn find(root: &Path, problems: &mut Problems) -> Vec<Found> {
    let recordings = recordings(root, problems);
    let segments = segments(root, problems);
    let languages = languages(root, problems);
    let durations = durations(root, problems);
    let file = root.join("text");
    let mut found = Vec::new();
    for (line, id, text) in table(&file, problems) {
        let whole = (id.clone(), None);
        let cut_out = |segments: &HashMap<String, (String, f64, f64)>| {
            let (recording, start, end) = segments.get(&id)?;
            Some((recording.clone(), Some((*start, *end))))
        };
        let Some((recording, cut)) = segments.as_ref().map_or(Some(whole), cut_out) else {
            problems.add(&file, Some(line), format!("`segments` has no utterance `{id}`"));
            continue;
        };
        let Some(audio) = recordings.get(&recording) else {
            problems.add(
                &file,
                Some(line),
                format!("`wav.scp` has no recording `{recording}`"),
            );
            continue;
        };
        let stated = durations.get(&id).copied();
        found.push(Found {
            audio: audio.clone(),
            offset: cut.map(|(start, _)| start),
            duration: cut.map(|(start, end)| end - start).or(stated),
            text,
            lang: languages.get(&id).cloned(),
            listed: (file.clone(), line),
            id,
        });
    }
    found
}

fn recordings(root: &Path, problems: &mut Problems) -> HashMap<String, PathBuf> {
    let file = root.join("wav.scp");
    let mut recordings = HashMap::new();
    for (line, id, path) in table(&file, problems) {
        if path.ends_with('|') {
            let message =
                "a command that makes audio is not run: write its output into files, and name those";
            problems.add(&file, Some(line), message);
        } else {
            recordings.insert(id, root.join(path));
        }
    }
    recordings
}

/// Recording, start and end in seconds of each utterance; nothing where recordings are utterances.
fn segments(root: &Path, problems: &mut Problems) -> Option<HashMap<String, (String, f64, f64)>> {
    let file = root.join("segments");
    if !file.exists() {
        return None;
    }
    let mut segments = HashMap::new();
    for (line, id, rest) in table(&file, problems) {
        let words: Vec<&str> = rest.split_whitespace().collect();
        let parsed = match words[..] {
            [recording, start, end] => start
                .parse::<f64>()
                .ok()
                .zip(end.parse::<f64>().ok())
                .map(|cut| (recording, cut)),
            _ => None,
        };
        match parsed {
            Some((recording, (start, end))) if start >= 0.0 && end > start && end.is_finite() => {
                segments.insert(id, (recording.to_owned(), start, end));
            }
            _ => problems.add(
                &file,
                Some(line),
                "expected `utterance recording start end`, in seconds",
            ),
        }
    }
    Some(segments)
}

fn languages(root: &Path, problems: &mut Problems) -> HashMap<String, String> {
    optional(root, "utt2lang", problems)
        .into_iter()
        .map(|(_, id, lang)| (id, lang))
        .collect()
}

fn durations(root: &Path, problems: &mut Problems) -> HashMap<String, f64> {
    let mut durations = HashMap::new();
    for (line, id, text) in optional(root, "utt2dur", problems) {
        match text.parse::<f64>() {
            Ok(seconds) if seconds.is_finite() && seconds > 0.0 => {
                durations.insert(id, seconds);
            }
            _ => problems.add(
                &root.join("utt2dur"),
                Some(line),
                format!("`{text}` is not a length in seconds"),
            ),
        }
    }
    durations
}

/// As [`table`], of a file that need not be there.
fn optional(root: &Path, name: &str, problems: &mut Problems) -> Vec<(usize, String, String)> {
    let file = root.join(name);
    if file.exists() {
        table(&file, problems)
    } else {
        Vec::new()
    }
}

/// Lines of an id and the rest, with their numbers.
fn table(file: &Path, problems: &mut Problems) -> Vec<(usize, String, String)> {
    let Some(text) = problems.read(file) else {
        return Vec::new();
    };
    let parts = numbered_lines(&text).map(|(number, line)| {
        let (id, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        (number, id.to_owned(), rest.trim().to_owned())
    });
    parts.collect()
}
