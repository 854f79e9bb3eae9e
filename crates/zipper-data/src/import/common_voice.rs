//! Mozilla Common Voice, releases from 2020 on: tab-separated tables with a header, without quoting.

use std::collections::HashMap;
use std::path::Path;

use super::{Found, Problems, stem};

/// A language's folder with `<split>.tsv`, `clips/` and, from release 17 on, `clip_durations.tsv` in milliseconds.
pub(super) fn find(root: &Path, split: &str, problems: &mut Problems) -> Vec<Found> {
    let durations = durations(root, problems);
    let table = root.join(format!("{split}.tsv"));
    let mut found = Vec::new();
    for (line, columns) in rows(&table, ["path", "sentence", "locale"], problems) {
        let [path, sentence, locale] = columns;
        let id = stem(&path).to_owned();
        found.push(Found {
            audio: root.join("clips").join(&path),
            offset: None,
            duration: durations.get(&id).copied(),
            text: sentence,
            // `zh-CN` is written as `zh`.
            lang: locale
                .split('-')
                .next()
                .map(str::to_owned)
                .filter(|lang| !lang.is_empty()),
            listed: (table.clone(), line),
            id,
        });
    }
    found
}

fn durations(root: &Path, problems: &mut Problems) -> HashMap<String, f64> {
    let table = root.join("clip_durations.tsv");
    if !table.exists() {
        return HashMap::new();
    }
    let mut durations = HashMap::new();
    for (line, [clip, milliseconds]) in rows(&table, ["clip", "duration[ms]"], problems) {
        match milliseconds.parse::<f64>() {
            Ok(milliseconds) if milliseconds.is_finite() && milliseconds >= 0.0 => {
                durations.insert(stem(&clip).to_owned(), milliseconds / 1000.0);
            }
            _ => problems.add(
                &table,
                Some(line),
                format!("`{milliseconds}` is not a length in milliseconds"),
            ),
        }
    }
    durations
}

/// The rows of a table with their lines: the columns of these names.
fn rows<const N: usize>(
    table: &Path,
    names: [&str; N],
    problems: &mut Problems,
) -> Vec<(usize, [String; N])> {
    let Some(text) = problems.read(table) else {
        return Vec::new();
    };
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(b'\t')
        .quoting(false)
        .flexible(true)
        .from_reader(text.as_bytes());
    let header = reader.headers().cloned().unwrap_or_default();
    let place = |name: &str| header.iter().position(|column| column == name);
    let mut places = [0; N];
    for (index, name) in names.iter().enumerate() {
        let Some(found) = place(name) else {
            problems.add(
                table,
                Some(1),
                format!("no column `{name}`: is it Common Voice's?"),
            );
            return Vec::new();
        };
        places[index] = found;
    }
    let mut rows = Vec::new();
    for record in reader.records() {
        match record {
            Ok(record) => {
                let line = record.position().map_or(0, |position| position.line() as usize);
                if record.len() < header.len() {
                    let message = format!("{} columns, where the header has {}", record.len(), header.len());
                    problems.add(table, Some(line), message);
                    continue;
                }
                rows.push((line, places.map(|place| record[place].to_owned())));
            }
            Err(error) => problems.add(table, None, error.to_string()),
        }
    }
    rows
}
