//! The normalizer for English.

use std::sync::LazyLock;

use regex::Regex;

use crate::numbers::write_in_digits;
use crate::phrases::{remove_fillers, write_out};
use crate::spelling::americanize;
use crate::text::{clean_without_diacritics, collapse_spaces, pattern, remove_asides};

static SPACE_BEFORE_APOSTROPHE: LazyLock<Regex> = LazyLock::new(|| pattern(r"[\s\x1c-\x1f]+'"));
static COMMA_IN_NUMBER: LazyLock<Regex> = LazyLock::new(|| pattern(r"(\d),(\d)"));
static FULL_STOP: LazyLock<Regex> = LazyLock::new(|| pattern(r"\.([^0-9]|$)"));
static SIGN_WITHOUT_NUMBER: LazyLock<Regex> = LazyLock::new(|| pattern(r"[.$¢€£]([^0-9])"));
static PERCENT_WITHOUT_NUMBER: LazyLock<Regex> = LazyLock::new(|| pattern(r"([^0-9])%"));

/// Whisper's English normalizer: lower case, contractions and titles written out, numbers in digits, American
/// spelling, no hesitations, asides, diacritics or punctuation.
///
/// The order of the steps is part of the behaviour: each sees what those before it left.
pub fn normalize_english(text: &str) -> String {
    let text = remove_fillers(&remove_asides(&text.to_lowercase()));
    let text = write_out(&SPACE_BEFORE_APOSTROPHE.replace_all(&text, "'"));

    let text = COMMA_IN_NUMBER.replace_all(&text, "${1}${2}");
    let text = FULL_STOP.replace_all(&text, " ${1}");
    // The signs that a number may carry survive until the numbers are written.
    let text = clean_without_diacritics(&text, ".%$¢€£");

    let text = americanize(&write_in_digits(&text));

    let text = SIGN_WITHOUT_NUMBER.replace_all(&text, " ${1}");
    let text = PERCENT_WITHOUT_NUMBER.replace_all(&text, "${1} ");
    collapse_spaces(&text).into_owned()
}
