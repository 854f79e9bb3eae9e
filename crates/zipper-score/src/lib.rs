//! How good a transcript is: Whisper's text normalizers, word and character error rates, the table by language.
//!
//! Owns what happens to a reference and a hypothesis before they are compared, how they are compared, and how the
//! counts of many utterances become one figure. Never holds audio, models or files.
//!
//! The figures are meant to be laid beside published ones, so behaviour is taken from the programs that made those:
//! the normalizers give what `transformers.models.whisper.english_normalizer` gives (the rules of Radford et al.,
//! arXiv 2212.04356, appendix C), the counts are those of jiwer 4. `tests/golden` holds their answers.
//!
//! Reading order: [`basic`](BasicNormalizer), [`english`](normalize_english), [`counts`](Counts),
//! [`report`](Report).

mod basic;
mod counts;
mod english;
mod numbers;
mod phrases;
mod report;
mod spelling;
mod table;
mod text;

pub use basic::BasicNormalizer;
pub use counts::{Counts, char_counts, word_counts};
pub use english::normalize_english;
pub use report::{Headline, LanguageReport, Overall, Report, ReportBuilder};
pub use table::{RESULT_TABLE, Rates, ResultRow, ResultSet, ResultTable};

/// Normalizes `text` as Whisper's evaluation does: the English rules for `en`, the basic ones for all other languages.
///
/// The basic rules keep diacritics and words whole, but turn every combining mark that does not compose with its
/// letter into a space. In Thai, Khmer or Devanagari that drops vowel signs and tones; it is kept because the
/// published figures were made so.
pub fn normalize(lang: &str, text: &str) -> String {
    match lang {
        "en" => normalize_english(text),
        _ => BasicNormalizer::default().normalize(text),
    }
}

/// Edits and lengths of one utterance, in words and in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UtteranceScore {
    /// Counted in words.
    pub wer: Counts,
    /// Counted in characters, spaces included.
    pub cer: Counts,
}

/// Compares a hypothesis with its reference after normalizing both by the rules of `lang`.
pub fn score(lang: &str, reference: &str, hypothesis: &str) -> UtteranceScore {
    let (reference, hypothesis) = (normalize(lang, reference), normalize(lang, hypothesis));
    UtteranceScore {
        wer: word_counts(&reference, &hypothesis),
        cer: char_counts(&reference, &hypothesis),
    }
}
