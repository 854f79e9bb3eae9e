//! English phrases with one agreed written form: fillers, titles, contractions.

use crate::text::{Edge, replace_phrase};

/// Hesitations that are no words.
const FILLERS: [&str; 6] = ["hmm", "mm", "mhm", "mmm", "uh", "um"];

/// Whole words and their written-out form, in the order in which they are applied.
const WORDS: [(&str, &str); 35] = [
    // contractions that the endings below would get wrong
    ("won't", "will not"),
    ("can't", "can not"),
    ("let's", "let us"),
    ("ain't", "aint"),
    ("y'all", "you all"),
    ("wanna", "want to"),
    ("gotta", "got to"),
    ("gonna", "going to"),
    ("i'ma", "i am going to"),
    ("imma", "i am going to"),
    ("woulda", "would have"),
    ("coulda", "could have"),
    ("shoulda", "should have"),
    ("ma'am", "madam"),
    // titles; the space after them separates `mr.smith`
    ("mr", "mister "),
    ("mrs", "missus "),
    ("st", "saint "),
    ("dr", "doctor "),
    ("prof", "professor "),
    ("capt", "captain "),
    ("gov", "governor "),
    ("ald", "alderman "),
    ("gen", "general "),
    ("sen", "senator "),
    ("rep", "representative "),
    ("pres", "president "),
    ("rev", "reverend "),
    ("hon", "honorable "),
    ("asst", "assistant "),
    ("assoc", "associate "),
    ("lt", "lieutenant "),
    ("col", "colonel "),
    ("jr", "junior "),
    ("sr", "senior "),
    ("esq", "esquire "),
];

/// Ends of words and their written-out form, in the order in which they are applied: the perfect tenses before the
/// bare `'d` and `'s`. (`'s done` is missing because it may be "is done" or "has done".)
const ENDINGS: [(&str, &str); 14] = [
    ("'d been", " had been"),
    ("'s been", " has been"),
    ("'d gone", " had gone"),
    ("'s gone", " has gone"),
    ("'d done", " had done"),
    ("'s got", " has got"),
    ("n't", " not"),
    ("'re", " are"),
    ("'s", " is"),
    ("'d", " would"),
    ("'ll", " will"),
    ("'t", " not"),
    ("'ve", " have"),
    ("'m", " am"),
];

/// Takes the hesitations out of lower-case `text`.
pub(crate) fn remove_fillers(text: &str) -> String {
    FILLERS.iter().fold(text.to_owned(), |text, filler| {
        replace_phrase(&text, filler, "", Edge::WholeWord)
    })
}

/// Writes titles and contractions of lower-case `text` out.
pub(crate) fn write_out(text: &str) -> String {
    let words = WORDS.iter().map(|pair| (pair, Edge::WholeWord));
    let endings = ENDINGS.iter().map(|pair| (pair, Edge::EndOfWord));
    words
        .chain(endings)
        .fold(text.to_owned(), |text, ((phrase, replacement), edge)| {
            replace_phrase(&text, phrase, replacement, edge)
        })
}
