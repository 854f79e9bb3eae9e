//! Dictation: a spelling of a text with mistakes, in the place where speech will be, and then the text.
//!
//! A projector leans on what large language models do anyway, to repeat what stands before them. A small one that reads single sentences
//! never learns it, and its speech model would know its sentences and not listen. The spelling is like what
//! `model.projector.ctc_output: tokens` makes of speech: an embedding for each character that is heard, some of them blurred with another one.
//! Text in the place of speech is known from MAESTRO (Chen et al., arXiv 2204.03409) and JOIST (Sainath et al., arXiv 2210.07353).

use std::collections::BTreeSet;

use rand::RngExt;
use rand::seq::IndexedRandom;

/// What is dictated in a part of the training. Who begins with the last lesson learns nothing in as many steps.
#[derive(Debug, Clone, Copy)]
struct Lesson {
    /// Share of the training at which it ends.
    until: f64,
    /// Most words of a text, of which few have as many.
    words: usize,
    /// At most this share of the characters, drawn for each text, is heard as another one, not at all, or behind one that is not there.
    misheard: f64,
    /// Share of what is heard that is blurred with another character.
    blurred: f64,
    /// Share of the characters that stand wrongly in what has been written when the next one is asked for. Who has seen only their own
    /// writing without mistakes loses their place at the first one, and writes the same words again without end.
    miswritten: f64,
}

const LESSONS: [Lesson; 3] = [
    Lesson {
        until: 0.3,
        words: 12,
        misheard: 0.0,
        blurred: 0.0,
        miswritten: 0.0,
    },
    Lesson {
        until: 0.5,
        words: 24,
        misheard: 0.15,
        blurred: 0.3,
        miswritten: 0.05,
    },
    Lesson {
        until: 1.0,
        words: 40,
        misheard: 0.3,
        blurred: 0.3,
        miswritten: 0.1,
    },
];
/// How many words of a text are words of the language, each drawn by itself; the others are letters at random. Nobody knows such a text by
/// heart, and there is no other way to it than to read what is dictated.
const KNOWN: f64 = 0.8;
const LETTERS: std::ops::RangeInclusive<usize> = 1..=8;
/// The least weight of the right one of two characters that are blurred.
const CLEAREST: std::ops::Range<f64> = 0.5..1.0;

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

/// A text that is dictated.
pub(crate) struct Dictated {
    pub(crate) text: Vec<i64>,
    /// What is heard of it.
    pub(crate) spelling: Vec<Input>,
    /// What has been written of it when the next character is asked for, as long as the text.
    pub(crate) written: Vec<i64>,
}

/// Dictates texts of one language.
pub(crate) struct Dictation {
    space: i64,
    words: Vec<Vec<i64>>,
    letters: Vec<i64>,
}

impl Dictation {
    /// Dictates words and letters that occur in `texts`, words as often as they do; `space` is a token id.
    ///
    /// # Panics
    /// If there is nothing but spaces in `texts`.
    pub(crate) fn new(texts: &[Vec<i64>], space: i64) -> Self {
        let words: Vec<Vec<i64>> = texts
            .iter()
            .flat_map(|text| text.split(|&id| id == space))
            .filter(|word| !word.is_empty())
            .map(<[i64]>::to_vec)
            .collect();
        assert!(!words.is_empty(), "a text has words");
        Self {
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

    /// A text for someone who is at `progress`, 0 to 1, in the training.
    pub(crate) fn draw(&self, progress: f64, random: &mut impl RngExt) -> Dictated {
        let lesson = LESSONS.iter().find(|lesson| progress < lesson.until);
        let lesson = lesson.unwrap_or(&LESSONS[LESSONS.len() - 1]);
        let most = random.random_range(1..=lesson.words);
        let words: Vec<Vec<i64>> = (0..random.random_range(1..=most))
            .map(|_| self.word(random))
            .collect();
        let text = words.join(&self.space);
        let heard = self.heard(&text, lesson.misheard * random.random::<f64>(), random);
        let spelling = heard
            .into_iter()
            .map(|id| self.blurred(id, lesson.blurred, random))
            .collect();
        let written = text
            .iter()
            .map(|&id| {
                let is_wrong = random.random_bool(lesson.miswritten);
                if is_wrong { self.letter(random) } else { id }
            })
            .collect();
        Dictated {
            text,
            spelling,
            written,
        }
    }

    fn word(&self, random: &mut impl RngExt) -> Vec<i64> {
        if random.random_bool(KNOWN) {
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

    fn blurred(&self, id: i64, share: f64, random: &mut impl RngExt) -> Input {
        let mut input = Input::clear(id);
        if random.random_bool(share) {
            input.other = self.letter(random);
            input.weight = random.random_range(CLEAREST);
        }
        input
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// What is dictated is made of the language's words and letters: first as it is, in the end with mistakes and blurred.
    #[test]
    fn lessons_become_harder() {
        let texts = [vec![5, 6, 1, 7], vec![8, 9, 8]];
        let dictation = Dictation::new(&texts, 1);
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let ids = |spelling: &[Input]| spelling.iter().map(|input| input.id).collect::<Vec<i64>>();
        let (mut known, mut misheard, mut miswritten, mut blurred) = (0, 0, 0, 0);
        for _ in 0..50 {
            let Dictated {
                text,
                spelling,
                written,
            } = dictation.draw(0.1, &mut random);
            assert!(text.iter().all(|id| [1, 5, 6, 7, 8, 9].contains(id)), "{text:?}");
            assert_eq!(ids(&spelling), text);
            assert_eq!(written, text);
            assert!(spelling.iter().all(|input| input.weight >= 1.0));
        }
        for _ in 0..200 {
            let Dictated {
                text,
                spelling,
                written,
            } = dictation.draw(1.0, &mut random);
            known += text
                .split(|&id| id == 1)
                .filter(|word| *word == [8, 9, 8])
                .count();
            misheard += usize::from(ids(&spelling) != text);
            assert_eq!(written.len(), text.len());
            miswritten += usize::from(written != text);
            blurred += spelling.iter().filter(|input| input.weight < 1.0).count();
            assert!(spelling.iter().all(|input| (0.5..=1.0).contains(&input.weight)));
        }
        assert!(known > 150, "{known}");
        assert!((150..200).contains(&misheard), "{misheard}");
        assert!((100..200).contains(&miswritten), "{miswritten}");
        assert!(blurred > 500, "{blurred}");
    }
}
