//! What is wrong with a configuration, in words for its author.

use std::fmt;
use std::path::Path;

/// Every problem of one configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    source: String,
    problems: Vec<Problem>,
}

/// One problem: where and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Key path, `training.align.lr`; empty for the file as a whole.
    key: String,
    message: String,
    /// It is that a file or folder is not there.
    is_missing_path: bool,
}

impl ConfigErrors {
    pub(crate) fn new(source: &str, problems: Vec<Problem>) -> Self {
        Self {
            source: source.to_owned(),
            problems,
        }
    }

    pub(crate) fn one(source: &str, problem: Problem) -> Self {
        Self::new(source, vec![problem])
    }

    /// Every problem, in the order they were found.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Whether something that the configuration points to is not there.
    pub fn has_missing_paths(&self) -> bool {
        self.problems.iter().any(|problem| problem.is_missing_path)
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [problem] = self.problems.as_slice() {
            return write!(f, "`{}`: {problem}", self.source);
        }
        write!(f, "`{}` has {} problems:", self.source, self.problems.len())?;
        self.problems
            .iter()
            .try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for ConfigErrors {}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.key, self.message)
        }
    }
}

impl Problem {
    pub(crate) fn of_key(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            message: message.into(),
            is_missing_path: false,
        }
    }

    pub(crate) fn of_missing_path(key: impl Into<String>, path: &Path) -> Self {
        Self {
            is_missing_path: true,
            ..Self::of_key(key, format!("`{}` does not exist", path.display()))
        }
    }

    pub(crate) fn of_file(message: impl Into<String>) -> Self {
        Self::of_key("", message)
    }

    /// Puts what serde says of the value at `path` into our words.
    pub(crate) fn from_serde(path: &[String], message: &str) -> Self {
        let quoted: Vec<&str> = quoted(message).collect();
        let below = |name: &str| {
            let mut path = path.to_vec();
            if path.last().is_none_or(|last| last != name) {
                path.push(name.to_owned());
            }
            key_of(&path)
        };
        match (quoted.first(), quoted.get(1..)) {
            (Some(name), Some(known)) if message.starts_with("unknown field") => {
                Self::of_key(below(name), format!("unknown key{}", suggest(name, known)))
            }
            (Some(name), Some(known)) if message.starts_with("unknown variant") => Self::of_key(
                key_of(path),
                format!(
                    "`{name}` is not one of {}{}",
                    known.join(", "),
                    suggest(name, known)
                ),
            ),
            (Some(name), _) if message.starts_with("missing field") => {
                Self::of_key(below(name), "missing, and there is no default")
            }
            _ => Self::of_key(key_of(path), message),
        }
    }

    /// The segments of the key.
    pub(crate) fn path(&self) -> Vec<String> {
        segments(&self.key)
    }

    /// The same problem of another key.
    pub(crate) fn moved(self, path: &[String]) -> Self {
        Self {
            key: key_of(path),
            ..self
        }
    }

    /// Paths of all keys that this problem is about: its own, and those that its message has in backticks, with the whole path
    /// or from the section of its own key on.
    pub(crate) fn keys(&self) -> Vec<Vec<String>> {
        let own = self.path();
        let section = own.len().saturating_sub(1);
        // As `variant: static`, with the value.
        let texts = quoted(&self.message).map(|name| name.split(": ").next().unwrap_or(name));
        let named = texts.map(segments).filter(|path| !path.is_empty());
        let mut keys: Vec<Vec<String>> = named
            .flat_map(|path| [[&own[..section], path.as_slice()].concat(), path])
            .collect();
        keys.push(own);
        keys
    }

    /// Whether this problem is at the place of `other` or inside of it.
    pub(crate) fn is_at_or_below(&self, other: &Self) -> bool {
        self.path().starts_with(&other.path())
    }
}

/// What a message has in backticks.
fn quoted(message: &str) -> impl Iterator<Item = &str> {
    message.split('`').skip(1).step_by(2)
}

/// The keys that may be where serde found one that it does not know; none of other messages.
pub(crate) fn known_keys(message: &str) -> impl Iterator<Item = &str> {
    let is_of_key = message.starts_with("unknown field");
    quoted(if is_of_key { message } else { "" }).skip(1)
}

/// The segments of `data.train[0]`.
pub(crate) fn segments(key: &str) -> Vec<String> {
    let key = key.replace('[', ".[");
    key.split('.')
        .filter(|segment| !segment.is_empty())
        .map(str::to_owned)
        .collect()
}

/// `data.train[0]` from its segments.
fn key_of(path: &[String]) -> String {
    let mut key = String::new();
    for segment in path {
        if !key.is_empty() && !segment.starts_with('[') {
            key.push('.');
        }
        key.push_str(segment);
    }
    key
}

/// `; did you mean ...?` where something known is close enough.
pub(crate) fn suggest(name: &str, known: &[&str]) -> String {
    nearest(name, known.iter().copied())
        .map(|known| format!("; did you mean `{known}`?"))
        .unwrap_or_default()
}

/// The one of `known` that `name` is most like, if it is like any.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const ALIKE: f64 = 0.75;
    let name = name.to_lowercase();
    known
        .into_iter()
        .map(|known| (strsim::jaro_winkler(&name, &known.to_lowercase()), known))
        .filter(|(similarity, _)| *similarity > ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, known)| known)
}
