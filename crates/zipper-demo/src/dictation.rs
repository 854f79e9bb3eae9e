//! Dictation: a blurred, stretched spelling of a text, in the place where speech will be, and then the text.
//!
//! A projector leans on what large language models do anyway, to repeat what stands before them. A small one that reads single sentences
//! never learns it, and its speech model would know its sentences and not listen. Stretching text to the rate of speech
//! is how text without audio is given to speech models elsewhere: Chen et al., MAESTRO, arXiv 2204.03409; Sainath et al., JOIST,
//! arXiv 2210.07353.

use rand::RngExt;
use rand::seq::{IndexedRandom, SliceRandom};

/// Of dictated texts, those whose words are shuffled: nobody knows them by heart.
const SHUFFLED: f64 = 0.5;
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

/// Spells texts.
pub(crate) struct Dictation {
    /// Share of rows.
    share: f64,
    silence: i64,
    space: i64,
}

impl Dictation {
    /// Dictates a `share` of the texts; `silence` and `space` are token ids.
    pub(crate) fn new(share: f64, silence: i64, space: i64) -> Self {
        Self {
            share,
            silence,
            space,
        }
    }

    /// A text to dictate in place of `text`, and its spelling, if this row is to be dictated.
    pub(crate) fn draw(&self, text: &[i64], random: &mut impl RngExt) -> Option<(Vec<i64>, Vec<Input>)> {
        if self.share == 0.0 || !random.random_bool(self.share) {
            return None;
        }
        let text = if random.random_bool(SHUFFLED) {
            self.shuffled(text, random)
        } else {
            text.to_vec()
        };
        let spelling = self.spelling(&text, random);
        Some((text, spelling))
    }

    fn shuffled(&self, text: &[i64], random: &mut impl RngExt) -> Vec<i64> {
        let mut words: Vec<&[i64]> = text.split(|&id| id == self.space).collect();
        words.shuffle(random);
        words.join(&self.space)
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

    /// Texts stay what they are but for the order of their words, and a spelling is long enough to hear every character.
    #[test]
    fn spellings_stretch_their_text() {
        let dictation = Dictation::new(1.0, 0, 1);
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let text = [5, 6, 1, 7, 1, 8, 9, 8];
        let (mut characters, mut frames) = (0, 0);
        for _ in 0..200 {
            let (dictated, spelling) = dictation.draw(&text, &mut random).unwrap();
            let words = |text: &[i64]| {
                let mut words: Vec<Vec<i64>> = text.split(|&id| id == 1).map(<[i64]>::to_vec).collect();
                words.sort();
                words
            };
            assert_eq!(words(&dictated), words(&text));
            characters += dictated.len();
            frames += spelling.len();
            assert!(
                spelling
                    .iter()
                    .all(|frame| frame.id == 0 || text.contains(&frame.id))
            );
            assert!(spelling.iter().all(|frame| (0.5..=1.0).contains(&frame.weight)));
        }
        assert!(frames > characters);
        assert!(Dictation::new(0.0, 0, 1).draw(&text, &mut random).is_none());
    }
}
