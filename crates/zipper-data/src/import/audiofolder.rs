//! `audiofolder` of Hugging Face datasets (huggingface.co/docs/datasets/audio_dataset): `metadata.jsonl` or `metadata.csv` beside the
//! audio, with `file_name` and keys of the author's choice.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Found, Problems, numbered_lines, stem};

/// Keys under which people keep transcripts.
const TEXTS: [&str; 4] = ["text", "transcription", "transcript", "sentence"];
/// Keys under which people keep languages.
const LANGUAGES: [&str; 3] = ["lang", "language", "locale"];

/// A folder with its metadata.
pub(super) fn find(root: &Path, problems: &mut Problems) -> Vec<Found> {
    let lines = root.join("metadata.jsonl");
    let table = root.join("metadata.csv");
    let (file, rows) = if lines.exists() || !table.exists() {
        let rows = json_rows(&lines, problems);
        (lines, rows)
    } else {
        let rows = csv_rows(&table, problems);
        (table, rows)
    };
    let mut found = Vec::new();
    for (line, row) in rows {
        let word = |keys: &[&str]| {
            let values = keys.iter().filter_map(|key| row.get(*key)?.as_str());
            values.map(str::to_owned).next()
        };
        let (Some(name), Some(text)) = (word(&["file_name"]), word(&TEXTS)) else {
            let message = format!("needs `file_name`, and one of {} as words", TEXTS.join(", "));
            problems.add(&file, Some(line), message);
            continue;
        };
        found.push(Found {
            id: word(&["id"]).unwrap_or_else(|| stem(&name).to_owned()),
            audio: root.join(&name),
            offset: None,
            duration: None,
            text,
            lang: word(&LANGUAGES),
            listed: (file.clone(), line),
        });
    }
    found
}

fn json_rows(file: &Path, problems: &mut Problems) -> Vec<(usize, Map<String, Value>)> {
    let Some(text) = problems.read(file) else {
        return Vec::new();
    };
    let mut rows = Vec::new();
    for (number, line) in numbered_lines(&text) {
        match serde_json::from_str(line) {
            Ok(row) => rows.push((number, row)),
            Err(error) => problems.add(file, Some(number), format!("not a JSON object: {error}")),
        }
    }
    rows
}

fn csv_rows(file: &Path, problems: &mut Problems) -> Vec<(usize, Map<String, Value>)> {
    let Some(text) = problems.read(file) else {
        return Vec::new();
    };
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers().cloned().unwrap_or_default();
    let mut rows = Vec::new();
    for record in reader.records() {
        match record {
            Ok(record) => {
                let line = record.position().map_or(0, |position| position.line() as usize);
                let pairs = header.iter().zip(&record);
                rows.push((
                    line,
                    pairs
                        .map(|(key, value)| (key.to_owned(), Value::from(value)))
                        .collect(),
                ));
            }
            Err(error) => problems.add(file, None, error.to_string()),
        }
    }
    rows
}
