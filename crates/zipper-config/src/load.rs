//! From YAML text and overrides to a [`RunConfig`], with every problem reported at once.

use std::path::{Path, PathBuf};

use serde_yaml::{Mapping, Value};

use crate::problems::{ConfigErrors, Problem, known_keys, segments};
use crate::schema::RunConfig;

/// Sections without which there is no run.
const REQUIRED: [&str; 4] = ["name", "model", "data", "training"];

/// What stands for keys that must be there and are not, so that the rest can be looked at. No problem of theirs is reported.
const STAND_INS: &str = "
name: stand-in
model: {encoder: {path: stand-in}, llm: {path: stand-in}}
data: {languages: [en], train: [stand-in]}
training: {align: {steps: 1}, zipper: {steps: 1}, batch_audio_seconds: 1}
";

/// Reads a configuration file, applies `overrides` (`training.align.lr=1e-3`) and validates the result. Relative paths
/// become absolute against the current directory.
///
/// # Errors
/// [`ConfigErrors`] with every problem found.
pub fn load(path: &Path, overrides: &[String]) -> Result<RunConfig, ConfigErrors> {
    Reading::of_file(path, overrides)?.finish()
}

/// Like [`load`], and looks whether everything that the configuration points to is there.
///
/// # Errors
/// [`ConfigErrors`] with every problem found, a path that is not there being one.
pub fn load_checked(path: &Path, overrides: &[String]) -> Result<RunConfig, ConfigErrors> {
    Reading::of_file(path, overrides)?.with_paths().finish()
}

/// Like [`load`], from text; `source` stands for the file in messages, and paths stay as they are.
///
/// # Errors
/// [`ConfigErrors`] with every problem found.
pub fn from_str(text: &str, source: &str, overrides: &[String]) -> Result<RunConfig, ConfigErrors> {
    Reading::of(text, source, overrides)?.finish()
}

/// Like [`from_str`], and looks whether everything that the configuration points to is there.
///
/// # Errors
/// [`ConfigErrors`] with every problem found, a path that is not there being one.
pub fn from_str_checked(text: &str, source: &str, overrides: &[String]) -> Result<RunConfig, ConfigErrors> {
    Reading::of(text, source, overrides)?.with_paths().finish()
}

/// What a text says, as far as it can be read, and every problem that was found until now.
struct Reading {
    source: String,
    /// Nothing if too little could be read.
    config: Option<RunConfig>,
    problems: Vec<Problem>,
    doubts: Doubts,
}

impl Reading {
    fn of_file(path: &Path, overrides: &[String]) -> Result<Self, ConfigErrors> {
        let source = path.display().to_string();
        let of_file = |message: String| ConfigErrors::one(&source, Problem::of_file(message));
        let text =
            std::fs::read_to_string(path).map_err(|error| of_file(format!("cannot be read: {error}")))?;
        let mut reading = Self::of(&text, &source, overrides)?;
        let here =
            std::env::current_dir().map_err(|error| of_file(format!("no current directory: {error}")))?;
        if let Some(config) = &mut reading.config {
            for (_, path) in config.paths_mut() {
                *path = here.join(&*path);
            }
            if let Some(start) = &mut config.training.start_from {
                start.resolve(&here);
            }
        }
        Ok(reading)
    }

    fn of(text: &str, source: &str, overrides: &[String]) -> Result<Self, ConfigErrors> {
        let mut value: Value = serde_yaml::from_str(text)
            .map_err(|error| ConfigErrors::one(source, Problem::of_file(format!("not YAML: {error}"))))?;
        let mut reading = Self {
            source: source.to_owned(),
            config: None,
            problems: Vec::new(),
            doubts: Doubts::default(),
        };
        for text in overrides {
            // One that fails halfway leaves nothing behind.
            let mut changed = value.clone();
            match override_key(&mut changed, text) {
                Ok(()) => value = changed,
                Err(problem) => {
                    reading.problems.push(problem);
                    let key = text.split('=').next().unwrap_or(text);
                    reading.doubts.add(segments(key));
                }
            }
        }
        reading.config = reading.read(value);
        if let Some(config) = &reading.config {
            let found = crate::validate::validate(config);
            reading.report(found);
        }
        Ok(reading)
    }

    /// Deserializes `value`. Serde stops at the first problem; so each one is noted, what has it is set aside, and the rest is read
    /// again until nothing new turns up.
    fn read(&mut self, mut value: Value) -> Option<RunConfig> {
        if let Value::Mapping(root) = &value {
            let missing = REQUIRED.iter().filter(|key| !root.contains_key(**key));
            let missing = missing.map(|key| Problem::of_key(*key, "missing, and a run needs it"));
            self.problems.extend(missing);
        }
        loop {
            let error = match serde_path_to_error::deserialize::<_, RunConfig>(value.clone()) {
                Ok(config) => return Some(config),
                Err(error) => error,
            };
            let path: Vec<String> = error.path().iter().map(ToString::to_string).collect();
            let message = error.into_inner().to_string();
            let problem = Problem::from_serde(&self.doubts.taken_out.original(&path), &message);
            // What a problem took with it is not a problem of its own.
            let known = self.problems.iter().any(|known| known.is_at_or_below(&problem));
            if !known {
                self.problems.push(problem);
            }
            let place = Problem::from_serde(&path, &message).path();
            self.doubts.add_unset(&mut value, &place, &message);
            let is_missing = message.starts_with("missing field");
            let set_aside = is_missing && self.doubts.stand_in(&mut value, &place)
                || self.doubts.take(&mut value, &place)
                || self.doubts.take(&mut value, &path);
            if !set_aside {
                return None;
            }
        }
    }

    /// Looks whether everything that the configuration points to is there.
    fn with_paths(mut self) -> Self {
        if let Some(config) = &mut self.config {
            let found = config.missing_paths();
            self.report(found);
        }
        self
    }

    /// Adds what was found in the configuration, without what follows from problems that are known.
    fn report(&mut self, found: Vec<Problem>) {
        for problem in found {
            if !self.doubts.have_to_do_with(&problem) {
                self.problems.push(self.doubts.at_its_place(problem));
            }
        }
    }

    fn finish(self) -> Result<RunConfig, ConfigErrors> {
        match self.config {
            Some(config) if self.problems.is_empty() => Ok(config),
            _ => Err(ConfigErrors::new(&self.source, self.problems)),
        }
    }
}

/// Where what was read may not be what its author meant, since something there has a problem: a default or a stand-in is in its place.
#[derive(Default)]
struct Doubts {
    /// Paths that these places have in the file.
    places: Vec<Vec<String>>,
    taken_out: TakenOut,
}

impl Doubts {
    fn add(&mut self, place: Vec<String>) {
        // Without a key it would be everything.
        if !place.is_empty() {
            self.places.push(place);
        }
    }

    /// An unknown key at `place` may have been meant to be any of those that may be beside it and are not.
    fn add_unset(&mut self, value: &mut Value, place: &[String], message: &str) {
        let Some((_, section)) = place.split_last() else {
            return;
        };
        let Some(Value::Mapping(there)) = at_mut(value, section) else {
            return;
        };
        let section = self.taken_out.original(section);
        for key in known_keys(message).filter(|key| !there.contains_key(*key)) {
            let mut unset = section.clone();
            unset.push(key.to_owned());
            self.add(unset);
        }
    }

    /// Puts a stand-in where a key is missing; says whether there is one.
    fn stand_in(&mut self, value: &mut Value, place: &[String]) -> bool {
        let mut all: Value = serde_yaml::from_str(STAND_INS).expect("stand-ins are YAML");
        let (Some((last, section)), Some(found)) = (place.split_last(), at_mut(&mut all, place)) else {
            return false;
        };
        let Some(Value::Mapping(section)) = at_mut(value, section) else {
            return false;
        };
        section.insert(Value::from(last.as_str()), found.clone());
        self.add(self.taken_out.original(place));
        true
    }

    /// Takes a key or list item out of `value`; says whether there was one.
    fn take(&mut self, value: &mut Value, path: &[String]) -> bool {
        let original = self.taken_out.original(path);
        let taken = self.taken_out.take(value, path);
        if taken {
            self.add(original);
        }
        taken
    }

    /// Whether a problem of what was read may be none of what was meant.
    fn have_to_do_with(&self, problem: &Problem) -> bool {
        problem.keys().iter().any(|key| {
            let key = self.taken_out.original(key);
            let mut places = self.places.iter();
            places.any(|place| key.starts_with(place) || place.starts_with(&key))
        })
    }

    /// A problem of what was read, with the key that it has in the file.
    fn at_its_place(&self, problem: Problem) -> Problem {
        let path = problem.path();
        let original = self.taken_out.original(&path);
        if original == path {
            problem
        } else {
            problem.moved(&original)
        }
    }
}

/// List items that were taken out, by the path they had in the file: those behind them have moved up since.
#[derive(Default)]
struct TakenOut(Vec<Vec<String>>);

impl TakenOut {
    /// The path that a place in what is left has in the file.
    fn original(&self, path: &[String]) -> Vec<String> {
        let mut original: Vec<String> = Vec::with_capacity(path.len());
        for segment in path {
            let segment = match index(segment).filter(|_| segment.starts_with('[')) {
                Some(index) => format!("[{}]", self.original_index(&original, index)),
                None => segment.clone(),
            };
            original.push(segment);
        }
        original
    }

    fn original_index(&self, list: &[String], mut at: usize) -> usize {
        let of_list = self
            .0
            .iter()
            .filter_map(|item| item.split_last().filter(|(_, parent)| *parent == list));
        let mut taken: Vec<usize> = of_list.filter_map(|(last, _)| index(last)).collect();
        taken.sort_unstable();
        for taken in taken {
            at += usize::from(taken <= at);
        }
        at
    }

    /// Takes a key or list item out of `value`; says whether there was one.
    fn take(&mut self, value: &mut Value, path: &[String]) -> bool {
        let original = self.original(path);
        let taken = remove(value, path);
        if taken && path.last().is_some_and(|last| last.starts_with('[')) {
            self.0.push(original);
        }
        taken
    }
}

/// Takes a key or list item out of `value`; says whether there was one.
fn remove(value: &mut Value, path: &[String]) -> bool {
    let Some((last, parents)) = path.split_last() else {
        return false;
    };
    match at_mut(value, parents) {
        Some(Value::Mapping(mapping)) => mapping.remove(last.as_str()).is_some(),
        Some(Value::Sequence(items)) => match index(last) {
            Some(index) if index < items.len() => {
                items.remove(index);
                true
            }
            _ => false,
        },
        _ => false,
    }
}

/// What is at `path` in `value`.
fn at_mut<'a>(value: &'a mut Value, path: &[String]) -> Option<&'a mut Value> {
    let mut at = value;
    for key in path {
        at = match at {
            Value::Mapping(mapping) => mapping.get_mut(key.as_str())?,
            Value::Sequence(items) => index(key).and_then(|index| items.get_mut(index))?,
            _ => return None,
        };
    }
    Some(at)
}

/// The number in a path segment: `2` or `[2]`.
fn index(segment: &str) -> Option<usize> {
    segment.trim_matches(['[', ']']).parse().ok()
}

/// Sets `key.path=value`; the value is YAML. Items of lists are `list.0`, or `list[0]` as in messages.
fn override_key(root: &mut Value, text: &str) -> Result<(), Problem> {
    let bad = |message: String| Problem::of_key(format!("--set {text}"), message);
    let (path, value) = text
        .split_once('=')
        .ok_or_else(|| bad("expected key.path=value, such as training.align.lr=1e-3".into()))?;
    let value: Value =
        serde_yaml::from_str(value).map_err(|error| bad(format!("the value is not YAML: {error}")))?;
    let mut at = root;
    for key in path.replace('[', ".[").split('.') {
        if key.is_empty() {
            return Err(bad("the key path has an empty part".into()));
        }
        if at.is_null() {
            *at = Value::Mapping(Mapping::new());
        }
        at = match at {
            Value::Mapping(mapping) => mapping.entry(Value::from(key)).or_insert(Value::Null),
            Value::Sequence(items) => {
                let length = items.len();
                index(key)
                    .and_then(|index| items.get_mut(index))
                    .ok_or_else(|| bad(format!("`{key}` is not an index of a list of {length}")))?
            }
            _ => return Err(bad(format!("`{key}` is below a value that has no keys"))),
        };
    }
    *at = value;
    Ok(())
}

impl RunConfig {
    /// The configuration with every default written out: the contents of `<run>/run.yaml`.
    ///
    /// # Panics
    /// Never: every value of a configuration can be written as YAML.
    pub fn to_yaml(&self) -> String {
        serde_yaml::to_string(self).expect("a configuration can be written as YAML")
    }

    /// Every path, with its key.
    fn paths_mut(&mut self) -> Vec<(String, &mut PathBuf)> {
        let mut paths = vec![
            ("model.encoder.path".to_owned(), &mut self.model.encoder.path),
            ("model.llm.path".to_owned(), &mut self.model.llm.path),
        ];
        if let Some(cache) = &mut self.model.encoder.cache {
            paths.push(("model.encoder.cache".to_owned(), cache));
        }
        let lists = [
            ("data.train", &mut self.data.train),
            ("data.validation", &mut self.data.validation),
        ];
        for (key, list) in lists {
            paths.extend(
                list.iter_mut()
                    .enumerate()
                    .map(|(index, path)| (format!("{key}[{index}]"), path)),
            );
        }
        let tests = self.evaluation.tests.iter_mut().enumerate();
        paths.extend(
            tests.map(|(index, test)| (format!("evaluation.tests[{index}].manifest"), &mut test.manifest)),
        );
        paths
    }

    /// The key and the path of everything that the configuration points to and that is not there.
    fn missing_paths(&mut self) -> Vec<Problem> {
        let paths = self.paths_mut().into_iter();
        paths
            .filter(|(key, path)| key != "model.encoder.cache" && !path.exists())
            .map(|(key, path)| Problem::of_missing_path(key, path))
            .collect()
    }
}
