//! Goal: no bytes crash the reading of a manifest of utterances, and what is accepted keeps its promises.

#![no_main]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use zipper_data::{DurationLimits, load_corpus};

const LIMITS: DurationLimits = DurationLimits {
    min_seconds: 0.1,
    max_seconds: 30.0,
};

fuzz_target!(|bytes: &[u8]| {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    let file = FILE.get_or_init(|| std::env::temp_dir().join(format!("fuzz-{}.jsonl", std::process::id())));
    fs::write(file, bytes).expect("there is room");
    let languages = ["en", "de"].map(str::to_owned);
    let Ok(corpus) = load_corpus(std::slice::from_ref(file), &languages, LIMITS) else {
        return;
    };
    let mut ids = BTreeSet::new();
    for utterance in corpus.utterances {
        assert!(ids.insert(utterance.id.clone()), "`{}` is there twice", utterance.id);
        assert_eq!(languages[utterance.language], utterance.lang);
        assert!((LIMITS.min_seconds..=LIMITS.max_seconds).contains(&utterance.duration));
        assert!(!utterance.text.trim().is_empty());
    }
});
