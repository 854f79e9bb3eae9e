//! Dictation: a blurred, stretched spelling of a text, in the place where speech will be, and then the text.
//!
//! A projector leans on what large language models do anyway, to repeat what stands before them. A small one that reads single sentences
//! never learns it, and its speech model would know its sentences and not listen. Stretching text to the rate of speech
//! is how text without audio is given to speech models elsewhere: Chen et al., MAESTRO, arXiv 2204.03409; Sainath et al., JOIST,
//! arXiv 2210.07353.

use std::collections::BTreeSet;

use rand::RngExt;
use rand::seq::IndexedRandom;

/// Words of a dictated text that are words of the language, each drawn by itself; the others are letters of the language at random. Nobody
/// knows such a text by heart, and there is no other way to it than to read what is dictated.
const KNOWN: f64 = 0.5;
const WORDS: std::ops::RangeInclusive<usize> = 1..=6;
const LETTERS: std::ops::RangeInclusive<usize> = 1..=8;
/// How many frames a character lasts; none where it is swallowed.
const FRAMES: [usize; 16] = [0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 4];
/// Characters that are heard as another one.
const MISHEARD: f64 = 0.05;
/// Frames that are blurred with another character.
const BLURRED: f64 = 0.3;
/// Least weight of the right character in a blurred frame.
const CLEAREST: std::ops::Range<f64> = 0.5..1.0;
/// Silences of up to [`SILENCE`] frames, by character.
const SILENT: f64 = 0.05;
const SILENCE: usize = 4;

/// Share of the training in which a character is one frame, as clear as can be.
const EASY: f64 = 0.4;

/// What a position of a row holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Input {
    pub(crate) id: i64,
    /// Blended into it.
    pub(crate) other: i64,
    /// Weight of `id`; the rest is that of `other`.
    pub(crate) weight: f64,
}

impl Input {
    /// A token by itself.
    pub(crate) fn clear(id: i64) -> Self {
        Self {
            id,
            other: id,
            weight: 1.0,
        }
    }
}

/// Dictates texts of one language.
pub(crate) struct Dictation {
    silence: i64,
    space: i64,
    words: Vec<Vec<i64>>,
    letters: Vec<i64>,
}

impl Dictation {
    /// Dictates words and letters that occur in `texts`, as often as they do; `silence` and `space` are token ids.
    ///
    /// # Panics
    /// If there is nothing but spaces in `texts`.
    pub(crate) fn new(texts: &[Vec<i64>], silence: i64, space: i64) -> Self {
        let words: Vec<Vec<i64>> = texts
            .iter()
            .flat_map(|text| text.split(|&id| id == space))
            .filter(|word| !word.is_empty())
            .map(<[i64]>::to_vec)
            .collect();
        assert!(!words.is_empty(), "a text has words");
        Self {
            silence,
            space,
            letters: words
                .concat()
                .into_iter()
                .collect::<BTreeSet<i64>>()
                .into_iter()
                .collect(),
            words,
        }
    }

    /// A text, and its spelling.
    pub(crate) fn draw(&self, progress: f64, random: &mut impl RngExt) -> (Vec<i64>, Vec<Input>) {
        let words: Vec<Vec<i64>> = (0..random.random_range(WORDS))
            .map(|_| self.word(random))
            .collect();
        let text = words.join(&self.space);
        let spelling = if progress < EASY {
            text.iter().copied().map(Input::clear).collect()
        } else {
            self.spelling(&text, random)
        };
        (text, spelling)
    }

    fn word(&self, random: &mut impl RngExt) -> Vec<i64> {
        if random.random_bool(KNOWN) {
            return self.words.choose(random).expect("a text has words").clone();
        }
        let letter = |random: &mut _| *self.letters.choose(random).expect("a word has letters");
        (0..random.random_range(LETTERS))
            .map(|_| letter(random))
            .collect()
    }

    fn spelling(&self, text: &[i64], random: &mut impl RngExt) -> Vec<Input> {
        let other = |random: &mut _| *text.choose(random).expect("a text has characters");
        let mut frames = Vec::new();
        for &id in text {
            let heard = if random.random_bool(MISHEARD) {
                other(random)
            } else {
                id
            };
            for _ in 0..*FRAMES.choose(random).expect("there are lengths") {
                let mut frame = Input::clear(heard);
                if random.random_bool(BLURRED) {
                    frame.other = other(random);
                    frame.weight = random.random_range(CLEAREST);
                }
                frames.push(frame);
            }
            if random.random_bool(SILENT) {
                let silence = Input::clear(self.silence);
                frames.extend(std::iter::repeat_n(silence, random.random_range(1..=SILENCE)));
            }
        }
        frames
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// What is dictated is made of the language's words and letters, and a spelling is long enough to hear every character.
    #[test]
    fn spellings_stretch_their_text() {
        let texts = [vec![5, 6, 1, 7], vec![8, 9, 8]];
        let dictation = Dictation::new(&texts, 0, 1);
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let (mut characters, mut frames, mut known) = (0, 0, 0);
        for _ in 0..200 {
            let (text, spelling) = dictation.draw(1.0, &mut random);
            assert!(text.iter().all(|id| [1, 5, 6, 7, 8, 9].contains(id)), "{text:?}");
            known += text
                .split(|&id| id == 1)
                .filter(|word| *word == [8, 9, 8])
                .count();
            characters += text.len();
            frames += spelling.len();
            assert!(
                spelling
                    .iter()
                    .all(|frame| frame.id == 0 || text.contains(&frame.id))
            );
            assert!(spelling.iter().all(|frame| (0.5..=1.0).contains(&frame.weight)));
        }
        assert!(known > 50, "{known}");
        assert!(frames > characters);
    }
}
