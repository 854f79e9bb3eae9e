//! The normalizer for languages that have none of their own.

use unicode_segmentation::UnicodeSegmentation;

use crate::text::{clean_keeping_diacritics, clean_without_diacritics, collapse_spaces, remove_asides};

/// Whisper's normalizer for any language: lower case, no asides in brackets, no symbols or punctuation.
///
/// The result may begin or end with a space, as Whisper's does; counting trims it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BasicNormalizer {
    /// Also drop diacritics: `café` becomes `cafe`, `straße` becomes `strasse`.
    pub remove_diacritics: bool,
    /// Put a space between grapheme clusters, so that a word error rate counts characters.
    pub split_letters: bool,
}

impl BasicNormalizer {
    /// The normalized form of `text`.
    pub fn normalize(self, text: &str) -> String {
        let spoken = remove_asides(&text.to_lowercase());
        let cleaned = if self.remove_diacritics {
            clean_without_diacritics(&spoken, "")
        } else {
            clean_keeping_diacritics(&spoken)
        };
        // Composing can make capitals out of symbols that had no lower case: the sign `℡` becomes `TEL`.
        let lowered = cleaned.to_lowercase();
        if self.split_letters {
            let letters: Vec<&str> = lowered.graphemes(true).collect();
            collapse_spaces(&letters.join(" ")).into_owned()
        } else {
            collapse_spaces(&lowered).into_owned()
        }
    }
}
