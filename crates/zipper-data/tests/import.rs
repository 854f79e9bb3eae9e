//! Goal: every layout's utterances come out as they are in it, and whatever is not taken over is named. Method: small trees in the layout
//! as published, with real audio files.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use tempfile::TempDir;
use zipper_data::import::{ImportError, Imported, Layout, Request, import};
use zipper_data::{SAMPLE_RATE, decode};

fn fixture(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/chirp.{kind}"))
}

/// A corpus's folder.
struct Tree(TempDir);

impl Tree {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder can be made"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, contents: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("it is below the tree")).expect("the tree is writable");
        fs::write(path, contents).expect("the tree is writable");
    }

    /// Audio of the kind that the name says.
    fn audio(&self, name: &str) {
        let kind = name.rsplit('.').next().expect("a kind");
        self.write(name, &fs::read(fixture(kind)).expect("the fixture is there"));
    }

    fn request(&self, layout: Layout, split: &str) -> Request {
        Request {
            root: self.0.path().to_owned(),
            layout,
            split: split.to_owned(),
            lang: None,
            ids: Vec::new(),
            prefix: String::new(),
            lowercase: false,
        }
    }
}

/// Id, file below the tree, text and language of each line.
fn lines(tree: &Tree, imported: &Imported) -> Vec<(String, String, String, String)> {
    let root = std::path::absolute(tree.0.path()).expect("it is there");
    let line = |line: &zipper_data::import::Line| {
        let file = line
            .audio_filepath
            .strip_prefix(&root)
            .expect("audio is below the tree");
        let file = file.display().to_string();
        (line.id.clone(), file, line.text.clone(), line.lang.clone())
    };
    imported.lines.iter().map(line).collect()
}

fn row(id: &str, file: &str, text: &str, lang: &str) -> (String, String, String, String) {
    (id.to_owned(), file.to_owned(), text.to_owned(), lang.to_owned())
}

fn measured(kind: &str) -> f64 {
    let samples = decode(&fixture(kind), 0.0, None).expect("the fixture can be decoded");
    samples.len() as f64 / f64::from(SAMPLE_RATE)
}

const HEADER: &str = "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tdown_votes\tage\tgender\taccents\tvariant\tlocale\tsegment\n";

fn common_voice() -> Tree {
    let tree = Tree::new();
    let row = |number: u32, text: &str| {
        format!("abc\tcommon_voice_ar_{number}.mp3\tdef\t{text}\t\t2\t0\t\t\t\t\tar\t\n")
    };
    // Quotes are quotes, not the table's.
    let table = [
        HEADER.to_owned(),
        row(1, "\"مرحبا"),
        row(2, "نعم"),
        row(3, "لا"),
        row(4, " "),
    ]
    .concat();
    tree.write("train.tsv", table.as_bytes());
    tree.write(
        "clip_durations.tsv",
        b"clip\tduration[ms]\ncommon_voice_ar_1.mp3\t2500\n",
    );
    for number in 1..=4 {
        tree.audio(&format!("clips/common_voice_ar_{number}.mp3"));
    }
    tree
}

#[test]
fn common_voice_has_its_texts_and_lengths() {
    let tree = common_voice();
    let imported = import(&tree.request(Layout::CommonVoice, "train")).expect("it is Common Voice");
    let file = |number| format!("clips/common_voice_ar_{number}.mp3");
    assert_eq!(
        lines(&tree, &imported),
        [
            row("common_voice_ar_1", &file(1), "\"مرحبا", "ar"),
            row("common_voice_ar_2", &file(2), "نعم", "ar"),
            row("common_voice_ar_3", &file(3), "لا", "ar"),
        ]
    );
    assert_eq!(imported.empty_texts, ["common_voice_ar_4"]);
    assert!((imported.lines[0].duration - 2.5).abs() < 1e-9, "stated");
    assert!(
        (imported.lines[1].duration - measured("mp3")).abs() < 1e-3,
        "measured"
    );
    let amount = imported.languages["ar"];
    assert_eq!(amount.utterances, 3);
    let hours = 2.0f64.mul_add(measured("mp3"), 2.5) / 3600.0;
    assert!((amount.hours - hours).abs() < 1e-6);
}

#[test]
fn what_lists_name_is_what_comes_out() {
    let tree = common_voice();
    let list = "common_voice_ar_3.mp3\ncommon_voice_ar_9\ncommon_voice_ar_1\ncommon_voice_ar_3.mp3\n";
    tree.write("train_com_voice_ar_ids.txt", list.as_bytes());
    let ids = tree.path("train_com_voice_ar_ids.txt");
    let request = Request {
        ids: vec![ids.clone()],
        prefix: "cv-".to_owned(),
        ..tree.request(Layout::CommonVoice, "train")
    };
    let imported = import(&request).expect("the list can be read");
    let names: Vec<&str> = imported.lines.iter().map(|line| line.id.as_str()).collect();
    assert_eq!(names, ["cv-common_voice_ar_3", "cv-common_voice_ar_1"]);
    assert_eq!(imported.missing[&ids], ["common_voice_ar_9"]);
    let repeated = &imported.repeated[&ids];
    assert_eq!(
        (repeated[0].id.as_str(), repeated[0].times, repeated[0].line),
        ("common_voice_ar_3.mp3", 2, 4)
    );
}

/// Shows that an id of two lists, or of one with and without its ending, is taken once and not missing, and that ids may have folders and
/// endings themselves.
#[test]
fn what_lists_name_twice_is_taken_once() {
    let tree = common_voice();
    tree.write("one.txt", b"common_voice_ar_3\ncommon_voice_ar_1\n");
    tree.write(
        "two.txt",
        b"common_voice_ar_1\ncommon_voice_ar_2.mp3\ncommon_voice_ar_2\ncommon_voice_ar_4\n",
    );
    let request = Request {
        ids: vec![tree.path("one.txt"), tree.path("two.txt")],
        prefix: "cv-".to_owned(),
        ..tree.request(Layout::CommonVoice, "train")
    };
    let imported = import(&request).expect("the lists can be read");
    let names: Vec<&str> = imported.lines.iter().map(|line| line.id.as_str()).collect();
    assert_eq!(
        names,
        [
            "cv-common_voice_ar_3",
            "cv-common_voice_ar_1",
            "cv-common_voice_ar_2"
        ]
    );
    assert!(imported.missing.is_empty(), "{:?}", imported.missing);
    assert_eq!(imported.empty_texts, ["cv-common_voice_ar_4"]);

    let tree = kaldi("speaker/a.wav");
    tree.write("ids.txt", b"speaker/a.wav\n");
    let request = Request {
        ids: vec![tree.path("ids.txt")],
        ..tree.request(Layout::Kaldi, "")
    };
    let imported = import(&request).expect("the list can be read");
    assert_eq!(imported.lines.len(), 1, "{:?}", imported.missing);
    assert_eq!(imported.lines[0].id, "speaker/a.wav");
}

/// A Kaldi directory with one recording, which is an utterance.
fn kaldi(id: &str) -> Tree {
    let tree = Tree::new();
    tree.audio("audio/a.flac");
    let audio = tree.path("audio/a.flac");
    tree.write("wav.scp", format!("{id} {}\n", audio.display()).as_bytes());
    tree.write("text", format!("{id} a whole recording\n").as_bytes());
    tree.write("utt2lang", format!("{id} en\n").as_bytes());
    tree
}

#[test]
fn mls_and_librispeech_find_their_audio() {
    let tree = Tree::new();
    tree.write(
        "train/transcripts.txt",
        "10_20_000001\tguten tag\n10_21_000000\tja\n".as_bytes(),
    );
    tree.audio("train/audio/10/20/10_20_000001.flac");
    tree.audio("train/audio/10/21/10_21_000000.opus");
    let mut request = tree.request(Layout::Mls, "train");
    assert!(matches!(import(&request), Err(ImportError::NoLanguage { id }) if id == "10_20_000001"));
    request.lang = Some("de".to_owned());
    let imported = import(&request).expect("it is MLS");
    assert_eq!(
        lines(&tree, &imported),
        [
            row(
                "10_20_000001",
                "train/audio/10/20/10_20_000001.flac",
                "guten tag",
                "de"
            ),
            row("10_21_000000", "train/audio/10/21/10_21_000000.opus", "ja", "de"),
        ]
    );
    assert!((imported.lines[0].duration - measured("flac")).abs() < 1e-3);
    assert!((imported.lines[1].duration - measured("opus")).abs() < 1e-3);

    let tree = Tree::new();
    tree.write(
        "test-clean/84/121123/84-121123.trans.txt",
        b"84-121123-0000 GO ON\n",
    );
    tree.audio("test-clean/84/121123/84-121123-0000.flac");
    let request = Request {
        lang: Some("en".to_owned()),
        lowercase: true,
        ..tree.request(Layout::LibriSpeech, "test-clean")
    };
    let imported = import(&request).expect("it is LibriSpeech");
    let file = "test-clean/84/121123/84-121123-0000.flac";
    assert_eq!(
        lines(&tree, &imported),
        [row("84-121123-0000", file, "go on", "en")]
    );
}

#[test]
fn segments_of_msr_86k_are_parts_of_recordings() {
    let tree = Tree::new();
    tree.audio("audio/yt-one.opus");
    let segment = |sid: &str, times: &str, text: &str| format!("{{\"sid\": \"{sid}\", {times}, {text}}}");
    let segments = [
        segment(
            "one_0000",
            r#""begin_time": 0.1, "end_time": 0.3"#,
            r#""text_tn": "раз""#,
        ),
        segment(
            "one_0001",
            r#""begin_time": "0.3", "end_time": "0.45""#,
            r#""text": "два""#,
        ),
    ]
    .join(", ");
    let gone = segment(
        "gone_0000",
        r#""begin_time": 0, "end_time": 1"#,
        r#""text_tn": "нет""#,
    );
    let json = |segments: &str| {
        format!(
            "{{\"audios\": [{{\"aid\": \"yt-one\", \"segments\": [{segments}]}}, {{\"aid\": \"yt-gone\", \"segments\": [{gone}]}}]}}"
        )
    };
    tree.write("ru.json", json(&segments).as_bytes());
    tree.write("ids.txt", b"one_0001\none_0000\none_0001\none_0009\ngone_0000\n");
    let mut request = Request {
        root: tree.path("ru.json"),
        lang: Some("ru".to_owned()),
        ids: vec![tree.path("ids.txt")],
        ..tree.request(Layout::Msr86k, "")
    };
    let imported = import(&request).expect("it is MSR-86K");
    let file = "audio/yt-one.opus";
    assert_eq!(
        lines(&tree, &imported),
        [
            row("one_0001", file, "два", "ru"),
            row("one_0000", file, "раз", "ru")
        ]
    );
    let cuts: Vec<_> = imported
        .lines
        .iter()
        .map(|line| (line.offset, line.duration))
        .collect();
    assert_eq!(cuts, [(Some(0.3), 0.45 - 0.3), (Some(0.1), 0.3 - 0.1)]);
    assert!(imported.bad_audio["gone_0000"].contains("yt-gone.wav"));
    assert_eq!(imported.missing[&request.ids[0]], ["one_0009"]);
    assert_eq!(imported.repeated[&request.ids[0]][0].id, "one_0001");

    request.ids.clear();
    for (wrong, expected) in [
        (
            json(&segment(
                "x",
                r#""begin_time": 2, "end_time": 1"#,
                r#""text": "a""#,
            )),
            "segment `x` does not begin before it ends",
        ),
        (
            json(&[segments.as_str(), &segments].join(", ")),
            "id `one_0000` is there already",
        ),
        (
            "{}".to_owned(),
            "not recordings of MSR-86K: missing field `audios`",
        ),
    ] {
        tree.write("ru.json", wrong.as_bytes());
        let error = import(&request).expect_err("it cannot be taken over").to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn kaldi_directories_are_read_with_and_without_segments() {
    let tree = kaldi("rec-a");
    let imported = import(&tree.request(Layout::Kaldi, "")).expect("it is Kaldi's");
    assert_eq!(
        lines(&tree, &imported),
        [row("rec-a", "audio/a.flac", "a whole recording", "en")]
    );
    assert!((imported.lines[0].duration - measured("flac")).abs() < 1e-3);
    assert_eq!(imported.lines[0].offset, None);

    tree.write("segments", b"utt-1 rec-a 0.1 0.3\nutt-2 rec-a 0.3 0.45\n");
    tree.write("text", b"utt-1 one\nutt-2 two\n");
    tree.write("utt2lang", b"utt-1 en\nutt-2 en\n");
    let imported = import(&tree.request(Layout::Kaldi, "")).expect("it is Kaldi's");
    let cuts: Vec<_> = imported
        .lines
        .iter()
        .map(|line| (line.offset, line.duration))
        .collect();
    assert_eq!(cuts[0], (Some(0.1), 0.3 - 0.1));
    assert_eq!(cuts[1], (Some(0.3), 0.45 - 0.3));

    tree.write("wav.scp", b"rec-a sox a.flac -t wav - |\n");
    let error = import(&tree.request(Layout::Kaldi, ""))
        .expect_err("commands are not run")
        .to_string();
    assert!(
        error.contains("wav.scp:1: a command that makes audio is not run"),
        "{error}"
    );
}

/// Shows that a length that is none is named: neither is the audio measured instead, nor does it come into the manifest.
#[test]
fn lengths_that_are_none_are_named() {
    let tree = kaldi("rec-a");
    tree.write("utt2dur", b"rec-a 0.25\n");
    let imported = import(&tree.request(Layout::Kaldi, "")).expect("it is Kaldi's");
    assert!((imported.lines[0].duration - 0.25).abs() < 1e-9, "stated");
    for wrong in ["soon", "nan", "inf", "-1", "0"] {
        tree.write("utt2dur", format!("rec-a {wrong}\n").as_bytes());
        let error = import(&tree.request(Layout::Kaldi, ""))
            .expect_err("it is no length")
            .to_string();
        let expected = format!("utt2dur:1: `{wrong}` is not a length in seconds");
        assert!(error.contains(&expected), "{error}");
    }
    tree.write("utt2dur", b"");
    tree.write("segments", b"utt-1 rec-a 0.1 inf\n");
    tree.write("text", b"utt-1 one\n");
    let error = import(&tree.request(Layout::Kaldi, ""))
        .expect_err("it has no end")
        .to_string();
    assert!(error.contains("segments:1: expected"), "{error}");

    let tree = common_voice();
    tree.write(
        "clip_durations.tsv",
        b"clip\tduration[ms]\ncommon_voice_ar_1.mp3\tnan\n",
    );
    let error = import(&tree.request(Layout::CommonVoice, "train"))
        .expect_err("it is no length")
        .to_string();
    let expected = "clip_durations.tsv:2: `nan` is not a length in milliseconds";
    assert!(error.contains(expected), "{error}");
}

/// A cut as Lhotse writes it.
fn cut(id: &str, kind: &str, source: &str, supervisions: &str) -> String {
    format!(
        "{{\"id\": \"{id}\", \"start\": 0.1, \"duration\": 0.3, \"channel\": 0, \"supervisions\": [{supervisions}], \"recording\": \
         {{\"id\": \"r\", \"sources\": [{{\"type\": \"{source}\", \"channels\": [0], \"source\": \"r.flac\"}}], \"sampling_rate\": \
         16000, \"num_samples\": 8000, \"duration\": 0.5}}, \"type\": \"{kind}\"}}\n"
    )
}

fn supervision(id: &str, start: f64, duration: f64, text: &str) -> String {
    format!(
        "{{\"id\": \"{id}\", \"recording_id\": \"r\", \"start\": {start}, \"duration\": {duration}, \"channel\": 0, \"text\": \
         \"{text}\", \"language\": \"it\"}}"
    )
}

#[test]
fn cuts_of_lhotse_are_read_packed_or_not() {
    let tree = Tree::new();
    tree.audio("r.flac");
    let whole = cut("cut-1", "MonoCut", "file", &supervision("s-1", 0.0, 0.3, "uno"));
    let parts = [
        supervision("s-2", 0.0, 0.1, "due"),
        supervision("s-3", 0.15, 0.1, "tre"),
    ]
    .join(", ");
    let text = whole + &cut("cut-2", "MonoCut", "file", &parts);
    tree.write("cuts.jsonl", text.as_bytes());
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(text.as_bytes()).expect("memory is writable");
    tree.write("cuts.jsonl.gz", &packed.finish().expect("memory is writable"));
    for name in ["cuts.jsonl", "cuts.jsonl.gz"] {
        let request = Request {
            root: tree.path(name),
            ..tree.request(Layout::Lhotse, "")
        };
        let imported = import(&request).expect("these are cuts");
        let found: Vec<_> = imported
            .lines
            .iter()
            .map(|line| {
                (
                    line.id.as_str(),
                    line.offset,
                    line.duration,
                    line.text.as_str(),
                    line.lang.as_str(),
                )
            })
            .collect();
        assert_eq!(
            found,
            [
                ("cut-1", Some(0.1), 0.3, "uno", "it"),
                ("s-2", Some(0.1), 0.1, "due", "it"),
                ("s-3", Some(0.25), 0.1, "tre", "it"),
            ],
            "{name}"
        );
    }
    for (kind, source, expected) in [
        ("MixedCut", "file", "cuts.jsonl:1: cut `x` is a MixedCut"),
        ("MonoCut", "command", "comes from `command`: only files"),
    ] {
        tree.write("cuts.jsonl", cut("x", kind, source, "").as_bytes());
        let request = Request {
            root: tree.path("cuts.jsonl"),
            ..tree.request(Layout::Lhotse, "")
        };
        let error = import(&request).expect_err("it cannot be taken over").to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// Shows that a part of a recording has an offset also where it begins with it, that a whole recording has none, and that an utterance is
/// taken as a whole where its cut begins in it: the text is of all of it.
#[test]
fn parts_of_recordings_say_where_they_begin() {
    let tree = Tree::new();
    tree.audio("r.flac");
    let at = |id: &str, times: &str, supervision: &str| {
        let own = "\"start\": 0.1, \"duration\": 0.3";
        cut(id, "MonoCut", "file", supervision).replacen(own, times, 1)
    };
    let text = [
        at(
            "first",
            r#""start": 0.0, "duration": 0.3"#,
            &supervision("s-1", 0.0, 0.3, "uno"),
        ),
        at(
            "all",
            r#""start": 0.0, "duration": 0.5"#,
            &supervision("s-2", 0.0, 0.5, "due"),
        ),
        at(
            "late",
            r#""start": 0.2, "duration": 0.3"#,
            &supervision("s-3", -0.1, 0.25, "tre"),
        ),
    ]
    .concat();
    tree.write("cuts.jsonl", text.as_bytes());
    let request = Request {
        root: tree.path("cuts.jsonl"),
        ..tree.request(Layout::Lhotse, "")
    };
    let imported = import(&request).expect("these are cuts");
    let found: Vec<_> = imported
        .lines
        .iter()
        .map(|line| (line.id.as_str(), line.offset, line.duration))
        .collect();
    assert_eq!(
        found,
        [
            ("first", Some(0.0), 0.3),
            ("all", None, 0.5),
            ("s-3", Some(0.1), 0.25)
        ]
    );
}

/// Shows that a cut whose audio is not what its file holds is refused: one channel of several, or audio that Lhotse changes as it reads it.
#[test]
fn cuts_whose_audio_is_in_no_file_are_refused() {
    let tree = Tree::new();
    tree.audio("r.flac");
    for (from, to, expected) in [
        (
            r#""channels": [0]"#,
            r#""channels": [0, 1]"#,
            "cuts.jsonl:1: cut `x` is one channel of a file with 2",
        ),
        (
            r#""duration": 0.5"#,
            r#""duration": 0.5, "transforms": [{"name": "Speed", "kwargs": {"factor": 1.1}}]"#,
            "cuts.jsonl:1: the recording of cut `x` has transforms",
        ),
    ] {
        let text = cut("x", "MonoCut", "file", "").replace(from, to);
        tree.write("cuts.jsonl", text.as_bytes());
        let request = Request {
            root: tree.path("cuts.jsonl"),
            ..tree.request(Layout::Lhotse, "")
        };
        let error = import(&request).expect_err("it cannot be taken over").to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn audiofolders_are_read_by_lines_and_by_table() {
    let tree = Tree::new();
    tree.audio("a/one.ogg");
    tree.write(
        "metadata.jsonl",
        "{\"file_name\": \"a/one.ogg\", \"transcription\": \"eins, zwei\", \"locale\": \"de\"}\n".as_bytes(),
    );
    let expected = [row("one", "a/one.ogg", "eins, zwei", "de")];
    let imported = import(&tree.request(Layout::AudioFolder, "")).expect("it is an audiofolder");
    assert_eq!(lines(&tree, &imported), expected);
    fs::remove_file(tree.path("metadata.jsonl")).expect("it is there");
    tree.write(
        "metadata.csv",
        b"file_name,text,lang\na/one.ogg,\"eins, zwei\",de\n",
    );
    let imported = import(&tree.request(Layout::AudioFolder, "")).expect("it is an audiofolder");
    assert_eq!(lines(&tree, &imported), expected);
    tree.write("metadata.csv", b"file,text\na/one.ogg,eins\n");
    let error = import(&tree.request(Layout::AudioFolder, ""))
        .expect_err("no file")
        .to_string();
    assert!(error.contains("metadata.csv:2: needs `file_name`"), "{error}");
}

#[test]
fn audio_that_is_not_there_or_damaged_is_named() {
    let tree = common_voice();
    fs::remove_file(tree.path("clips/common_voice_ar_1.mp3")).expect("it is there");
    tree.write("clips/common_voice_ar_2.mp3", b"not audio");
    let imported = import(&tree.request(Layout::CommonVoice, "train")).expect("its table is fine");
    assert_eq!(imported.lines.len(), 1);
    assert!(imported.bad_audio["common_voice_ar_1"].contains("cannot read the file"));
    assert!(imported.bad_audio["common_voice_ar_2"].contains("not audio"));
}

#[test]
fn an_id_that_a_corpus_has_twice_and_a_table_that_is_another_are_refused() {
    let tree = common_voice();
    let table = fs::read_to_string(tree.path("train.tsv")).expect("it is there");
    let second = table.lines().nth(1).expect("a row");
    tree.write("train.tsv", format!("{table}{second}\n").as_bytes());
    let error = import(&tree.request(Layout::CommonVoice, "train"))
        .expect_err("an id is there twice")
        .to_string();
    assert!(
        error.contains("train.tsv:6: id `common_voice_ar_1` is there already, in "),
        "{error}"
    );
    tree.write("train.tsv", b"path\ttext\nx.mp3\thello\n");
    let error = import(&tree.request(Layout::CommonVoice, "train"))
        .expect_err("no sentence")
        .to_string();
    assert!(error.contains("no column `sentence`"), "{error}");
    let error = import(&tree.request(Layout::CommonVoice, "dev"))
        .expect_err("no table")
        .to_string();
    assert!(error.contains("dev.tsv: cannot be read"), "{error}");
}
