//! The normalizer for languages that have none of their own.

use unicode_segmentation::UnicodeSegmentation;

use crate::text::{clean_keeping_diacritics, collapse_spaces, remove_asides};

/// Whisper's normalizer for any language: lower case, no asides in brackets, no symbols or punctuation. With `split_letters` a space
/// between grapheme clusters, so that a word error rate counts characters.
///
/// The result may begin or end with a space, as Whisper's does; counting trims it.
pub(crate) fn normalize_basic(text: &str, split_letters: bool) -> String {
    let spoken = remove_asides(&text.to_lowercase());
    // Composing can make capitals out of symbols that had no lower case: the sign `℡` becomes `TEL`.
    let lowered = clean_keeping_diacritics(&spoken).to_lowercase();
    if split_letters {
        let letters: Vec<&str> = lowered.graphemes(true).collect();
        collapse_spaces(&letters.join(" ")).into_owned()
    } else {
        collapse_spaces(&lowered).into_owned()
    }
}
