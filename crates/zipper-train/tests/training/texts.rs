//! Goal: `data.text_normalization` changes the transcripts that are learnt and nothing that is shown.
//! Method: the fixture's transcripts in capitals, which its tokenizer does not have.

use std::fs;

use serde_json::Value;
use zipper_config::RunConfig;
use zipper_data::Utterance;
use zipper_tests::Fixture;
use zipper_train::evaluate::{DecodeOptions, decode};

use crate::support::{alone, config, train};

/// The fixture's run with its training transcripts in capitals and `rules` for them.
fn in_capitals(fixture: &Fixture, rules: &str) -> RunConfig {
    let corpus = fixture.path().join("corpus");
    let text = fs::read_to_string(corpus.join("train.jsonl")).expect("the fixture has it");
    let lines = text.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).expect("a manifest has JSON lines");
        line["text"] = line["text"].as_str().expect("a text").to_uppercase().into();
        line.to_string() + "\n"
    });
    let capitals = corpus.join("capitals.jsonl");
    fs::write(&capitals, lines.collect::<String>()).expect("the fixture is writable");
    let set = [
        format!("data.train=[{}]", capitals.display()),
        format!("data.text_normalization={rules}"),
    ];
    zipper_config::load(&fixture.path().join("run.yaml"), &set).expect("a valid configuration")
}

/// Losses of utterances outside of training, and what is shown of them.
fn measured(config: &RunConfig) -> Vec<(f64, String)> {
    let session = alone(config);
    let corpus = session.corpus();
    let utterances: Vec<&Utterance> = corpus.iter().flatten().collect();
    let options = DecodeOptions {
        silenced: false,
        with_nll: true,
        detect: false,
    };
    decode(session.replica(), &utterances, options, |_| true)
        .expect("the audio can be read")
        .expect("nothing stopped it")
        .into_iter()
        .map(|decoded| (decoded.nll.expect("it was asked for").0, decoded.reference))
        .collect()
}

#[test]
fn what_is_learnt_is_normalized_and_what_is_shown_is_not() {
    let fixture = Fixture::new();
    let small = config(&fixture, |_| ());
    let expected = train(&mut alone(&small), 8);
    for rules in ["{default: lowercase}", "{en: basic, de: lowercase, vi: basic}"] {
        let config = in_capitals(&fixture, rules);
        assert_eq!(train(&mut alone(&config), 8), expected, "{rules}");
        let (ours, theirs) = (measured(&config), measured(&small));
        for ((loss, shown), (expected, text)) in ours.into_iter().zip(theirs) {
            assert!((loss - expected).abs() < 1e-9, "{loss} and {expected}");
            assert_eq!(shown, text.to_uppercase());
        }
    }
    let german_only = train(&mut alone(&in_capitals(&fixture, "{de: lowercase}")), 1);
    let none = train(&mut alone(&in_capitals(&fixture, "{}")), 1);
    let first = [expected[0], german_only[0], none[0]];
    let differ = |a: usize, b: usize| (first[a] - first[b]).abs() > 1e-9;
    assert!(
        differ(0, 1) && differ(1, 2),
        "each language has its own: {first:?}"
    );
}
