//! Goal: utterances add up to corpus rates by language and overall, whichever way they are split and stored.
//! Method: small hand-counted reports.

use zipper_score::{Counts, Headline, Report, ReportBuilder, UtteranceScore, score};
use zipper_types::Scoring;

fn report(cer_languages: &[&str], utterances: &[(&str, &str, &str)]) -> Report {
    let mut builder = ReportBuilder::new(cer_languages);
    for (lang, reference, hypothesis) in utterances {
        builder.add(lang, score(Scoring::of_language(lang), reference, hypothesis));
    }
    builder.finish()
}

const UTTERANCES: [(&str, &str, &str); 5] = [
    ("en", "Twenty-one!", "21"),
    ("en", "the colour of it", "the color off"),
    ("ja", "にじゅういち", "にじゅうに"),
    ("de", "", "äh"),
    ("de", "ein hundert", "einhundert"),
];

#[test]
fn counts_add_up_by_language_and_overall() {
    let report = report(&["ja", "th"], &UTTERANCES);

    let english = &report.by_language["en"];
    assert_eq!((english.utterances, english.headline), (2, Headline::Wer));
    assert_eq!(
        english.wer,
        Counts { edits: 2, length: 5 },
        "`of it` -> `off`; numbers and spelling agree"
    );

    let japanese = &report.by_language["ja"];
    assert_eq!((japanese.utterances, japanese.headline), (1, Headline::Cer));
    assert_eq!(japanese.cer, Counts { edits: 2, length: 6 });

    let german = &report.by_language["de"];
    assert_eq!(
        german.wer,
        Counts {
            edits: 1 + 2,
            length: 2
        },
        "words for an empty reference are insertions"
    );

    assert_eq!(report.overall.utterances, 5);
    assert_eq!(
        report.overall.wer,
        Counts {
            edits: 2 + 1 + 3,
            length: 5 + 1 + 2
        }
    );
    assert_eq!(
        report.overall.cer,
        report.by_language.values().map(|language| language.cer).sum()
    );
}

#[test]
fn parts_merge_to_the_whole() {
    let whole = report(&["ja"], &UTTERANCES);
    for split in 0..=UTTERANCES.len() {
        let (left, right) = UTTERANCES.split_at(split);
        let mut merged = report(&["ja"], left);
        merged.merge(&report(&["ja"], right));
        assert_eq!(merged, whole, "split at {split}");
    }
}

#[test]
fn a_report_survives_json() {
    let report = report(&["ja"], &UTTERANCES);
    let json = serde_json::to_string(&report).expect("a report is plain data");
    assert_eq!(
        serde_json::from_str::<Report>(&json).expect("what was written can be read"),
        report
    );
    assert!(
        json.contains(r#""ja":{"utterances":1,"wer":{"edits":1,"length":1},"#),
        "{json}"
    );
}

#[test]
fn the_rate_of_an_empty_reference_is_its_insertions() {
    let UtteranceScore { wer, .. } = score(Scoring::of_language("fr"), "(rires)", "ah bon");
    assert_eq!(wer, Counts { edits: 2, length: 0 });
    assert!((wer.rate() - 2.0).abs() < f64::EPSILON);
    assert!(Counts::default().rate().abs() < f64::EPSILON);
}
