//! Goal: what must hold for any strings, beyond the examples of the golden files.
//! Method: random strings, from all of Unicode and from a small alphabet that makes matches likely.

use proptest::prelude::*;
use zipper_score::{char_counts, normalize, normalize_english, score, word_counts};
use zipper_types::{Normalizer, Scoring};

/// Words over a small alphabet, so that references and hypotheses share some.
fn sentence() -> impl Strategy<Value = String> {
    prop::collection::vec("[ab]{1,2}", 0..12).prop_map(|words| words.join(" "))
}

/// Number words and numerals in any order, most of them no sensible number.
fn number_phrase() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "zero",
        "oh",
        "one",
        "twelve",
        "thirty",
        "hundred",
        "decillion",
        "fifths",
        "hundredth",
        "minus",
        "dollars",
        "cents",
        "percent",
        "per",
        "cent",
        "and",
        "a",
        "half",
        "point",
        "double",
        "7",
        "3.50",
        "$4",
        "٣.٠",
        ".",
        "%",
    ]);
    prop::collection::vec(words, 0..40).prop_map(|words| words.join(" "))
}

fn basic() -> impl Strategy<Value = Normalizer> {
    prop::sample::select(vec![Normalizer::Basic, Normalizer::BasicSplit])
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// A hypothesis equal to its reference has no edits, and the length is the reference's.
    #[test]
    fn equal_strings_have_no_edits(text in sentence()) {
        let words = word_counts(&text, &text);
        prop_assert_eq!((words.edits, words.length), (0, text.split_whitespace().count() as u64));
        let characters = char_counts(&text, &text);
        prop_assert_eq!((characters.edits, characters.length), (0, text.chars().count() as u64));
    }

    /// At least the difference of the lengths must be edited, and rewriting the longer one always suffices.
    #[test]
    fn edits_lie_between_the_difference_and_the_maximum_of_the_lengths(a in sentence(), b in sentence()) {
        for count in [word_counts, char_counts] {
            let forth = count(&a, &b);
            let back = count(&b, &a);
            prop_assert_eq!(forth.edits, back.edits);
            prop_assert!(forth.edits >= forth.length.abs_diff(back.length));
            prop_assert!(forth.edits <= forth.length.max(back.length));
        }
    }

    #[test]
    fn edits_obey_the_triangle_inequality(a in sentence(), b in sentence(), c in sentence()) {
        for count in [word_counts, char_counts] {
            prop_assert!(count(&a, &c).edits <= count(&a, &b).edits + count(&b, &c).edits);
        }
    }

    /// One more word in the hypothesis is one more edit of an equal pair.
    #[test]
    fn an_inserted_word_is_one_edit(text in sentence(), at in any::<prop::sample::Index>()) {
        let mut words: Vec<&str> = text.split_whitespace().collect();
        words.insert(at.index(words.len() + 1), "c");
        prop_assert_eq!(word_counts(&text, &words.join(" ")).edits, 1);
    }

    /// No input makes the basic normalizer panic, and it leaves no double space, capital or ASCII symbol.
    #[test]
    fn the_basic_normalizer_takes_any_text(text in any::<String>(), normalizer in basic()) {
        let normalized = normalize(normalizer, &text);
        let is_unwanted = |c: char| c.is_ascii_uppercase() || c.is_ascii_punctuation();
        prop_assert!(!normalized.contains("  ") && !normalized.contains(is_unwanted), "{:?}", normalized);
    }

    /// No input makes the English normalizer panic, and it leaves no double space.
    #[test]
    fn the_english_normalizer_takes_any_text(text in any::<String>(), phrase in number_phrase()) {
        for text in [text, phrase] {
            let normalized = normalize_english(&text);
            prop_assert!(!normalized.contains("  "), "{:?}", normalized);
        }
    }

    /// Case and punctuation around words do not count as errors.
    #[test]
    fn scores_ignore_case_and_punctuation(text in sentence(), lang in prop::sample::select(vec!["de", "ja"])) {
        let shouted = format!("{}!", text.to_uppercase().replace(' ', ", "));
        let found = score(Scoring::of_language(lang), &text, &shouted);
        prop_assert_eq!((found.wer.edits, found.cer.edits), (0, 0));
    }
}
