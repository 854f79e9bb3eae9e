//! Goal: each rule for scoring and for targets does what its name says, to real strings of several scripts.
//! Method: counted by hand.

use zipper_score::{Counts, normalize, score, target};
use zipper_types::{Normalizer, Scoring, TextNormalization};

fn rule(normalizer: Normalizer, remove_repetitions: bool) -> Scoring {
    Scoring {
        normalizer,
        remove_repetitions,
    }
}

fn counts(edits: u64, length: u64) -> Counts {
    Counts { edits, length }
}

#[test]
fn normalizers_are_those_that_are_named() {
    let text = "Mr. Müller said: “Twenty-one!”";
    for (normalizer, expected) in [
        (Normalizer::English, "mister muller said 21"),
        (Normalizer::Basic, "mr müller said twenty one"),
        (
            Normalizer::BasicSplit,
            "m r m ü l l e r s a i d t w e n t y o n e",
        ),
        (Normalizer::None, text),
    ] {
        assert_eq!(normalize(normalizer, text).trim(), expected, "{normalizer:?}");
    }
    assert_eq!(
        normalize(Normalizer::BasicSplit, "東京です。").trim(),
        "東 京 で す"
    );
    assert_eq!(Normalizer::of_language("en"), Normalizer::English);
    assert_eq!(Normalizer::of_language("ja"), Normalizer::Basic);
}

/// Where letters are split, both figures count them and no spaces; else characters count with their spaces.
#[test]
fn split_letters_make_one_figure() {
    let (reference, hypothesis) = ("今日は 晴れ。", "今日は雨");
    let split = score(rule(Normalizer::BasicSplit, false), reference, hypothesis);
    assert_eq!((split.wer, split.cer), (counts(2, 5), counts(2, 5)));
    let whole = score(rule(Normalizer::Basic, false), reference, hypothesis);
    assert_eq!((whole.wer, whole.cer), (counts(2, 2), counts(3, 6)));
}

#[test]
fn without_a_normalizer_case_and_punctuation_count() {
    for (reference, hypothesis) in [("Guten Tag.", "guten tag"), ("Привет, Мир", "привет мир")]
    {
        assert_eq!(
            score(rule(Normalizer::Basic, false), reference, hypothesis).wer,
            counts(0, 2)
        );
        assert_eq!(
            score(rule(Normalizer::None, false), reference, hypothesis).wer,
            counts(2, 2)
        );
    }
}

/// A loop counts once, whatever its case and punctuation; without the rule every turn of it is an error.
#[test]
fn loops_count_once_in_hypotheses_only() {
    let loops = |phrase: &str| phrase.repeat(30);
    for (normalizer, reference, hypothesis, without, with) in [
        (
            Normalizer::English,
            "thank you",
            loops("Thank you. Thank you! "),
            counts(118, 2),
            counts(0, 2),
        ),
        (
            Normalizer::Basic,
            "да",
            loops("Да, да. "),
            counts(59, 1),
            counts(0, 1),
        ),
        (
            Normalizer::Basic,
            "vâng ạ",
            loops("vâng ạ "),
            counts(58, 2),
            counts(0, 2),
        ),
        (
            Normalizer::BasicSplit,
            "ありがとう",
            loops("ありがとう、"),
            counts(145, 5),
            counts(0, 5),
        ),
        (
            Normalizer::Basic,
            "谢谢",
            loops("谢谢"),
            counts(1, 1),
            counts(1, 1),
        ),
        // English numbers are digits by then.
        (
            Normalizer::English,
            "one",
            loops("one "),
            counts(1, 1),
            counts(1, 1),
        ),
    ] {
        let found = |remove| score(rule(normalizer, remove), reference, &hypothesis).wer;
        assert_eq!((found(false), found(true)), (without, with), "{reference}");
    }
    let loops = loops("ja ");
    assert_eq!(
        score(rule(Normalizer::Basic, true), &loops, "ja").wer,
        counts(29, 30),
        "a reference is never changed"
    );
}

#[test]
fn targets_are_written_as_configured() {
    for (text, lowercase, basic) in [
        ("Ça va? (rires) OK!", "ça va? (rires) ok!", "ça va ok"),
        ("ΟΔΟΣ ΑΘΗΝΩΝ, 5", "οδος αθηνων, 5", "οδος αθηνων 5"),
        // The dot of the small i is a mark that does not compose.
        ("İstanbul’da", "i\u{307}stanbul’da", "i stanbul da"),
        ("「はい」。", "「はい」。", "はい"),
        ("...", "...", ""),
    ] {
        assert_eq!(target(TextNormalization::None, text), text);
        assert_eq!(target(TextNormalization::Lowercase, text), lowercase);
        assert_eq!(target(TextNormalization::Basic, text), basic);
    }
}
