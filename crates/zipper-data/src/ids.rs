//! Lists of utterance ids: which part of a published corpus an experiment uses.
//!
//! One id a line, as published beside papers (`train_mls_de_ids.txt`). Owns reading such a list; [`crate::import`] compares it with what
//! a corpus holds. Nothing is dropped silently: ids that are listed more than once are kept by name for the caller to show.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use thiserror::Error;

/// A list of ids as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdList {
    /// The file.
    pub file: PathBuf,
    /// Each id once, in the order of first occurrence.
    pub ids: Vec<String>,
    /// Ids that occur more than once, in the order of first repetition.
    pub repeated: Vec<RepeatedId>,
}

/// An id that a list has more than once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RepeatedId {
    /// The id.
    pub id: String,
    /// How often the list has it, at least 2.
    pub times: usize,
    /// Line of its second occurrence, from 1.
    pub line: usize,
}

/// Why a list cannot be used.
#[derive(Debug, Error)]
pub enum IdListError {
    /// The file cannot be read as UTF-8 text.
    #[error("cannot read the id list `{}`: {source}", file.display())]
    Unreadable {
        /// The list.
        file: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line is not one id.
    #[error("{}:{line}: more than an id: `{text}`; a list has one id a line and nothing else", file.display())]
    NotAnId {
        /// The list.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What it holds.
        text: String,
    },
    /// There is no id in the file.
    #[error("the id list `{}` is empty; leave it out to import everything", file.display())]
    Empty {
        /// The list.
        file: PathBuf,
    },
}

impl IdList {
    /// Reads a list. Blank lines, a byte order mark, and spaces around an id do not count.
    ///
    /// # Errors
    /// [`IdListError`] if the file cannot be read, has no id, or has a line with more than one word.
    pub fn read(file: &Path) -> Result<Self, IdListError> {
        let text = std::fs::read_to_string(file).map_err(|source| IdListError::Unreadable {
            file: file.to_owned(),
            source,
        })?;
        let mut ids = Vec::new();
        let mut seen = HashSet::new();
        let mut repeated: Vec<RepeatedId> = Vec::new();
        let mut place = HashMap::new();
        for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let (id, line) = (line.trim(), index + 1);
            if id.is_empty() {
                continue;
            }
            if id.contains(char::is_whitespace) {
                return Err(IdListError::NotAnId {
                    file: file.to_owned(),
                    line,
                    text: id.to_owned(),
                });
            }
            if seen.insert(id) {
                ids.push(id.to_owned());
            } else if let Some(&at) = place.get(id) {
                let again: &mut RepeatedId = &mut repeated[at];
                again.times += 1;
            } else {
                place.insert(id, repeated.len());
                repeated.push(RepeatedId {
                    id: id.to_owned(),
                    times: 2,
                    line,
                });
            }
        }
        if ids.is_empty() {
            return Err(IdListError::Empty {
                file: file.to_owned(),
            });
        }
        Ok(Self {
            file: file.to_owned(),
            ids,
            repeated,
        })
    }
}
