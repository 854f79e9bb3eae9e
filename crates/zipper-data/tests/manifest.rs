//! Goal: a corpus is what its manifests say, every bad line is reported with its place, and nothing is left out
//! without being counted. Method: small manifests, good and bad; no audio is read.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use zipper_data::{Corpus, DurationLimits, ManifestErrors, Utterance, load_corpus};

const LIMITS: DurationLimits = DurationLimits {
    min_seconds: 0.5,
    max_seconds: 30.0,
};

struct Fixture {
    folder: TempDir,
    manifests: Vec<PathBuf>,
}

impl Fixture {
    fn new(manifests: &[&str]) -> Self {
        let folder = TempDir::new().expect("temporary folder");
        let paths = (0..manifests.len())
            .map(|index| folder.path().join(format!("{index}.jsonl")))
            .collect();
        let fixture = Self {
            folder,
            manifests: paths,
        };
        for (path, text) in fixture.manifests.iter().zip(manifests) {
            fs::write(path, text).expect("temporary folder");
        }
        fixture
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn load(&self) -> Result<Corpus, ManifestErrors> {
        load_corpus(&self.manifests, &["en", "fr", "th"].map(str::to_owned), LIMITS)
    }

    /// The problems, each without the folder.
    fn problems(&self) -> Vec<String> {
        let folder = format!("{}/", self.path().display());
        let errors = self.load().expect_err("a bad manifest");
        errors
            .problems
            .iter()
            .map(|problem| problem.to_string().replace(&folder, ""))
            .collect()
    }
}

fn line(id: &str, lang: &str, duration: f64, text: &str) -> String {
    format!(
        r#"{{"id": "{id}", "audio_filepath": "{id}.wav", "duration": {duration}, "text": "{text}", "lang": "{lang}"}}"#
    ) + "\n"
}

#[test]
fn lines_become_utterances() {
    let text = concat!(
        "\u{feff}",
        r#"{"id": "a", "audio_filepath": "clips/a.flac", "duration": 2, "text": " one ", "lang": "fr"}"#,
        "\r\n\n",
        r#"{"id": "b", "audio_filepath": "/data/b.wav", "offset": 1.5, "duration": 3.25, "text": "สอง", "lang": "th", "speaker": 7}"#,
        "\n",
        r#"{"id": "c", "audio_filepath": "file:///data/with%20space.wav", "offset": null, "duration": 1, "text": "3", "lang": "en"}"#,
    );
    let fixture = Fixture::new(&[text]);
    let utterance = |id: &str, path: PathBuf, offset, duration, text: &str, language, lang: &str| Utterance {
        id: id.to_owned(),
        audio_filepath: path,
        offset,
        duration,
        text: text.to_owned(),
        language,
        lang: lang.to_owned(),
    };
    let corpus = fixture.load().expect("a good manifest");
    let expected = [
        utterance(
            "a",
            fixture.path().join("clips/a.flac"),
            None,
            2.0,
            "one",
            1,
            "fr",
        ),
        utterance("b", "/data/b.wav".into(), Some(1.5), 3.25, "สอง", 2, "th"),
        utterance("c", "/data/with space.wav".into(), None, 1.0, "3", 0, "en"),
    ];
    assert_eq!(corpus.utterances, expected);
}

/// Each bad line is told with file, line, what is wrong and, where one can guess, what was meant.
#[test]
fn every_bad_line_is_reported() {
    let bad = [
        r#"{"id": "a""#,
        r#"["a"]"#,
        r#"{"id": "c", "audio_path": "c.wav", "duration": 1.0, "language": "en"}"#,
        r#"{"id": 4, "audio_filepath": "d.wav", "duration": "1.0", "text": null, "lang": ["en"]}"#,
        r#"{"id": "e", "audio_filepath": "e.wav", "duration": 1.0, "text": "x", "lang": "en-US"}"#,
        r#"{"id": "f", "audio_filepath": "f.wav", "duration": 1.0, "text": "x", "lang": "zz"}"#,
        r#"{"id": "g", "audio_filepath": "g.wav", "duration": -1.0, "text": "x", "lang": "en", "offset": -0.5}"#,
        r#"{"id": "h", "audio_filepath": "h.wav", "duration": NaN, "text": "x", "lang": "en"}"#,
        r#"{"id": "", "audio_filepath": "", "duration": 1.0, "text": "x", "lang": "en"}"#,
        r#"{"id": "j", "audio_filepath": "s3://bucket/j.wav", "duration": 1.0, "text": "x", "lang": "en"}"#,
    ];
    let fixture = Fixture::new(&[&line("good", "en", 1.0, "x"), &bad.join("\n")]);
    let expected = [
        "1.jsonl:1: not a JSON object: EOF while parsing an object (column 10)",
        "1.jsonl:2: not a JSON object: invalid type: sequence, expected a map (column 0)",
        "1.jsonl:3: missing key `audio_filepath` (found `audio_path`)",
        "1.jsonl:3: missing key `text`",
        "1.jsonl:3: missing key `lang` (found `language`)",
        "1.jsonl:4: `id` must be a string, but is a number",
        "1.jsonl:4: `duration` must be a number of seconds, but is a string",
        "1.jsonl:4: `text` must be a string, but is null",
        "1.jsonl:4: `lang` must be a string, but is a list",
        "1.jsonl:5: unknown language `en-US` (did you mean `en`); the run's languages are en, fr, th",
        "1.jsonl:6: unknown language `zz`; the run's languages are en, fr, th",
        "1.jsonl:7: `duration` must not be negative, but is -1",
        "1.jsonl:7: `offset` must not be negative, but is -0.5",
        "1.jsonl:8: not a JSON object: expected value (column 52)",
        "1.jsonl:9: `id` is empty",
        "1.jsonl:9: `audio_filepath` is empty",
        "1.jsonl:10: `audio_filepath`: s3:// is not supported yet, use a local path: `s3://bucket/j.wav`",
    ];
    assert_eq!(fixture.problems(), expected);
}

#[test]
fn a_missing_manifest_does_not_hide_the_bad_lines_of_another() {
    let mut fixture = Fixture::new(&["oops"]);
    fixture.manifests.insert(0, fixture.path().join("missing.jsonl"));
    let problems = fixture.problems();
    assert_eq!(problems.len(), 2);
    assert!(
        problems[0].starts_with("missing.jsonl: cannot read the manifest: No such file"),
        "{}",
        problems[0]
    );
    assert!(
        problems[1].starts_with("0.jsonl:1: not a JSON object"),
        "{}",
        problems[1]
    );
}

/// A manifest of another kind altogether must not fill the screen.
#[test]
fn a_long_list_of_problems_is_cut() {
    let message = Fixture::new(&[&"oops\n".repeat(25)])
        .load()
        .expect_err("a bad manifest")
        .to_string();
    let lines: Vec<&str> = message.lines().collect();
    assert_eq!(lines.len(), 22);
    assert_eq!(
        (lines[0], lines[21]),
        ("25 problems in the manifests", "  and 5 more")
    );
}

/// What cannot be trained on is left out and counted, once, and the rest is kept in order.
#[test]
fn what_is_left_out_is_reported() {
    let first = [
        line("a", "en", 10.0, "one"),
        line("b", "en", 0.5, "two"),
        line("a", "en", 3.0, "again"),
        line("c", "fr", 2.0, "  "),
        line("d", "fr", 30.5, "long"),
        line("e", "fr", 0.4, "short"),
        line("f", "fr", 30.0, "trente"),
    ];
    let second = line("b", "fr", 3.0, "in another file");
    let corpus = Fixture::new(&[&first.concat(), &second, ""])
        .load()
        .expect("good manifests");
    let ids: Vec<&str> = corpus
        .utterances
        .iter()
        .map(|utterance| utterance.id.as_str())
        .collect();
    assert_eq!(ids, ["a", "b", "f"]);
    let report = &corpus.report;
    assert_eq!(report.duplicate_ids, ["a", "b"]);
    assert_eq!(report.empty_texts, ["c"]);
    assert_eq!(report.too_long, ["d"]);
    assert_eq!(report.too_short, ["e"]);
    let amounts: Vec<(&str, usize, f64, usize)> = report
        .languages
        .iter()
        .map(|l| (l.lang.as_str(), l.utterances, l.seconds, l.characters))
        .collect();
    assert_eq!(
        amounts,
        [("en", 2, 10.5, 6), ("fr", 1, 30.0, 6), ("th", 0, 0.0, 0)]
    );
    assert_eq!(report.warnings.len(), 2, "{:?}", report.warnings);
    assert!(
        report.warnings[0].ends_with("2.jsonl` has no utterances"),
        "{}",
        report.warnings[0]
    );
    assert_eq!(report.warnings[1], "language `th` has no utterances");
}

#[test]
fn the_report_is_a_small_table() {
    let lines: String = (0..8)
        .map(|n| line(&format!("u{n}"), "en", 0.1 + f64::from(n) * 450.0, "x"))
        .collect();
    let limits = DurationLimits {
        min_seconds: 0.0,
        max_seconds: 1000.0,
    };
    let fixture = Fixture::new(&[&lines]);
    let corpus =
        load_corpus(&fixture.manifests, &["en", "fr"].map(str::to_owned), limits).expect("a good manifest");
    let expected = "\
language  utterances      hours
en                 3      0.375
fr                 0      0.000
all                3      0.375
left out, too long: 5 (u3, u4, u5, u6, u7)
warning: language `fr` has no utterances";
    assert_eq!(corpus.report.to_string(), expected);
}
