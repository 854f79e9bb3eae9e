//! Manifests: JSON lines that name the utterances of a corpus.
//!
//! One object a line with `id`, `audio_filepath`, `duration`, `text`, `lang` and optionally `offset`; other keys are
//! ignored, as the manifests of the field carry more. Reading a corpus touches no audio: [`crate::check_audio`] does.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use thiserror::Error;
use url::Url;
use zipper_config::nearest;
use zipper_config::schema::DataConfig;

use crate::audio::{AudioError, decode};
use crate::report::CorpusReport;

/// One line of a manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct Utterance {
    /// Name, unique in the corpus.
    pub id: String,
    /// The audio file, absolute.
    pub audio_filepath: PathBuf,
    /// Start of the utterance in the file, in seconds. `None`: the utterance is the whole file.
    pub offset: Option<f64>,
    /// Length in seconds.
    pub duration: f64,
    /// Transcript, trimmed, not empty.
    pub text: String,
    /// Ordinal of `lang` in the configured languages.
    pub language: usize,
    /// Language code.
    pub lang: String,
}

impl Utterance {
    /// The utterance's 16 kHz mono samples, never much more than `duration` says: the batches are planned by it.
    ///
    /// # Errors
    /// As [`decode`].
    pub fn decode(&self) -> Result<Vec<f32>, AudioError> {
        decode(
            &self.audio_filepath,
            self.offset.unwrap_or(0.0),
            Some(self.duration),
        )
    }
}

/// Which lengths are kept, both ends included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DurationLimits {
    /// Shortest utterance, in seconds.
    pub min_seconds: f64,
    /// Longest utterance, in seconds.
    pub max_seconds: f64,
}

/// `data.min_seconds` and `data.max_seconds`.
impl From<&DataConfig> for DurationLimits {
    fn from(data: &DataConfig) -> Self {
        Self {
            min_seconds: data.min_seconds,
            max_seconds: data.max_seconds,
        }
    }
}

/// The usable utterances of some manifests.
#[derive(Debug, Clone, PartialEq)]
pub struct Corpus {
    /// In the order of the manifests.
    pub utterances: Vec<Utterance>,
    /// What was kept and what was left out.
    pub report: CorpusReport,
}

/// Everything that is wrong with the manifests.
#[derive(Debug, Error, PartialEq, Eq)]
pub struct ManifestErrors {
    /// In the order of files and lines, never empty.
    pub problems: Vec<ManifestProblem>,
}

/// How many problems an error message lists.
const LISTED: usize = 20;

impl fmt::Display for ManifestErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        write!(
            f,
            "{count} problem{} in the manifests",
            if count == 1 { "" } else { "s" }
        )?;
        for problem in self.problems.iter().take(LISTED) {
            write!(f, "\n  {problem}")?;
        }
        if count > LISTED {
            write!(f, "\n  and {} more", count - LISTED)?;
        }
        Ok(())
    }
}

/// One thing that is wrong with a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestProblem {
    /// The manifest.
    pub file: PathBuf,
    /// Line number from 1; `None` if the file as a whole cannot be read.
    pub line: Option<usize>,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for ManifestProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        write!(f, " {}", self.message)
    }
}

/// Reads manifests into one corpus.
///
/// Utterances with an id that occurred before, without text, or outside `limits` are left out and reported.
///
/// # Errors
/// [`ManifestErrors`] with every bad line of every file.
pub fn load_corpus(
    paths: &[PathBuf],
    languages: &[String],
    limits: DurationLimits,
) -> Result<Corpus, ManifestErrors> {
    let mut problems = Vec::new();
    let mut parsed = Vec::new();
    let mut warnings = Vec::new();
    for path in paths {
        match read_manifest(path, languages, &mut problems) {
            Ok(utterances) if utterances.is_empty() => {
                warnings.push(format!("`{}` has no utterances", path.display()));
            }
            Ok(utterances) => parsed.extend(utterances),
            Err(error) => {
                let message = format!("cannot read the manifest: {error}");
                problems.push(ManifestProblem {
                    file: path.clone(),
                    line: None,
                    message,
                });
            }
        }
    }
    if problems.is_empty() {
        Ok(select(parsed, languages, limits, warnings))
    } else {
        Err(ManifestErrors { problems })
    }
}

/// Leaves out what cannot be trained on, and counts everything.
fn select(
    parsed: Vec<Utterance>,
    languages: &[String],
    limits: DurationLimits,
    warnings: Vec<String>,
) -> Corpus {
    let mut report = CorpusReport::new(languages, warnings);
    let mut seen = HashSet::new();
    let mut utterances = Vec::with_capacity(parsed.len());
    for utterance in parsed {
        let id = utterance.id.clone();
        if !seen.insert(id.clone()) {
            report.duplicate_ids.push(id);
        } else if utterance.text.is_empty() {
            report.empty_texts.push(id);
        } else if utterance.duration > limits.max_seconds {
            report.too_long.push(id);
        } else if utterance.duration < limits.min_seconds {
            report.too_short.push(id);
        } else {
            utterances.push(utterance);
        }
    }
    report.count(&utterances);
    for language in report
        .languages
        .iter()
        .filter(|language| language.utterances == 0)
    {
        report
            .warnings
            .push(format!("language `{}` has no utterances", language.lang));
    }
    Corpus { utterances, report }
}

/// The utterances of one file; bad lines go to `problems`.
fn read_manifest(
    path: &Path,
    languages: &[String],
    problems: &mut Vec<ManifestProblem>,
) -> std::io::Result<Vec<Utterance>> {
    let text = std::fs::read_to_string(path)?;
    let absolute = std::path::absolute(path)?;
    let folder = absolute.parent().unwrap_or(&absolute);
    let mut utterances = Vec::new();
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        match parse_line(line, folder, languages) {
            Ok(utterance) => utterances.push(utterance),
            Err(messages) => problems.extend(messages.into_iter().map(|message| ManifestProblem {
                file: path.to_owned(),
                line: Some(index + 1),
                message,
            })),
        }
    }
    Ok(utterances)
}

/// Parses one line, or says everything that is wrong with it.
fn parse_line(line: &str, folder: &Path, languages: &[String]) -> Result<Utterance, Vec<String>> {
    let object = serde_json::from_str(line).map_err(|error| {
        // The error's own "line 1" would be taken for a line of the manifest.
        let text = error.to_string();
        let what = text.split(" at line ").next().unwrap_or(&text);
        vec![format!("not a JSON object: {what} (column {})", error.column())]
    })?;
    let mut line = Line {
        object,
        problems: Vec::new(),
    };
    let id = line.string("id");
    if id.as_ref().is_some_and(String::is_empty) {
        line.problems.push("`id` is empty".to_owned());
    }
    let audio_filepath = line
        .string("audio_filepath")
        .and_then(|path| line.accept(local_path(&path, folder)));
    let duration = line.seconds("duration");
    let offset = if matches!(line.object.get("offset"), None | Some(Value::Null)) {
        None
    } else {
        line.seconds("offset")
    };
    let text = line.string("text");
    let language = line
        .string("lang")
        .and_then(|lang| line.accept(language_ordinal(&lang, languages)));
    match (id, audio_filepath, duration, text, language) {
        (Some(id), Some(audio_filepath), Some(duration), Some(text), Some(language))
            if line.problems.is_empty() =>
        {
            let (text, lang) = (text.trim().to_owned(), languages[language].clone());
            Ok(Utterance {
                id,
                audio_filepath,
                offset,
                duration,
                text,
                language,
                lang,
            })
        }
        _ => Err(line.problems),
    }
}

/// The keys of a manifest line.
const KEYS: [&str; 6] = ["id", "audio_filepath", "offset", "duration", "text", "lang"];

/// A line on its way to an [`Utterance`]: each getter returns `None` after noting a problem.
struct Line {
    object: Map<String, Value>,
    problems: Vec<String>,
}

impl Line {
    fn accept<T>(&mut self, value: Result<T, String>) -> Option<T> {
        value.map_err(|problem| self.problems.push(problem)).ok()
    }

    fn value(&mut self, key: &str) -> Option<Value> {
        let value = self.object.get(key).cloned().ok_or_else(|| {
            let others = self
                .object
                .keys()
                .map(String::as_str)
                .filter(|other| !KEYS.contains(other));
            format!("missing key `{key}`{}", did_you_mean("found ", key, others))
        });
        self.accept(value)
    }

    fn string(&mut self, key: &str) -> Option<String> {
        match self.value(key)? {
            Value::String(string) => Some(string),
            other => self.accept(Err(format!("`{key}` must be a string, but is {}", kind(&other)))),
        }
    }

    fn seconds(&mut self, key: &str) -> Option<f64> {
        let value = self.value(key)?;
        let seconds = match value.as_f64() {
            Some(seconds) if seconds.is_finite() && seconds >= 0.0 => Ok(seconds),
            Some(seconds) => Err(format!("`{key}` must not be negative, but is {seconds}")),
            None => Err(format!(
                "`{key}` must be a number of seconds, but is {}",
                kind(&value)
            )),
        };
        self.accept(seconds)
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The file that `audio_filepath` names; relative paths start at the manifest's folder.
fn local_path(path: &str, folder: &Path) -> Result<PathBuf, String> {
    if path.is_empty() {
        return Err("`audio_filepath` is empty".to_owned());
    }
    if !path.contains("://") {
        return Ok(folder.join(path));
    }
    let url =
        Url::parse(path).map_err(|error| format!("`audio_filepath` is not a URL: `{path}`: {error}"))?;
    if url.scheme() != "file" {
        let scheme = url.scheme();
        return Err(format!(
            "`audio_filepath`: {scheme}:// is not supported yet, use a local path: `{path}`"
        ));
    }
    url.to_file_path()
        .map_err(|()| format!("`audio_filepath` is not a local file: `{path}`"))
}

fn language_ordinal(lang: &str, languages: &[String]) -> Result<usize, String> {
    languages
        .iter()
        .position(|language| language == lang)
        .ok_or_else(|| {
            let hint = did_you_mean("did you mean ", lang, languages.iter().map(String::as_str));
            format!(
                "unknown language `{lang}`{hint}; the run's languages are {}",
                languages.join(", ")
            )
        })
}

/// ` (<lead>`closest`)` if one of the candidates resembles the word.
fn did_you_mean<'a>(lead: &str, word: &str, candidates: impl Iterator<Item = &'a str>) -> String {
    nearest(word, candidates).map_or_else(String::new, |known| format!(" ({lead}`{known}`)"))
}
