//! British spellings become American ones, word by word.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::text::split_words;

/// British to American; where it comes from: `data/NOTICE.md`.
static AMERICAN: LazyLock<HashMap<&str, &str>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../data/english_spelling.json"))
        .expect("the committed spelling table is a JSON object of strings without escapes")
});

/// Replaces the words of `text` that the table knows, and joins all words by single spaces.
pub(crate) fn americanize(text: &str) -> String {
    let words: Vec<&str> = split_words(text)
        .map(|word| AMERICAN.get(word).copied().unwrap_or(word))
        .collect();
    words.join(" ")
}
