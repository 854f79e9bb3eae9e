//! Published corpora, and those of other toolkits, as manifests.
//!
//! Each layout has a module that lists what it holds; here is what is common: lists of ids, lengths, and an account of everything that
//! was left out. Audio stays where it is: a manifest points to it.

mod audiofolder;
mod common_voice;
mod kaldi;
mod lhotse;
mod msr_86k;
mod transcripts;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Serialize;
use thiserror::Error;

use crate::audio::seconds;
use crate::ids::{IdList, IdListError, RepeatedId};
use crate::manifest::{ManifestErrors, ManifestProblem};

/// How a corpus is laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Mozilla Common Voice: `<split>.tsv` and `clips/`; lengths from `clip_durations.tsv` if it is there.
    CommonVoice,
    /// Multilingual LibriSpeech: `<split>/transcripts.txt` and `<split>/audio/<speaker>/<book>/`.
    Mls,
    /// LibriSpeech: `<split>/<speaker>/<chapter>/*.trans.txt` with the audio beside them.
    LibriSpeech,
    /// MSR-86K: a JSON of recordings with their segments, and the recordings anywhere below its folder.
    Msr86k,
    /// A Kaldi data directory: `wav.scp`, `text`, and if they are there `segments`, `utt2lang`, `utt2dur`.
    Kaldi,
    /// Cuts of Lhotse: a `.jsonl` or `.jsonl.gz` file.
    Lhotse,
    /// `audiofolder` of Hugging Face datasets: `metadata.jsonl`, or `metadata.csv`, with the key `file_name`.
    AudioFolder,
}

/// What is imported.
#[derive(Debug, Clone)]
pub struct Request {
    /// The corpus's folder; for [`Layout::Lhotse`] the file of cuts, for [`Layout::Msr86k`] the JSON.
    pub root: PathBuf,
    /// Its layout.
    pub layout: Layout,
    /// The part of it: `train`, `dev`, `train-clean-100`. Layouts without parts ignore it.
    pub split: String,
    /// The language of everything, where the corpus does not say it of each utterance.
    pub lang: Option<String>,
    /// Lists of ids; empty: everything.
    pub ids: Vec<PathBuf>,
    /// What is put before every id, so that ids of several corpora stay apart.
    pub prefix: String,
    /// Turn texts into small letters: LibriSpeech has capitals only.
    pub lowercase: bool,
}

/// A line of a manifest.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// Name, unique in the corpus.
    pub id: String,
    /// The audio file, absolute.
    pub audio_filepath: PathBuf,
    /// Start in the file in seconds, if it is not the whole file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<f64>,
    /// Length in seconds.
    pub duration: f64,
    /// Transcript.
    pub text: String,
    /// Language code.
    pub lang: String,
}

/// What came of an import.
#[derive(Debug, Default, Serialize)]
pub struct Imported {
    /// The manifest, in the order of the corpus, or with lists of ids in theirs.
    #[serde(skip)]
    pub lines: Vec<Line>,
    /// Utterances and hours of each language.
    pub languages: BTreeMap<String, Amount>,
    /// Ids that a list has more than once, by list; they were taken once.
    pub repeated: BTreeMap<PathBuf, Vec<RepeatedId>>,
    /// Ids that a list has and the corpus has not, by list.
    pub missing: BTreeMap<PathBuf, Vec<String>>,
    /// Ids without a transcript; left out.
    pub empty_texts: Vec<String>,
    /// Ids whose audio cannot be read, and why; left out.
    pub bad_audio: BTreeMap<String, String>,
}

/// Speech of one language.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Amount {
    /// How many utterances.
    pub utterances: usize,
    /// How long they are together.
    pub hours: f64,
}

/// Why nothing was imported.
#[derive(Debug, Error)]
pub enum ImportError {
    /// Files are not as the layout has them.
    #[error(transparent)]
    Layout(#[from] ManifestErrors),
    /// A list of ids cannot be used.
    #[error(transparent)]
    Ids(#[from] IdListError),
    /// Nothing says what language an utterance is in.
    #[error("nothing says which language utterance `{id}` is in: give `--language`")]
    NoLanguage {
        /// The utterance.
        id: String,
    },
}

/// An utterance as a layout has it.
#[derive(Debug, Clone)]
struct Found {
    id: String,
    audio: PathBuf,
    offset: Option<f64>,
    /// In seconds, if the corpus says so.
    duration: Option<f64>,
    text: String,
    lang: Option<String>,
    /// Where it is listed, for messages: a file and a line, or in a file without lines the how manieth utterance.
    listed: (PathBuf, usize),
}

/// What is wrong with a file of a corpus.
struct Problems(Vec<ManifestProblem>);

impl Problems {
    fn add(&mut self, file: &Path, line: Option<usize>, message: impl Into<String>) {
        self.0.push(ManifestProblem {
            file: file.to_owned(),
            line,
            message: message.into(),
        });
    }

    /// The text of a file; nothing, and a problem, if it cannot be read.
    fn read(&mut self, file: &Path) -> Option<String> {
        match std::fs::read_to_string(file) {
            Ok(text) => Some(text),
            Err(error) => {
                self.add(file, None, format!("cannot be read: {error}"));
                None
            }
        }
    }
}

/// Lists what a corpus has, takes what is asked for, and measures what has no length. Reads audio only for that.
///
/// # Errors
/// [`ImportError`] if the corpus is not laid out so, a list of ids cannot be used, or a language is not known.
pub fn import(request: &Request) -> Result<Imported, ImportError> {
    let found = find(request)?;
    let mut imported = Imported::default();
    let mut chosen = choose(request, found, &mut imported)?;
    chosen.retain(|found| {
        let has_text = !found.text.trim().is_empty();
        if !has_text {
            imported
                .empty_texts
                .push(format!("{}{}", request.prefix, found.id));
        }
        has_text
    });
    // Before anything is measured: that may take hours.
    let chosen = chosen
        .into_iter()
        .map(|found| {
            let lang = found.lang.clone().or_else(|| request.lang.clone());
            match lang {
                Some(lang) => Ok((found, lang)),
                None => Err(ImportError::NoLanguage { id: found.id }),
            }
        })
        .collect::<Result<Vec<_>, _>>()?;
    let measured: Vec<_> = chosen
        .into_par_iter()
        .map(|(found, lang)| {
            let duration = match found.duration {
                // What is listed has to be there, too.
                Some(duration) if found.audio.is_file() => Ok(duration),
                _ => seconds(&found.audio).map(|whole| whole - found.offset.unwrap_or(0.0)),
            };
            (found, lang, duration)
        })
        .collect();
    for (found, lang, duration) in measured {
        let id = format!("{}{}", request.prefix, found.id);
        match duration {
            Ok(duration) => {
                let amount = imported.languages.entry(lang.clone()).or_default();
                amount.utterances += 1;
                amount.hours += duration / 3600.0;
                imported.lines.push(Line {
                    id,
                    audio_filepath: found.audio,
                    offset: found.offset,
                    duration,
                    text: text(&found.text, request.lowercase),
                    lang,
                });
            }
            Err(error) => {
                imported.bad_audio.insert(id, error.to_string());
            }
        }
    }
    Ok(imported)
}

fn text(text: &str, lowercase: bool) -> String {
    let text = text.trim();
    if lowercase {
        text.to_lowercase()
    } else {
        text.to_owned()
    }
}

/// Everything that the corpus lists.
fn find(request: &Request) -> Result<Vec<Found>, ManifestErrors> {
    let mut problems = Problems(Vec::new());
    let root = std::path::absolute(&request.root).unwrap_or_else(|_| request.root.clone());
    let found = match request.layout {
        Layout::CommonVoice => common_voice::find(&root, &request.split, &mut problems),
        Layout::Mls => transcripts::mls(&root.join(&request.split), &mut problems),
        Layout::LibriSpeech => transcripts::librispeech(&root.join(&request.split), &mut problems),
        Layout::Msr86k => msr_86k::find(&root, &mut problems),
        Layout::Kaldi => kaldi::find(&root, &mut problems),
        Layout::Lhotse => lhotse::find(&root, &mut problems),
        Layout::AudioFolder => audiofolder::find(&root, &mut problems),
    };
    let mut first: HashMap<&str, usize> = HashMap::new();
    for (index, one) in found.iter().enumerate() {
        if let Some(&before) = first.get(one.id.as_str()) {
            let (file, line) = &found[before].listed;
            let message = format!("id `{}` is there already, in {}:{line}", one.id, file.display());
            problems.add(&one.listed.0, Some(one.listed.1), message);
        } else {
            first.insert(&one.id, index);
        }
    }
    if problems.0.is_empty() {
        Ok(found)
    } else {
        Err(ManifestErrors { problems: problems.0 })
    }
}

/// What the lists of ids name, or everything.
fn choose(request: &Request, found: Vec<Found>, imported: &mut Imported) -> Result<Vec<Found>, IdListError> {
    if request.ids.is_empty() {
        return Ok(found);
    }
    let mut by_id: HashMap<String, Option<Found>> = found
        .into_iter()
        .map(|found| (found.id.clone(), Some(found)))
        .collect();
    let mut chosen = Vec::new();
    for file in &request.ids {
        let list = IdList::read(file)?;
        let mut missing = Vec::new();
        for id in list.ids {
            let name = if by_id.contains_key(&id) {
                id.as_str()
            } else {
                stem(&id)
            };
            match by_id.get_mut(name) {
                // One that has been named, perhaps by another list, is taken once.
                Some(found) => chosen.extend(found.take()),
                None => missing.push(id),
            }
        }
        if !list.repeated.is_empty() {
            imported.repeated.insert(file.clone(), list.repeated);
        }
        if !missing.is_empty() {
            imported.missing.insert(file.clone(), missing);
        }
    }
    Ok(chosen)
}

/// The lines of a text that are not blank, with their numbers from 1.
fn numbered_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..)
        .zip(text.lines())
        .filter(|(_, line)| !line.trim().is_empty())
}

/// A file's name without what says that it is audio.
fn stem(name: &str) -> &str {
    let name = name.rsplit('/').next().unwrap_or(name);
    ["wav", "flac", "mp3", "ogg", "opus"]
        .iter()
        .find_map(|kind| name.strip_suffix(kind)?.strip_suffix('.'))
        .unwrap_or(name)
}
