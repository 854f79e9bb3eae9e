//! The text to pretrain on: lines of `language<TAB>text`.

use std::collections::{BTreeMap, BTreeSet};

use zipper_cli::UserError;

/// Texts by language code.
pub(crate) type Words = BTreeMap<String, Vec<String>>;

/// Reads the lines of a file.
///
/// # Errors
/// [`UserError`] naming the first line that is not `language<TAB>text`, or if there is none at all.
pub(crate) fn parse(content: &str) -> Result<Words, UserError> {
    let mut words = Words::new();
    for (index, line) in content.lines().enumerate() {
        match line.split_once('\t') {
            Some((lang, text)) if !lang.is_empty() && !text.trim().is_empty() => {
                words.entry(lang.to_owned()).or_default().push(text.to_owned());
            }
            _ => {
                return Err(UserError::new(format!(
                    "line {} is not `language<TAB>text`: `{line}`",
                    index + 1
                )));
            }
        }
    }
    if words.is_empty() {
        return Err(UserError::new("there is no text"));
    }
    Ok(words)
}

/// Every character that occurs, in order.
pub(crate) fn characters(words: &Words) -> BTreeSet<char> {
    words.values().flatten().flat_map(|text| text.chars()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_grouped_by_language() {
        let words = parse("en\tone\nvi\tm\u{1ed9}t\nen\ttwo words\n").unwrap();
        assert_eq!(words["en"], ["one", "two words"]);
        assert_eq!(words["vi"], ["m\u{1ed9}t"]);
        let characters: String = characters(&words).into_iter().collect();
        assert_eq!(characters, " demnorstw\u{1ed9}");
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = parse("en\tone\ntwo\n").unwrap_err();
        assert_eq!(error.to_string(), "line 2 is not `language<TAB>text`: `two`");
        let error = parse("en\tone\nvi\t \n").unwrap_err();
        assert_eq!(error.to_string(), "line 2 is not `language<TAB>text`: `vi\t `");
        assert_eq!(parse("").unwrap_err().to_string(), "there is no text");
    }
}
