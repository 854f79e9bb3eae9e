//! How good a transcript is: Whisper's text normalizers, word and character error rates, the table by language.
//!
//! Owns what happens to a reference and a hypothesis before they are compared, how they are compared, how the counts of many
//! utterances become one figure, and what happens to a transcript before it is learnt. Never holds audio, models or files.
//!
//! The figures are meant to be laid beside published ones, so behaviour is taken from the programs that made those:
//! the normalizers give what `transformers.models.whisper.english_normalizer` gives (the rules of Radford et al.,
//! arXiv 2212.04356, appendix C), the counts are those of jiwer 4. `tests/golden` holds their answers.
//!
//! Reading order: `basic`, [`english`](normalize_english), `repetitions`, [`counts`](Counts),
//! [`report`](Report).

mod basic;
mod counts;
mod english;
mod numbers;
mod phrases;
mod repetitions;
mod report;
mod spelling;
mod table;
mod text;

use std::borrow::Cow;

use zipper_types::{Normalizer, Scoring, TextNormalization};

use basic::normalize_basic;
use repetitions::{Unit, remove_repetitions};

pub use counts::{Counts, char_counts, word_counts};
pub use english::normalize_english;
pub use report::{Headline, LanguageReport, Overall, Report, ReportBuilder};
pub use table::{RESULT_TABLE, Rates, ResultRow, ResultSet, ResultTable};

/// What `normalizer` makes of `text`.
///
/// The basic rules keep diacritics and words whole, but turn every combining mark that does not compose with its
/// letter into a space. In Thai, Khmer or Devanagari that drops vowel signs and tones; it is kept because the
/// published figures were made so.
pub fn normalize(normalizer: Normalizer, text: &str) -> String {
    match normalizer {
        Normalizer::English => normalize_english(text),
        Normalizer::Basic => normalize_basic(text, false),
        Normalizer::BasicSplit => normalize_basic(text, true),
        Normalizer::None => text.to_owned(),
    }
}

/// A transcript as it is learnt. With the basic rules, which drop marks (see [`normalize`]), nothing may be left of it.
pub fn target(normalization: TextNormalization, text: &str) -> Cow<'_, str> {
    match normalization {
        TextNormalization::None => Cow::Borrowed(text),
        TextNormalization::Lowercase => Cow::Owned(text.to_lowercase()),
        TextNormalization::Basic => Cow::Owned(normalize(Normalizer::Basic, text).trim().to_owned()),
    }
}

/// Edits and lengths of one utterance, in words and in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UtteranceScore {
    /// Counted in words.
    pub wer: Counts,
    /// Counted in characters, spaces included; with split letters in those, the same as `wer`.
    pub cer: Counts,
}

/// Compares a hypothesis with its reference after normalizing both. Repetitions are looked for in what the normalizer leaves, so that
/// case and punctuation do not tell them apart.
pub fn score(scoring: Scoring, reference: &str, hypothesis: &str) -> UtteranceScore {
    let Scoring { normalizer, .. } = scoring;
    let split = normalizer == Normalizer::BasicSplit;
    let reference = normalize(normalizer, reference);
    let hypothesis = normalize(normalizer, hypothesis);
    let hypothesis = if scoring.remove_repetitions {
        let unit = if split { Unit::SplitLetter } else { Unit::Word };
        remove_repetitions(&hypothesis, unit)
    } else {
        Cow::Borrowed(hypothesis.as_str())
    };
    let wer = word_counts(&reference, &hypothesis);
    let cer = if split {
        wer
    } else {
        char_counts(&reference, &hypothesis)
    };
    UtteranceScore { wer, cer }
}
