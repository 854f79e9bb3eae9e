//! Dictation: a blurred, stretched spelling of a text, in the place where speech will be, and then the text.
//!
//! A projector leans on what large language models do anyway, to repeat what stands before them. A small one that reads single sentences
//! never learns it, and its speech model would know its sentences and not listen. Stretching text to the rate of speech
//! is how text without audio is given to speech models elsewhere: Chen et al., MAESTRO, arXiv 2204.03409; Sainath et al., JOIST,
//! arXiv 2210.07353.

use std::collections::BTreeSet;

use rand::RngExt;
use rand::seq::IndexedRandom;

/// What is dictated in a part of the training. Who begins with the last lesson learns nothing in as many steps.
#[derive(Debug, Clone, Copy)]
struct Lesson {
    /// Share of the training at which it ends.
    until: f64,
    /// Most words of a text.
    words: usize,
    /// How many of them are words of the language, each drawn by itself; the others are letters at random. Nobody knows such a text by
    /// heart, and there is no other way to it than to read what is dictated.
    known: f64,
    /// Whether a character lasts several frames, some of them blurred, between silences.
    stretched: bool,
    /// At most this share of the characters, drawn for each text, is heard as another one, not at all, or behind one that is not there.
    misheard: f64,
}

const LESSONS: [Lesson; 3] = [
    Lesson {
        until: 0.3,
        words: 6,
        known: 0.5,
        stretched: false,
        misheard: 0.0,
    },
    Lesson {
        until: 0.5,
        words: 8,
        known: 0.7,
        stretched: true,
        misheard: 0.05,
    },
    Lesson {
        until: 1.0,
        words: 14,
        known: 0.9,
        stretched: true,
        misheard: 0.35,
    },
];
const LETTERS: std::ops::RangeInclusive<usize> = 1..=8;
/// How many frames a stretched character lasts.
const FRAMES: [usize; 8] = [1, 1, 1, 1, 2, 2, 2, 3];
/// Frames that are blurred with another character, and the least weight of the right one.
const BLURRED: f64 = 0.3;
const CLEAREST: std::ops::Range<f64> = 0.5..1.0;
/// Silences of up to [`SILENCE`] frames, by character.
const SILENT: f64 = 0.3;
const SILENCE: usize = 3;

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

    /// A text for someone who is at `progress`, 0 to 1, in the training, and its spelling.
    pub(crate) fn draw(&self, progress: f64, random: &mut impl RngExt) -> (Vec<i64>, Vec<Input>) {
        let lesson = LESSONS.iter().find(|lesson| progress < lesson.until);
        let lesson = lesson.unwrap_or(&LESSONS[LESSONS.len() - 1]);
        let words: Vec<Vec<i64>> = (0..random.random_range(1..=lesson.words))
            .map(|_| self.word(lesson, random))
            .collect();
        let text = words.join(&self.space);
        let heard = self.heard(&text, lesson.misheard * random.random::<f64>(), random);
        let spelling = if lesson.stretched {
            self.stretched(&heard, random)
        } else {
            heard.into_iter().map(Input::clear).collect()
        };
        (text, spelling)
    }

    fn word(&self, lesson: &Lesson, random: &mut impl RngExt) -> Vec<i64> {
        if random.random_bool(lesson.known) {
            return self.words.choose(random).expect("a text has words").clone();
        }
        (0..random.random_range(LETTERS))
            .map(|_| self.letter(random))
            .collect()
    }

    fn letter(&self, random: &mut impl RngExt) -> i64 {
        *self.letters.choose(random).expect("a word has letters")
    }

    /// The text as it is understood, `misheard` of its characters wrongly.
    fn heard(&self, text: &[i64], misheard: f64, random: &mut impl RngExt) -> Vec<i64> {
        let mut heard = Vec::new();
        for &id in text {
            if !random.random_bool(misheard) {
                heard.push(id);
                continue;
            }
            match random.random_range(0..5) {
                0 | 1 => heard.push(self.letter(random)),
                2 | 3 => {}
                _ => heard.extend([self.letter(random), id]),
            }
        }
        heard
    }

    fn stretched(&self, heard: &[i64], random: &mut impl RngExt) -> Vec<Input> {
        let mut frames = Vec::new();
        for &id in heard {
            for _ in 0..*FRAMES.choose(random).expect("there are lengths") {
                let mut frame = Input::clear(id);
                if random.random_bool(BLURRED) {
                    frame.other = self.letter(random);
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

    /// What is dictated is made of the language's words and letters: first character by character, in the end stretched and with mistakes.
    #[test]
    fn lessons_become_harder() {
        let texts = [vec![5, 6, 1, 7], vec![8, 9, 8]];
        let dictation = Dictation::new(&texts, 0, 1);
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let ids = |spelling: &[Input]| spelling.iter().map(|frame| frame.id).collect::<Vec<i64>>();
        for _ in 0..50 {
            let (text, spelling) = dictation.draw(0.1, &mut random);
            assert!(text.iter().all(|id| [1, 5, 6, 7, 8, 9].contains(id)), "{text:?}");
            assert_eq!(ids(&spelling), text);
        }
        let (mut characters, mut frames, mut known, mut mistaken) = (0, 0, 0, 0);
        for _ in 0..200 {
            let (text, spelling) = dictation.draw(1.0, &mut random);
            known += text
                .split(|&id| id == 1)
                .filter(|word| *word == [8, 9, 8])
                .count();
            characters += text.len();
            frames += spelling.len();
            let mut heard = ids(&spelling);
            heard.retain(|&id| id != 0);
            heard.dedup();
            let mut dictated = text;
            dictated.dedup();
            mistaken += usize::from(heard != dictated);
            assert!(spelling.iter().all(|frame| (0.5..=1.0).contains(&frame.weight)));
        }
        assert!(known > 200, "{known}");
        assert!(frames > characters, "{frames} of {characters}");
        assert!((100..200).contains(&mistaken), "{mistaken}");
    }
}
