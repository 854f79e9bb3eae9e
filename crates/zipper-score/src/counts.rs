//! Edit counts, as jiwer makes them.

use std::borrow::Cow;
use std::iter::Sum;
use std::ops::{Add, AddAssign};
use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};
use strsim::generic_levenshtein;

use crate::text::{is_space, pattern};

static SEVERAL_SPACES: LazyLock<Regex> = LazyLock::new(|| pattern(r"[\s\x1c-\x1f]{2,}"));

/// How many edits turn references into hypotheses, and how long the references are.
///
/// Counts of many utterances add up; the rate of the sum is the rate of the corpus, in which a long utterance
/// weighs more than a short one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Substitutions, deletions and insertions of a shortest edit (Levenshtein).
    pub edits: u64,
    /// Length of the references.
    pub length: u64,
}

impl Counts {
    /// Edits per unit of reference: 0.25 is 25 %, and more than 1 is possible.
    ///
    /// Without any reference it is the number of edits, all of them insertions, as in jiwer: a hypothesis for
    /// silence is not free.
    pub fn rate(self) -> f64 {
        self.edits as f64 / self.length.max(1) as f64
    }
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            edits: self.edits + other.edits,
            length: self.length + other.length,
        }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), Add::add)
    }
}

/// Counts in words of the strings as they are: `jiwer.wer`.
///
/// Words are separated by a space or by two or more white-space characters; a lone tab is part of a word.
///
/// ```
/// let counts = zipper_score::word_counts("three hundred twenty four", "three hundred forty four");
/// assert_eq!((counts.edits, counts.length), (1, 4));
/// assert_eq!(counts.rate(), 0.25);
/// ```
pub fn word_counts(reference: &str, hypothesis: &str) -> Counts {
    let (reference, hypothesis) = (separate_words(reference), separate_words(hypothesis));
    counts(&words(&reference), &words(&hypothesis))
}

/// Counts in characters (Unicode scalar values, spaces included) of the trimmed strings: `jiwer.cer`.
pub fn char_counts(reference: &str, hypothesis: &str) -> Counts {
    let characters = |text: &str| text.trim_matches(is_space).chars().collect();
    counts::<char>(&characters(reference), &characters(hypothesis))
}

fn separate_words(text: &str) -> Cow<'_, str> {
    SEVERAL_SPACES.replace_all(text.trim_matches(is_space), " ")
}

fn words(separated: &str) -> Vec<&str> {
    separated.split(' ').filter(|word| !word.is_empty()).collect()
}

fn counts<T: PartialEq>(reference: &Vec<T>, hypothesis: &Vec<T>) -> Counts {
    Counts {
        edits: generic_levenshtein(reference, hypothesis) as u64,
        length: reference.len() as u64,
    }
}
