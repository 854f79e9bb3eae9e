//! Endless repetitions: what a language model writes when it has lost the thread, until it may write no more.

use std::borrow::Cow;

use unicode_segmentation::UnicodeSegmentation;

/// When a phrase counts as repeated without end.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// The longest phrase, in units.
    longest: usize,
    /// How often it may stand in a row; oftener is without end.
    most: usize,
}

/// In words. Four times `no` is speech.
const WORDS: Limits = Limits { longest: 10, most: 4 };

/// In letters (grapheme clusters), for scripts that do not separate words. Twelve zeros are a number.
const LETTERS: Limits = Limits {
    longest: 20,
    most: 12,
};

/// What a phrase is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Words first, letters then.
    Word,
    /// Letters that stand apart as words do.
    SplitLetter,
}

/// `text` with every phrase once that it repeats without end.
///
/// A phrase of 1 to 10 words that stands more than 4 times in a row becomes one; after that, so does a phrase of 1 to 20 letters that
/// stands more than 12 times in a row, spaces among the letters. From left to right, the shortest phrase first. What follows the last
/// whole repetition stays.
pub(crate) fn remove_repetitions(text: &str, unit: Unit) -> Cow<'_, str> {
    let words: Vec<&str> = text.split(' ').filter(|word| !word.is_empty()).collect();
    let limits = match unit {
        Unit::Word => WORDS,
        Unit::SplitLetter => LETTERS,
    };
    let text = once_each(&words, limits).map_or(Cow::Borrowed(text), |words| Cow::Owned(words.join(" ")));
    if unit == Unit::SplitLetter {
        return text;
    }
    let letters: Vec<&str> = text.graphemes(true).collect();
    match once_each(&letters, LETTERS) {
        Some(letters) => Cow::Owned(letters.concat()),
        None => text,
    }
}

/// `units` with every phrase once that is repeated beyond `limits`; nothing if there is none.
fn once_each<'a>(units: &[&'a str], limits: Limits) -> Option<Vec<&'a str>> {
    let mut kept = Vec::with_capacity(units.len());
    let mut rest = units;
    while !rest.is_empty() {
        let repeated = (1..=limits.longest.min(rest.len())).find_map(|length| {
            let phrase = &rest[..length];
            let times = rest
                .chunks_exact(length)
                .take_while(|next| *next == phrase)
                .count();
            (times > limits.most).then_some((length, times))
        });
        let (length, times) = repeated.unwrap_or((1, 1));
        kept.extend_from_slice(&rest[..length]);
        rest = &rest[length * times..];
    }
    (kept.len() < units.len()).then_some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_words(text: &str) -> String {
        remove_repetitions(text, Unit::Word).into_owned()
    }

    #[test]
    fn phrases_of_words_in_any_script_become_one() {
        for (text, expected) in [
            ("thank you thank you thank you thank you thank you", "thank you"),
            ("ja ja ja ja ja nein", "ja nein"),
            (
                "also danke danke danke danke danke danke schön",
                "also danke schön",
            ),
            ("شكرا شكرا شكرا شكرا شكرا شكرا جزيلا", "شكرا جزيلا"),
            ("धन्यवाद धन्यवाद धन्यवाद धन्यवाद धन्यवाद", "धन्यवाद"),
            ("và tôi và tôi và tôi và tôi và tôi và", "và tôi và"),
            ("a a a a a b b b b b b", "a b"),
        ] {
            assert_eq!(of_words(text), expected, "{text}");
        }
    }

    #[test]
    fn phrases_without_spaces_become_one() {
        let ja = "ご視聴ありがとうございました";
        assert_eq!(of_words(&format!("では{}", ja.repeat(13))), format!("では{ja}"));
        // A grapheme cluster is not taken apart: the vowel signs stay with their consonants.
        assert_eq!(of_words(&"ที่นี่".repeat(20)), "ที่นี่");
        assert_eq!(of_words(&format!("na{}", "ha".repeat(40))), "naha");
        let letters = ["は"; 13].join(" ");
        assert_eq!(remove_repetitions(&letters, Unit::SplitLetter), "は");
    }

    /// What people say stays, to the last space.
    #[test]
    fn speech_is_left_alone() {
        for text in [
            "",
            " no no no no ",
            "one  two",
            "1000000000000",
            "はははははははははははは",
            "a b a b a b a b a",
            "so so gut so so gut",
        ] {
            assert!(
                matches!(remove_repetitions(text, Unit::Word), Cow::Borrowed(same) if same == text),
                "{text}"
            );
        }
        let letters = ["は"; 12].join(" ");
        assert_eq!(remove_repetitions(&letters, Unit::SplitLetter), letters);
    }

    /// A phrase of ten words counts, one of eleven does not.
    #[test]
    fn phrases_have_a_longest_length() {
        let phrase = |words: std::ops::Range<u32>| words.map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let (ten, eleven) = (phrase(100..110), phrase(100..111));
        assert_eq!(of_words(&[ten.as_str(); 5].join(" ")), ten);
        let long = [eleven.as_str(); 5].join(" ");
        assert_eq!(of_words(&long), long);
    }
}
