//! From YAML text and overrides to a [`RunConfig`], with every problem reported at once.

use std::path::{Path, PathBuf};

use serde_yaml::{Mapping, Value};

use crate::problems::{ConfigErrors, Problem};
use crate::schema::RunConfig;

/// Sections without which there is no run.
const REQUIRED: [&str; 4] = ["name", "model", "data", "training"];

/// Reads a configuration file, applies `overrides` (`training.align.lr=1e-3`) and validates the result. Relative paths
/// become absolute against the current directory.
///
/// # Errors
/// [`ConfigErrors`] with every problem found.
pub fn load(path: &Path, overrides: &[String]) -> Result<RunConfig, ConfigErrors> {
    let source = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigErrors::one(&source, Problem::of_file(format!("cannot be read: {error}"))))?;
    let mut config = from_str(&text, &source, overrides)?;
    let here = std::env::current_dir().map_err(|error| {
        ConfigErrors::one(
            &source,
            Problem::of_file(format!("no current directory: {error}")),
        )
    })?;
    for (_, path) in config.paths_mut() {
        *path = here.join(&*path);
    }
    if let Some(start) = &mut config.training.start_from {
        start.resolve(&here);
    }
    Ok(config)
}

/// Like [`load`], from text; `source` stands for the file in messages, and paths stay as they are.
///
/// # Errors
/// [`ConfigErrors`] with every problem found.
pub fn from_str(text: &str, source: &str, overrides: &[String]) -> Result<RunConfig, ConfigErrors> {
    let mut value: Value = serde_yaml::from_str(text)
        .map_err(|error| ConfigErrors::one(source, Problem::of_file(format!("not YAML: {error}"))))?;
    let mut problems = Vec::new();
    for text in overrides {
        if let Err(problem) = override_key(&mut value, text) {
            problems.push(problem);
        }
    }
    let config = read(value, &mut problems);
    match config {
        Some(config) if problems.is_empty() => {
            let problems = crate::validate::validate(&config);
            if problems.is_empty() {
                Ok(config)
            } else {
                Err(ConfigErrors::new(source, problems))
            }
        }
        _ => Err(ConfigErrors::new(source, problems)),
    }
}

/// Deserializes `value`. Serde stops at the first problem; so each one is noted, taken out of the value, and the rest is read
/// again until nothing new turns up.
fn read(mut value: Value, problems: &mut Vec<Problem>) -> Option<RunConfig> {
    if let Value::Mapping(root) = &value {
        let missing = REQUIRED.iter().filter(|key| !root.contains_key(**key));
        problems.extend(missing.map(|key| Problem::of_key(*key, "missing, and a run needs it")));
    }
    let mut taken_out = TakenOut::default();
    loop {
        let error = match serde_path_to_error::deserialize::<_, RunConfig>(value.clone()) {
            Ok(config) => return Some(config),
            Err(error) => error,
        };
        let path: Vec<String> = error.path().iter().map(ToString::to_string).collect();
        let message = error.into_inner().to_string();
        let problem = Problem::from_serde(&taken_out.original(&path), &message);
        // What a problem took with it is not a problem of its own.
        let known = problems.iter().any(|known| known.is_at_or_below(&problem));
        if !known {
            problems.push(problem);
        }
        let place = Problem::from_serde(&path, &message).path();
        if !taken_out.take(&mut value, &place) && !taken_out.take(&mut value, &path) {
            return None;
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
    let mut at = value;
    for key in parents {
        let next = match at {
            Value::Mapping(mapping) => mapping.get_mut(key.as_str()),
            Value::Sequence(items) => index(key).and_then(|index| items.get_mut(index)),
            _ => None,
        };
        let Some(next) = next else { return false };
        at = next;
    }
    match at {
        Value::Mapping(mapping) => mapping.remove(last.as_str()).is_some(),
        Value::Sequence(items) => match index(last) {
            Some(index) if index < items.len() => {
                items.remove(index);
                true
            }
            _ => false,
        },
        _ => false,
    }
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

    /// Looks whether everything that the configuration points to is there.
    ///
    /// # Errors
    /// [`ConfigErrors`] naming the key and the path of everything that is missing.
    pub fn check_paths(&self, source: &str) -> Result<(), ConfigErrors> {
        let problems: Vec<Problem> = self
            .clone()
            .paths_mut()
            .into_iter()
            .filter(|(key, path)| key != "model.encoder.cache" && !path.exists())
            .map(|(key, path)| Problem::of_key(key, format!("`{}` does not exist", path.display())))
            .collect();
        if problems.is_empty() {
            Ok(())
        } else {
            Err(ConfigErrors::new(source, problems))
        }
    }
}
