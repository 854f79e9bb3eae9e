//! Steps that both normalizers share, with the character classes of Python's `str` and `re`.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};
use unicode_normalization::UnicodeNormalization;

/// A run of white space. Python counts the four ASCII separators as white space, Unicode's property does not.
static SPACES: LazyLock<Regex> = LazyLock::new(|| pattern(r"[\s\x1c-\x1f]+"));
static BRACKETED: LazyLock<Regex> = LazyLock::new(|| pattern(r"[<\[][^>\]]*[>\]]"));
static PARENTHESIZED: LazyLock<Regex> = LazyLock::new(|| pattern(r"\([^)]+\)"));
/// A mark, a symbol or a punctuation character.
static MARK_OR_SYMBOL: LazyLock<Regex> = LazyLock::new(|| pattern(r"[\p{M}\p{S}\p{P}]"));
static WORD_CHARACTER: LazyLock<Regex> = LazyLock::new(|| pattern(r"^[\p{L}\p{N}_]$"));
/// What decomposition leaves and [`clean_without_diacritics`] replaces: the former, or a letter of [`plain_letters`].
static MARK_SYMBOL_OR_LIGATURE: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(\p{Mn})|[\p{M}\p{S}\p{P}œŒøØæÆßẞđĐðÐþÞłŁ]"));

/// Compiles a pattern of this crate.
pub(crate) fn pattern(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the patterns of this crate are constants, compiled by its tests")
}

/// Whether `c` is white space to Python's `str.split`, `str.strip` and `\s`.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

/// The words between white space.
pub(crate) fn split_words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// Every run of white space becomes one space; those at the ends stay.
pub(crate) fn collapse_spaces(text: &str) -> Cow<'_, str> {
    SPACES.replace_all(text, " ")
}

/// Takes out what stands in `<>`, `[]` and `()`: sound descriptions and speaker names, not speech.
pub(crate) fn remove_asides(text: &str) -> String {
    PARENTHESIZED
        .replace_all(&BRACKETED.replace_all(text, ""), "")
        .into_owned()
}

/// Composes (NFKC), then turns marks, symbols and punctuation into spaces.
pub(crate) fn clean_keeping_diacritics(text: &str) -> String {
    let composed: String = text.nfkc().collect();
    MARK_OR_SYMBOL.replace_all(&composed, " ").into_owned()
}

/// Decomposes (NFKD), drops diacritics, and turns other marks, symbols and punctuation into spaces, except `keep`.
pub(crate) fn clean_without_diacritics(text: &str, keep: &str) -> String {
    let decomposed: String = text.nfkd().collect();
    let replacement = |found: &Captures<'_>| {
        let matched = &found[0];
        if keep.contains(matched) {
            return matched.to_owned();
        }
        let is_diacritic = found.get(1).is_some();
        if is_diacritic {
            String::new()
        } else {
            plain_letters(matched).unwrap_or(" ").to_owned()
        }
    };
    MARK_SYMBOL_OR_LIGATURE
        .replace_all(&decomposed, replacement)
        .into_owned()
}

/// Where a phrase must have a word boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Edge {
    WholeWord,
    EndOfWord,
}

/// Replaces `phrase`, whose ends are word characters unless `edge` leaves them open, wherever it has the boundaries
/// that `edge` asks for.
pub(crate) fn replace_phrase(text: &str, phrase: &str, replacement: &str, edge: Edge) -> String {
    let mut replaced = String::with_capacity(text.len());
    let mut copied = 0;
    for (start, _) in text.match_indices(phrase) {
        let end = start + phrase.len();
        let follows_word = text[..start].chars().next_back().is_some_and(is_word);
        let continues = text[end..].chars().next().is_some_and(is_word);
        if continues || (edge == Edge::WholeWord && follows_word) {
            continue;
        }
        replaced.push_str(&text[copied..start]);
        replaced.push_str(replacement);
        copied = end;
    }
    replaced.push_str(&text[copied..]);
    replaced
}

/// Whether `c` is a word character of Python's `\b`. That of the `regex` crate counts combining marks and joiners
/// too, which differs in text that is not composed, or copied from a web page.
fn is_word(c: char) -> bool {
    matches_char(&WORD_CHARACTER, c)
}

/// Whether `class`, a pattern for one whole character, matches `c`.
pub(crate) fn matches_char(class: &Regex, c: char) -> bool {
    class.is_match(c.encode_utf8(&mut [0; 4]))
}

/// Letters that Unicode does not decompose, as they are written without their stroke or ligature.
fn plain_letters(letter: &str) -> Option<&'static str> {
    Some(match letter {
        "œ" => "oe",
        "Œ" => "OE",
        "ø" => "o",
        "Ø" => "O",
        "æ" => "ae",
        "Æ" => "AE",
        "ß" => "ss",
        "ẞ" => "SS",
        "đ" | "ð" => "d",
        "Đ" | "Ð" => "D",
        "þ" | "Þ" => "th",
        "ł" => "l",
        "Ł" => "L",
        _ => return None,
    })
}
