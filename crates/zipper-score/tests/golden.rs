//! Goal: the normalizers and the counts equal those of transformers and jiwer.
//! Method: compare with their answers, written by `golden/make_golden.py`.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use zipper_score::{Counts, char_counts, normalize, normalize_english, word_counts};
use zipper_types::Normalizer;

#[derive(Deserialize)]
struct NormalizerCase {
    text: String,
    basic: String,
    letters: String,
    english: String,
}

#[derive(Deserialize)]
struct ErrorRates {
    pairs: Vec<PairCase>,
    corpus: Rates,
}

#[derive(Deserialize)]
struct PairCase {
    reference: String,
    hypothesis: String,
    words: Counts,
    characters: Counts,
    #[serde(flatten)]
    rates: Rates,
}

#[derive(Deserialize)]
struct Rates {
    wer: f64,
    cer: f64,
}

fn golden<T: DeserializeOwned>(path: &Path) -> T {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn committed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

/// The committed cases, or a larger set made for a search by hand.
fn normalizer_cases() -> Vec<NormalizerCase> {
    let path = std::env::var_os("ZIPPER_GOLDEN_NORMALIZERS")
        .map_or_else(|| committed("normalizers.json"), PathBuf::from);
    golden(&path)
}

/// Reports every difference at once, with the text that shows it.
fn assert_all_equal(expected: impl Fn(&NormalizerCase) -> &str, actual: impl Fn(&str) -> String) {
    let cases = normalizer_cases();
    let differences: Vec<String> = cases
        .iter()
        .map(|case| (case, actual(&case.text)))
        .filter(|(case, actual)| actual != expected(case))
        .map(|(case, actual)| {
            format!(
                "text     {:?}\nexpected {:?}\nactual   {actual:?}",
                case.text,
                expected(case)
            )
        })
        .collect();
    assert!(
        differences.is_empty(),
        "{} of {} texts differ:\n{}",
        differences.len(),
        cases.len(),
        differences
            .iter()
            .take(10)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n\n")
    );
}

#[test]
fn basic_normalizer_equals_whispers() {
    assert_all_equal(|case| &case.basic, |text| normalize(Normalizer::Basic, text));
}

#[test]
fn basic_normalizer_splitting_letters_equals_whispers() {
    assert_all_equal(
        |case| &case.letters,
        |text| normalize(Normalizer::BasicSplit, text),
    );
}

#[test]
fn english_normalizer_equals_whispers() {
    assert_all_equal(|case| &case.english, normalize_english);
    assert_all_equal(|case| &case.english, |text| normalize(Normalizer::English, text));
}

#[test]
fn counts_and_rates_of_a_pair_equal_jiwers() {
    let golden: ErrorRates = golden(&committed("error_rates.json"));
    for PairCase {
        reference,
        hypothesis,
        words,
        characters,
        rates,
    } in golden.pairs
    {
        let (actual_words, actual_characters) = (
            word_counts(&reference, &hypothesis),
            char_counts(&reference, &hypothesis),
        );
        assert_eq!(actual_words, words, "words of {reference:?} and {hypothesis:?}");
        assert_eq!(
            actual_characters, characters,
            "characters of {reference:?} and {hypothesis:?}"
        );
        assert_close(actual_words.rate(), rates.wer);
        assert_close(actual_characters.rate(), rates.cer);
    }
}

/// Pairs with an empty reference are among them: their insertions count, their length is nothing.
#[test]
fn rates_of_a_corpus_equal_jiwers() {
    let golden: ErrorRates = golden(&committed("error_rates.json"));
    let total = |count: fn(&str, &str) -> Counts| -> Counts {
        golden
            .pairs
            .iter()
            .map(|pair| count(&pair.reference, &pair.hypothesis))
            .sum()
    };
    assert_close(total(word_counts).rate(), golden.corpus.wer);
    assert_close(total(char_counts).rate(), golden.corpus.cer);
}

fn assert_close(actual: f64, expected: f64) {
    assert!((actual - expected).abs() < 1e-12, "{actual} is not {expected}");
}
