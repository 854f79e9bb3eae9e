//! Which audio files there are, and in which language each is.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use zipper_cli::UserError;

/// How many of what is wrong an error names.
const LISTED: usize = 20;

/// An audio file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Input {
    pub(super) path: PathBuf,
    /// What the list says of its language.
    language: Option<String>,
}

/// The files of the command line, then those of the list.
///
/// # Errors
/// The user's to mend: everything that is not there or is a folder, by its name; a list without files.
pub(super) fn gather(audio: &[PathBuf], list: Option<&Path>) -> Result<Vec<Input>, UserError> {
    let told = audio.iter().map(|path| Input {
        path: path.clone(),
        language: None,
    });
    let mut inputs: Vec<Input> = told.collect();
    if let Some(list) = list {
        let text = fs::read_to_string(list)
            .map_err(|error| UserError::new(format!("cannot read the list `{}`: {error}", list.display())))?;
        let folder = list.parent().unwrap_or(Path::new(""));
        let listed = read_list(&text, folder);
        if listed.is_empty() {
            return Err(
                UserError::new(format!("the list `{}` names no file", list.display()))
                    .hint("write one path a line"),
            );
        }
        inputs.extend(listed);
    }
    let problems: Vec<String> = inputs.iter().filter_map(|input| problem(&input.path)).collect();
    if problems.is_empty() {
        return Ok(inputs);
    }
    Err(UserError::new(listing(&problems))
        .hint("name files, as in `recordings/*.wav`, or list them in one for `--list`"))
}

/// The files that a list names, from `folder` if their paths are relative.
fn read_list(text: &str, folder: &Path) -> Vec<Input> {
    let lines = text.trim_start_matches('\u{feff}').lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let input = |line: &str| {
        let (path, language) = match line.split_once('\t') {
            Some((path, language)) => (path.trim_end(), Some(language.trim().to_owned())),
            None => (line, None),
        };
        Input {
            path: folder.join(path),
            language,
        }
    };
    lines.map(input).collect()
}

/// Why this cannot be an audio file, as far as that can be told without reading it.
fn problem(path: &Path) -> Option<String> {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => Some(format!("`{shown}` is a folder")),
        Ok(_) => None,
        Err(error) => Some(format!("cannot read `{shown}`: {error}")),
    }
}

/// The language of each file, as an ordinal of the run's `languages`: what the list says, or else what is `told` of all, or else the only
/// one that there is. Nothing for a file of which nothing is said, where the run can `detect` it.
///
/// # Errors
/// The user's to mend: a language that the run does not have, or a file of which nothing is said where nothing can be detected.
pub(super) fn languages_of(
    inputs: &[Input],
    told: Option<&str>,
    languages: &[String],
    detect: bool,
) -> Result<Vec<Option<usize>>, UserError> {
    let only = match languages {
        [only] if !detect => Some(only.as_str()),
        _ => None,
    };
    let mut resolved = Vec::with_capacity(inputs.len());
    let mut unknown = BTreeMap::new();
    let mut untold = Vec::new();
    for input in inputs {
        let Some(code) = input.language.as_deref().or(told).or(only) else {
            untold.push(format!("`{}`", input.path.display()));
            resolved.push(None);
            continue;
        };
        match languages.iter().position(|language| language == code) {
            Some(ordinal) => resolved.push(Some(ordinal)),
            None => {
                unknown.entry(code).or_insert(&input.path);
            }
        }
    }
    let known = languages.join(", ");
    if !unknown.is_empty() {
        let unknown: Vec<String> = unknown
            .iter()
            .map(|(code, path)| format!("the run has no language `{code}`, asked for `{}`", path.display()))
            .collect();
        return Err(UserError::new(listing(&unknown)).hint(format!("its languages are {known}")));
    }
    if !untold.is_empty() && !detect {
        let error = UserError::new(format!(
            "this run cannot detect in which language a file is, and it is not told of {}",
            listing(&untold)
        ));
        return Err(error.hint(format!(
            "give `--language` with one of {known}, or the language of each file in a `--list`; runs with `model.lid_head` detect it"
        )));
    }
    Ok(resolved)
}

/// Problems or names, one after the other; of very many the first.
fn listing(items: &[String]) -> String {
    let text = items[..items.len().min(LISTED)].join(", ");
    match items.len().saturating_sub(LISTED) {
        0 => text,
        more => format!("{text} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(path: &str, language: Option<&str>) -> Input {
        Input {
            path: path.into(),
            language: language.map(str::to_owned),
        }
    }

    #[test]
    fn lists_have_paths_languages_and_comments() {
        let text = "\u{feff}# interviews\r\na b.wav\r\n\r\n/data/c.flac \t de \r\n  # done\nd.opus\ten";
        let expected = [
            input("lists/a b.wav", None),
            input("/data/c.flac", Some("de")),
            input("lists/d.opus", Some("en")),
        ];
        assert_eq!(read_list(text, Path::new("lists")), expected);
    }

    #[test]
    fn the_list_has_precedence_over_what_is_told_of_all() {
        let run = ["en".to_owned(), "de".to_owned()];
        let inputs = [input("a.wav", None), input("b.wav", Some("de"))];
        assert_eq!(
            languages_of(&inputs, Some("en"), &run, false).unwrap(),
            [Some(0), Some(1)]
        );
        assert_eq!(languages_of(&inputs, None, &run, true).unwrap(), [None, Some(1)]);
        let error = languages_of(&inputs, None, &run, false).unwrap_err();
        assert!(error.to_string().ends_with("not told of `a.wav`"), "{error}");
        let error = languages_of(&inputs, Some("fr"), &run, true).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the run has no language `fr`, asked for `a.wav`"
        );
        assert_eq!(error.hints(), ["its languages are en, de"]);
        let only = languages_of(&inputs[..1], None, &run[..1], false);
        assert_eq!(only.unwrap(), [Some(0)], "a run of one language need not be told");
    }
}
